"""`lewm capacity`: the search for the largest number of robots, what limits, and a real server."""

import io
import json
import math
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lewm_models import checkpoint
from lewm_serve.cli.capacity_run import (
    IN_TIME_SHARE,
    LIMITS,
    MAX_TRIALS,
    STEP,
    SolverSpeed,
    Trials,
    Usage,
    name_limit,
    pictures_of,
)
from lewm_serve.cli.local_server import LocalServer, local_server
from lewm_serve.cli.main import app
from lewm_serve.cli.robot_load import LoadProcess, Outcome, RobotLoad, load_process


def size_of(image: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(image)).size


IDLE = Usage(0.0, 0.0, 0.0, 0.0, None)


class KnownServer(Trials):
    """Trials of a server that carries a known number of robots."""

    def __init__(self, carries: int, rate_hz: float = 2.0) -> None:
        load = RobotLoad("", ())
        super().__init__(LocalServer(0, 0, (), 0), None, load, rate_hz, 0.5, 1.0)  # type: ignore[arg-type]
        self.carries = carries
        self.tried: list[int] = []

    def _try(self, robots: int) -> tuple[Outcome, Usage]:
        self.tried.append(robots)
        share = 1.0 if robots <= self.carries else IN_TIME_SHARE - 0.01
        outcome = Outcome(100, round(100 * share), (0.1,) * 99 + (0.4,), 4, 8.0, None)
        return outcome, replace(IDLE, engine=0.1 * robots)


def speed(plans_per_s: float) -> SolverSpeed:
    return SolverSpeed("icem", {}, 28, 0.01, 0.02, plans_per_s)


@pytest.mark.parametrize("carries", [1, 2, 7, 40, 45, 52, 60])
@pytest.mark.parametrize("rate_hz", [0.5, 2.0])
def test_the_largest_number_of_robots_is_found(carries: int, rate_hz: float) -> None:
    trials = KnownServer(carries, rate_hz)
    found = trials.search(speed(50 * rate_hz), lambda _: None)
    assert found.robots <= carries
    if len(trials.tried) < MAX_TRIALS:
        assert found.tried is not None
        assert found.robots <= carries < found.tried
        assert found.tried - found.robots <= max(1, math.ceil((STEP - 1) * found.tried))
    assert len(set(trials.tried)) == len(trials.tried)
    if found.robots:
        assert found.p50_s == 0.1
        assert found.p99_s is not None
        assert 0.1 <= found.p99_s <= 0.4
        assert found.processor_s == pytest.approx(0.1 / rate_hz)


def test_a_server_that_carries_no_robot_carries_none() -> None:
    trials = KnownServer(0)
    found = trials.search(speed(1.0), lambda _: None)
    assert (trials.tried, found.robots, found.tried, found.p50_s) == ([1], 0, 1, None)
    # The robot got 4 plans in 8 seconds, fewer than it asked for.
    assert found.usage.engine == 0.1
    assert found.processor_s == pytest.approx(0.1 * 8 / 4)


@pytest.mark.parametrize(
    ("limit", "usage"),
    [
        ("cores", replace(IDLE, engine=1.0, protocols=0.5, load=0.4)),
        ("other work", replace(IDLE, engine=0.8, protocols=0.2, others=1.0)),
        ("engine", replace(IDLE, engine=0.95, protocols=0.5)),
        ("protocols", replace(IDLE, engine=0.5, protocols=0.95)),
        ("load", replace(IDLE, engine=0.4, load=0.95)),
        ("bursts", replace(IDLE, engine=0.5, protocols=0.5)),
    ],
)
def test_what_limits_first(limit: str, usage: Usage) -> None:
    assert limit in LIMITS
    assert name_limit(usage, alone_p99_s=0.1, deadline_s=0.5, cores=2) == limit
    assert name_limit(usage, alone_p99_s=0.6, deadline_s=0.5, cores=2) == "one plan"


def test_pictures_have_the_cameras_size() -> None:
    loaded = checkpoint.load(checkpoint.EMBEDDED_MODEL)
    assert {size_of(picture) for picture in pictures_of(loaded, (160, 120))} == {(160, 120)}
    size = loaded.card.config.image_size
    without = replace(loaded, frames=None)
    noise = pictures_of(without, None)
    assert {size_of(picture) for picture in noise} == {(size, size)}
    assert len(set(noise)) == len(noise)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server() as running:
        yield running


