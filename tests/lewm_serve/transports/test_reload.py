"""Models are exchanged while robots plan: no plan fails, and none mixes versions."""

from __future__ import annotations

import base64
import itertools
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lewm_client import PlannerClient, PlannerError
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.model_versions import write_version
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

RELOAD = "/admin/models/reload"
GOAL = pixels(100)
DIFFERENT_FRAMES = 20
EXECUTED_ROWS = 5

Document = dict[str, Any]


class Robot(threading.Thread):
    """A robot that plans from its last plan on.

    Args:
        url: the address of the server.
        number: its number.
        count: it makes so many plans at least,
        until: and goes on until this happens.

    Attributes:
        plans: its requests, the answers, and how long each took in seconds.
    """

    def __init__(self, url: str, number: int, count: int, until: threading.Event) -> None:
        super().__init__(name=f"robot-{number}")
        self.url, self.number, self.count, self.until = url, number, count, until
        self.plans: list[tuple[Document, Document, float]] = []

    def run(self) -> None:
        rest: list[list[float]] = []
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S) as client:
            for step in itertools.count():
                if step >= self.count and self.until.is_set():
                    return
                request = plan(
                    frames=[pixels(step % DIFFERENT_FRAMES)],
                    goal=GOAL,
                    solver=...,
                    seed=100_000 * self.number + step,
                    warm_start=rest or ...,
                )
                start = time.monotonic()
                answer = client.post("/plan", json=request)
                self.plans.append((request, answer.json(), time.monotonic() - start))
                rest = answer.json().get("actions", [])[EXECUTED_ROWS:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of models that the server reads."""
    folder = tmp_path_factory.mktemp("models")
    write_version(folder / MODEL_NAME)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[ServerProcess]:
    """A server that keeps no old version longer than it is used, so that each reload loads one."""
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    with ServerProcess(log, "--models", str(folder), "--keep-old-s", "0") as process:
        yield process.wait_ready()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """A client of the server."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as http:
        yield http


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of two versions, with other weights and other solvers, by their hashes."""
    folders = [tmp_path_factory.mktemp("version") for _ in range(2)]
    return {
        write_version(folder, seed, elites=4 + seed): folder for seed, folder in enumerate(folders)
    }


def switch_to(client: httpx.Client, folder: Path, version: str, source: Path) -> None:
    """Serve another version of the model."""
    shutil.copytree(source, folder / MODEL_NAME, dirs_exist_ok=True)
    answer = client.post(RELOAD)
    assert answer.status_code == 200, answer.text
    (model,) = answer.json()["models"]
    assert (model["result"], model["new_version"]) == ("switched", version)
    assert model["old_version"] not in (None, version)


@pytest.mark.parametrize(
    ("robots", "plans", "reloads"), [(3, 25, 3), pytest.param(5, 200, 10, marks=pytest.mark.long)]
)
def test_no_plan_fails_and_none_mixes_versions(
    client: httpx.Client,
    server: ServerProcess,
    folder: Path,
    prepared: dict[str, Path],
    robots: int,
    plans: int,
    reloads: int,
) -> None:
    reloaded = threading.Event()
    groups = [
        [Robot(server.url, number, plans, until=reloaded) for number in range(robots)]
        for _ in range(2)
    ]
    during, quiet = groups
    for robot in during:
        robot.start()
    first, second = prepared
    served = client.get(f"/models/{MODEL_NAME}").json()["version"]
    for _ in range(reloads):
        served = second if served == first else first
        switch_to(client, folder, served, prepared[served])
        # The next reload comes when some plans were made by this version.
        wait_made(during, made_by(during) + 2 * robots)
    reloaded.set()
    for robot in during:
        robot.join(PATIENCE_S)

    made = [entry for robot in during for entry in robot.plans]
    assert len(made) >= robots * plans
    assert [answer for _, answer, _ in made if "actions" not in answer] == []
    assert {answer["model_version"] for _, answer, _ in made} == {first, second}
    planned_again = made[:: 1 + len(made) // (robots * plans)]
    differing = 0
    other = second if served == first else first
    for version in (served, other):
        if version == other:
            switch_to(client, folder, version, prepared[version])
        for request, answer, _ in planned_again:
            again = client.post("/plan", json=request).json()["actions"]
            if answer["model_version"] == version:
                assert again == answer["actions"]
            else:
                differing += again != answer["actions"]
    assert differing > len(planned_again) / 2  # sometimes both choose the warm start
    assert server.metric('lewm_model_reloads_total{result="failed"}') == 0

    for robot in quiet:
        robot.start()
    for robot in quiet:
        robot.join(PATIENCE_S)
    p99_s = [
        statistics.quantiles([s for robot in group for *_, s in robot.plans], n=100)[98]
        for group in groups
    ]
    print(f"p99 with and without reloads: {p99_s[0]:.3f} s, {p99_s[1]:.3f} s")


def wait_made(robots: list[Robot], count: int) -> None:
    """Wait until these robots have made so many plans."""
    wait_until(lambda: made_by(robots) >= count)


def made_by(robots: list[Robot]) -> int:
    """How many plans these robots have made."""
    return sum(len(robot.plans) for robot in robots)


def test_signal_pins_and_failures(
    client: httpx.Client, server: ServerProcess, folder: Path, tmp_path: Path
) -> None:
    old = client.get(f"/models/{MODEL_NAME}").json()["version"]
    log = tmp_path / "log.jsonl"
    with ServerProcess(log, "--models", str(folder), "--keep-old-s", "600").wait_ready() as other:
        new = write_version(folder / MODEL_NAME, 2)
        other.signal(signal.SIGHUP)
        listed: Document = {}

        def has_switched() -> bool:
            listed.update(other.get("/models").json())
            return bool(listed["models"][0]["version"] == new)

        wait_until(has_switched)
        (model,) = listed["models"]
        (kept,) = model["old_versions"]
        assert (kept["name"], kept["version"], listed["removed"]) == (MODEL_NAME, old, [])
        with PlannerClient(other.target) as rpc:
            (described,) = rpc.models()
            assert [version.version for version in described.old_versions] == [old]
            assert not described.HasField("seconds_left")
            for name, version in ((MODEL_NAME, new), (f"{MODEL_NAME}@{old}", old)):
                request = plan(model=name)
                answer = httpx.post(f"{other.url}/plan", json=request, timeout=PATIENCE_S).json()
                assert (answer["model"], answer["model_version"]) == (MODEL_NAME, version)
                frame = np.frombuffer(
                    base64.b64decode(request["frames"][0]["pixels"]["data"]), np.uint8
                ).reshape(64, 64, 3)
                assert rpc.encode([frame], model=name).model_version == version
            with pytest.raises(PlannerError) as refused:
                rpc.encode([frame], model=f"{MODEL_NAME}@0123456789abcdef")
        known = f"expected one of {MODEL_NAME}@{old}, {MODEL_NAME}@{new}"
        assert refused.value.code == "unknown_model"
        assert known in str(refused.value)
        path = f"/models/{MODEL_NAME}@0123456789abcdef"
        assert known in other.get(path).json()["detail"]

        (folder / MODEL_NAME / "model.safetensors").write_bytes(b"broken")
        answer = httpx.post(f"{other.url}/v1{RELOAD}", timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["code"]) == (500, "reload_failed")
        (failed,) = answer.json()["models"]
        assert (failed["model"], failed["old_version"]) == (MODEL_NAME, new)
        assert failed["error"].startswith(f"{folder.name}/{MODEL_NAME}/model.safetensors: ")
        assert str(folder.parent) not in answer.text
        assert other.metric('lewm_model_reloads_total{result="failed"}') == 1
        assert other.get("/readyz").status_code == 200
        lines = other.log_lines()
        failures = [line for line in lines if line["event"] == "model not reloaded"]
        assert [line["model"] for line in failures] == [MODEL_NAME]
        assert [line["event"] for line in lines].count("reading models again") == 2
        labels = f'backend="onnx",device="cpu",model="{MODEL_NAME}",precision="float32"'
        for version in (old, new):
            assert other.metric(f'lewm_model_info{{{labels},version="{version}"}}') == 1
