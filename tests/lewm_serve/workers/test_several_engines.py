"""Several engines: each has its share of the plans, and one that dies costs its own requests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.lewm_serve.support.endless_plan import endless_plan
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.model_versions import write_version
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

ENGINES = ("cpu:0", "cpu:1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model."""
    folder = tmp_path / "models" / "a"
    write_version(folder, 0, probe=True)
    return folder


@pytest.fixture
def server(tmp_path: Path, folder: Path) -> Iterator[ServerProcess]:
    """A server with two engines."""
    flags = ("--models", str(folder), "--device", "cpu,cpu")
    with ServerProcess(tmp_path / "log", *flags) as server:
        yield server.wait_ready()


def pids(server: ServerProcess) -> list[int]:
    """The processes of the two engines, in their order, before any restart."""
    return [event["pid"] for event in server.events("engine started")[:2]]


def up(server: ServerProcess) -> list[float]:
    """Whether each engine is up."""
    return [server.metric(f'lewm_engine_up{{device="{device}"}}') for device in ENGINES]


def plan_over_rest(server: ServerProcess, **changes: object) -> dict[str, object]:
    """The answer to a plan on a connection of its own."""
    document: dict[str, object] = httpx.post(
        f"{server.url}/plan", json=plan(**changes), timeout=PATIENCE_S
    ).json()
    return document


def test_plans_go_where_they_end_first_and_are_the_same_everywhere(server: ServerProcess) -> None:
    assert up(server) == [1, 1]
    by_states = {"goal": {"state": {"x": 40.0}}, "avoid": [{"state": {"y": [60.0, 90.0]}}]}
    requests: list[dict[str, object]] = [{"seed": seed} for seed in range(12)]
    requests += [{"seed": seed, **by_states} for seed in range(4)]
    alone = [plan_over_rest(server, **request)["actions"] for request in requests]
    with endless_plan(server):  # one engine is busy for long
        started = time.monotonic()
        beside = [plan_over_rest(server, **request)["actions"] for request in requests]
        assert time.monotonic() - started < PATIENCE_S / 2
    assert beside == alone
    assert all(server.metric(f'lewm_engine_restarts_total{{device="{d}"}}') == 0 for d in ENGINES)


def test_both_engines_work(server: ServerProcess) -> None:
    def seconds_used() -> list[float]:
        ticks = os.sysconf("SC_CLK_TCK")
        stats = [
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids(server)
        ]
        return [(int(stat[11]) + int(stat[12])) / ticks for stat in stats]

    before = seconds_used()
    solver = {"samples": 128, "iterations": 5, "elites": 8}

    def drive(index: int) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest:
            for step in range(6):
                frames = [pixels(100 * index + step)]
                answer = rest.post("/plan", json=plan(frames=frames, solver=solver))
                assert answer.json()["status"] == "completed"

    robots = [threading.Thread(target=drive, args=(index,)) for index in range(4)]
    for robot in robots:
        robot.start()
    for robot in robots:
        robot.join(PATIENCE_S)
    used = [after - b for after, b in zip(seconds_used(), before, strict=True)]
    assert min(used) > 0.2 * max(used)


def test_engines_have_cores_of_their_own(server: ServerProcess) -> None:
    cores = [os.sched_getaffinity(pid) for pid in pids(server)]
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores[0] & cores[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_is_replaced_while_the_other_works(
    server: ServerProcess, victim: int
) -> None:
    expected = plan_over_rest(server)
    os.kill(pids(server)[victim], signal.SIGKILL)
    wait_until(lambda: server.events("the engine's process has ended"))
    while up(server) != [1, 1]:  # the other one answers meanwhile
        assert server.get("/readyz").status_code == 200
        assert plan_over_rest(server)["actions"] == expected["actions"]
    device = ENGINES[victim]
    assert server.metric(f'lewm_engine_restarts_total{{device="{device}"}}') == 1
    assert plan_over_rest(server)["actions"] == expected["actions"]


def test_all_engines_load_new_versions(server: ServerProcess, folder: Path) -> None:
    old = str(plan_over_rest(server)["model_version"])
    new = write_version(folder, 1)
    reload = f"{server.url}/admin/models/reload"
    assert httpx.post(reload, timeout=PATIENCE_S).status_code == 200
    name = server.get("/models").json()["models"][0]["name"]
    with endless_plan(server):  # on either engine: the other one has both versions, too
        current = plan_over_rest(server)
        assert current["model_version"] == new
        assert plan_over_rest(server, model=f"{name}@{old}")["model_version"] == old
    for pid in pids(server):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.metric('lewm_engine_restarts_total{device="cpu:1"}') == 1)
    wait_until(lambda: up(server) == [1, 1])
    assert plan_over_rest(server)["actions"] == current["actions"]


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)])
def test_a_folder_that_changes_before_a_restart(
    server: ServerProcess, folder: Path, victims: tuple[int, ...]
) -> None:
    """The first engine reads the folders again. Another one asks for what is served."""
    before = plan_over_rest(server)["model_version"]
    new = write_version(folder, 1)
    for victim in victims:
        os.kill(pids(server)[victim], signal.SIGKILL)
    devices = [ENGINES[victim] for victim in victims]
    restarts = [f'lewm_engine_restarts_total{{device="{device}"}}' for device in devices]
    wait_until(lambda: all(server.metric(series) == 1 for series in restarts))
    wait_until(lambda: up(server) == [1, 1])
    served = new if 0 in victims else before
    wait_until(lambda: plan_over_rest(server).get("model_version") == served)
    with endless_plan(server):  # whichever engine it takes, the other one answers, or the same
        assert plan_over_rest(server)["model_version"] == served
    reload = httpx.post(f"{server.url}/admin/models/reload", timeout=PATIENCE_S)
    assert reload.status_code == 200, reload.text
    assert plan_over_rest(server)["model_version"] == new


def test_a_reload_after_a_restart_that_lost_old_versions(
    server: ServerProcess, folder: Path
) -> None:
    reload = f"{server.url}/admin/models/reload"
    write_version(folder, 1)
    assert httpx.post(reload, timeout=PATIENCE_S).status_code == 200
    os.kill(pids(server)[0], signal.SIGKILL)
    wait_until(lambda: server.metric('lewm_engine_restarts_total{device="cpu:0"}') == 1)
    wait_until(lambda: up(server) == [1, 1])
    newest = write_version(folder, 2)
    assert httpx.post(reload, timeout=PATIENCE_S).status_code == 200
    assert plan_over_rest(server)["model_version"] == newest