@pytest.fixture(scope="module")
def process() -> Iterator[LoadProcess]:
    with load_process() as running:
        yield running


@pytest.fixture(scope="module")
def images() -> tuple[bytes, ...]:
    return pictures_of(checkpoint.load(checkpoint.EMBEDDED_MODEL), None)


def test_paced_robots_send_at_their_rate_and_new_frames(
    server: LocalServer, process: LoadProcess, images: tuple[bytes, ...]
) -> None:
    before = cached_latents(server)
    outcome = process.run(RobotLoad(server.target, images).paced, 3, 4.0, 60.0, 1.5)
    looked_up = cached_latents(server) - before
    assert outcome.error is None
    assert outcome.asked == 3 * 6
    assert outcome.in_time == len(outcome.latencies_s) == outcome.asked
    assert all(0 < latency_s < 60 for latency_s in outcome.latencies_s)
    # One second before what counts, one goal, and no frame twice.
    assert looked_up == {"miss": 3 * 10 + 1, "hit": 3 * 10}


def test_plans_that_are_late_or_refused_are_not_in_time(
    server: LocalServer, process: LoadProcess, images: tuple[bytes, ...]
) -> None:
    slow = RobotLoad(server.target, images, {"samples": 512, "iterations": 40})
    outcome = process.run(slow.paced, 2, 2.0, 0.02, 1.0)
    assert outcome.asked == 4
    assert outcome.in_time == 0
    wrong = process.run(RobotLoad(server.target, images, {"samples": 0}).unpaced, 2, 0.1)
    assert wrong.in_time == 0
    assert not wrong.latencies_s
    assert wrong.error is not None
    assert "samples" in wrong.error


def cached_latents(server: LocalServer) -> Counter[str]:
    """How many latents the server's memory had and did not have."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        text = answer.read().decode()
    return Counter(
        {
            result: int(float(value))
            for result, value in re.findall(
                r'^lewm_cache_requests_total\{result="(\w+)",tier="memory"\} (\S+)$', text, re.M
            )
        }
    )


def capacity(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["capacity", *arguments])


def test_the_command_measures_and_writes_a_file(tmp_path: Path) -> None:
    output = tmp_path / "capacity.json"
    result = capacity(
        *("--solver", "icem", "--rate", "0.5", "--seconds", "1", "--price", "0.1"),
        *("--camera", "96x96", "--output", str(output)),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text())
    (measured,), (found,) = report["speeds"], report["capacities"]
    assert report["model"] == "two-room"
    assert report["image_size"] == [96, 96]
    assert measured["settings"]["samples"] == 16
    assert 0 < measured["alone_p50_s"] <= measured["alone_p99_s"]
    assert found["robots"] > 0
    assert 0 < found["p50_s"] <= found["p99_s"]
    assert found["usage"]["engine"] > 0
    assert found["usage"]["protocols"] > 0
    assert found["limit"] in LIMITS
    assert np.isclose(
        found["processor_s"] * found["robots"] * 0.5,
        found["usage"]["engine"] + found["usage"]["protocols"],
    )
    for text in ("two-room on", "96 x 96 px", "per robot-hour", f" {found['robots']} "):
        assert text in result.stdout
    assert f"limit: {found['limit']}: {LIMITS[found['limit']]}" in result.stdout


def test_frames_that_the_model_refuses_are_one_line() -> None:
    result = capacity("--camera", "96x80", "--seconds", "1")
    assert result.exit_code == 1
    assert result.stderr.startswith("lewm capacity: not_square: ")
    assert "96 x 80" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--solver", "best"), "--solver: expected one of cem, icem, mppi, random, gradient, got"),
        (("--camera", "640"), "--camera: expected WIDTHxHEIGHT such as 640x480, got '640'"),
        (("--camera", "0x480"), "--camera: expected WIDTHxHEIGHT such as 640x480, got '0x480'"),
        (("--model", "nowhere"), "nowhere"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = capacity(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("lewm capacity: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
