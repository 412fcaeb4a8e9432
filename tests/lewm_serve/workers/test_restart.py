"""An engine that dies or hangs is started again, and nothing else of the server is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.lewm_serve.support.endless_plan import ENDLESS_SOLVER, endless_plan
from tests.lewm_serve.support.faulty_lewm import (
    CRASHING_HORIZON,
    DYING_HORIZON,
    FAULTY_LEWM,
    SLOW_HORIZON,
    SLOW_STEP_S,
    STUCK_HORIZON,
)
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.model_versions import write_version
from tests.lewm_serve.support.requests import HOLD, plan, plan_with_solver
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

RESTARTS = 'lewm_engine_restarts_total{device="cpu"}'
UP = 'lewm_engine_up{device="cpu"}'


@pytest.fixture
def server(tmp_path: Path, model_folder: Path) -> Iterator[ServerProcess]:
    """A server of its own for each test: it is not the same afterwards."""
    with ServerProcess(tmp_path / "log", "--models", str(model_folder)) as server:
        yield server.wait_ready()


def kill_engine(server: ServerProcess, number: signal.Signals = signal.SIGKILL) -> None:
    """End the engine, and wait until its successor runs."""
    before = server.metric(RESTARTS)
    os.kill(server.engine_pid(), number)
    wait_restarted(server, before)


def wait_restarted(server: ServerProcess, before: float = 0) -> None:
    """Wait until an engine that has died runs again."""
    wait_until(lambda: server.metric(RESTARTS) > before, "a restart")
    wait_until(lambda: server.get("/readyz").status_code == 200, "readiness")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_idle_engine_that_dies_is_started_again(
    server: ServerProcess, number: signal.Signals
) -> None:
    before = server.get("/models").json()
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest:
        first = rest.post("/plan", json=plan()).json()
        kill_engine(server, number)
        second = rest.post("/plan", json=plan()).json()  # on the same connection
    assert second["actions"] == first["actions"]
    assert second["latent_ids"] == first["latent_ids"]
    assert (server.metric(RESTARTS), server.metric(UP)) == (1, 1)
    assert server.get("/models").json() == before
    assert server.metric('lewm_requests_total{code="ok",endpoint="plan",protocol="rest"}') == 2
    (end,) = server.events("the engine's process has ended")
    assert end["signal"] == number.name


def test_what_is_inside_gets_an_error_or_its_fallback(server: ServerProcess) -> None:
    answers: dict[str, httpx.Response] = {}

    def ask(name: str, **changes: Any) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest:
            answers[name] = rest.post("/plan", json=plan(solver=ENDLESS_SOLVER, **changes))

    with endless_plan(server) as endless, server.paused_engine():
        waiting = [
            threading.Thread(target=ask, args=("plain",)),
            threading.Thread(target=ask, args=("safe",), kwargs={"fallback": HOLD}),
        ]
        for thread in waiting:
            thread.start()
        wait_until(lambda: server.metric('lewm_queued_requests{endpoint="plan"}') >= 2)
        kill_engine(server)
        for thread in waiting:
            thread.join(PATIENCE_S)
        assert endless.exception().code().name == "UNAVAILABLE"  # type: ignore[union-attr]
    refused = answers["plain"]
    assert (refused.status_code, refused.json()["code"]) == (503, "restarting")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert answers["safe"].status_code == 200
    assert answers["safe"].json()["fallback"]["reason"] == "engine_failure"


def test_a_plan_that_ends_the_engine(tmp_path: Path, model_folder: Path) -> None:
    """By a crash in native code, and by an error that nothing catches, which the log shows."""
    flags = ("--models", str(model_folder))
    with ServerProcess(tmp_path / "log", *flags, program=FAULTY_LEWM) as server:
        server.wait_ready()
        for restarts, horizon in enumerate((CRASHING_HORIZON, DYING_HORIZON)):
            deadly = plan_with_solver(samples=4, elites=2, iterations=1, horizon=horizon)
            answer = httpx.post(f"{server.url}/plan", json=deadly, timeout=PATIENCE_S)
            assert answer.json()["code"] == "restarting"
            wait_restarted(server, restarts)
            answer = httpx.post(f"{server.url}/plan", json=plan(), timeout=PATIENCE_S)
            assert answer.json()["status"] == "completed"
        (death,) = server.events("the engine died")
        assert "faulty_rollout" in death["exception"]


def test_an_engine_that_dies_while_the_server_drains(server: ServerProcess) -> None:
    """A plan with a fallback still gets it."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        document = plan(solver=ENDLESS_SOLVER, fallback=HOLD, deadline_ms=600_000)
        answers.append(httpx.post(f"{server.url}/plan", json=document, timeout=PATIENCE_S))

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: server.metric("lewm_active_plans") == 1)
    server.signal(signal.SIGTERM)
    wait_until(lambda: server.events("draining"))
    os.kill(server.engine_pid(), signal.SIGKILL)
    thread.join(PATIENCE_S)
    assert [answer.status_code for answer in answers] == [200]
    assert answers[0].json()["fallback"]["reason"] == "engine_failure"
    assert server.wait_stopped() == 0


def test_a_version_comes_back_while_a_plan_still_uses_it(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "a"
    old = write_version(folder, 0)
    flags = ("--models", str(folder), "--keep-old-s", "0")
    with ServerProcess(tmp_path / "log", *flags) as server:
        server.wait_ready()
        reload = f"{server.url}/admin/models/reload"
        with endless_plan(server):
            write_version(folder, 1)
            assert httpx.post(reload, timeout=PATIENCE_S).status_code == 200
            assert write_version(folder, 0) == old
            assert httpx.post(reload, timeout=PATIENCE_S).status_code == 200
            urgent = plan(deadline_ms=600_000)
            answer = httpx.post(f"{server.url}/plan", json=urgent, timeout=PATIENCE_S)
            assert answer.json()["model_version"] == old


def test_an_engine_that_hangs_is_killed_and_started_again(
    tmp_path: Path, model_folder: Path
) -> None:
    flags = ("--models", str(model_folder), "--engine-timeout-s", "0.5")
    with ServerProcess(tmp_path / "log", *flags, program=FAULTY_LEWM) as server:
        server.wait_ready()
        os.kill(server.engine_pid(), signal.SIGSTOP)
        wait_restarted(server)
        (hang,) = server.events("the engine hangs and is killed")
        assert hang["silent_s"] >= 0.5

        # A step that takes longer than the timeout is no hang, and one that never ends is.
        long_step = plan_with_solver(samples=4, elites=2, iterations=1, horizon=SLOW_HORIZON)
        started = time.monotonic()
        answer = httpx.post(f"{server.url}/plan", json=long_step, timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert time.monotonic() - started >= SLOW_STEP_S
        assert server.metric(RESTARTS) == 1
        stuck = plan_with_solver(samples=4, elites=2, iterations=1, horizon=STUCK_HORIZON)
        answer = httpx.post(f"{server.url}/plan", json=stuck, timeout=PATIENCE_S)
        assert answer.json()["code"] == "restarting"
        wait_restarted(server, 1)


def test_six_deaths_within_a_minute_are_the_end(server: ServerProcess) -> None:
    for _ in range(5):
        kill_engine(server)
    os.kill(server.engine_pid(), signal.SIGKILL)
    wait_until(lambda: server.get("/healthz").status_code == 503)
    assert server.get("/healthz").json()["code"] == "failed"
    assert (server.metric(RESTARTS), server.metric(UP)) == (5, 0)
    refused = httpx.post(f"{server.url}/plan", json=plan(), timeout=PATIENCE_S)
    assert refused.json()["code"] == "failed"
    safe = httpx.post(f"{server.url}/plan", json=plan(fallback=HOLD), timeout=PATIENCE_S)
    assert safe.json()["fallback"]["reason"] == "engine_failure"
    assert server.stop() == 0


def test_without_a_launcher_the_server_fails(server: ServerProcess) -> None:
    launcher = int(
        Path(f"/proc/{server.engine_pid()}/stat").read_text().rpartition(")")[2].split()[1]
    )
    os.kill(launcher, signal.SIGKILL)
    wait_until(lambda: server.get("/healthz").status_code == 503)
    assert server.stop() == 0


def test_the_engine_ends_with_a_server_that_is_killed(server: ServerProcess) -> None:
    shared_memory = set(Path("/dev/shm").iterdir())
    engine = server.engine_pid()
    with endless_plan(server):
        server.signal(signal.SIGKILL)
        server.process.wait(PATIENCE_S)
        wait_until(lambda: not Path(f"/proc/{engine}").exists(), "the end of the engine")
    assert set(Path("/dev/shm").iterdir()) <= shared_memory


def test_models_are_read_again_by_the_new_engine(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "a"
    old = write_version(folder, 0)
    with ServerProcess(tmp_path / "log", "--models", str(folder)) as server:
        server.wait_ready()
        reload = f"{server.url}/admin/models/reload"
        new = write_version(folder, 1)
        assert httpx.post(reload, timeout=PATIENCE_S).status_code == 200
        name = server.get("/models").json()["models"][0]["name"]
        pinned = plan(model=f"{name}@{old}")
        assert httpx.post(f"{server.url}/plan", json=pinned, timeout=PATIENCE_S).status_code == 200
        kill_engine(server)
        # Old versions ended with the engine that held them.
        answer = httpx.post(f"{server.url}/plan", json=pinned, timeout=PATIENCE_S)
        assert answer.json()["code"] == "unknown_model"
        current = httpx.post(f"{server.url}/plan", json=plan(), timeout=PATIENCE_S).json()
        assert current["model_version"] == new
        newest = write_version(folder, 2)
        assert httpx.post(reload, timeout=PATIENCE_S).status_code == 200
        kill_engine(server)
        current = httpx.post(f"{server.url}/plan", json=plan(), timeout=PATIENCE_S).json()
        assert current["model_version"] == newest


def test_a_folder_that_has_become_unusable_ends_the_attempts(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "a"
    write_version(folder)
    with ServerProcess(tmp_path / "log", "--models", str(folder)) as server:
        server.wait_ready()
        (folder / "model.safetensors").write_bytes(b"damaged")
        os.kill(server.engine_pid(), signal.SIGKILL)
        wait_until(lambda: server.get("/readyz").json().get("code") == "failed")
        assert server.events("models not loaded by the new engine")
        assert server.stop() == 0


def test_a_thread_gives_the_same_plans_as_a_process(
    server: ServerProcess, tmp_path: Path, model_folder: Path
) -> None:
    flags = ("--models", str(model_folder), "--engine", "thread")
    requests = [plan(seed=seed, frames=[pixels(seed)]) for seed in range(5)]
    requests += [plan_with_solver(samples=64), plan(solver={"name": "gradient", "iterations": 3})]
    with ServerProcess(tmp_path / "thread.log", *flags) as thread:
        thread.wait_ready()
        assert not thread.events("engine started")
        for request in requests:
            first, second = (
                httpx.post(f"{one.url}/plan", json=request, timeout=PATIENCE_S).json()
                for one in (server, thread)
            )
            assert first["actions"] == second["actions"]


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.long)])
def test_kills_under_load(server: ServerProcess, kills: int) -> None:
    """Every request is answered, and those that succeed get the same plan as ever."""
    pause_s = 0.0 if kills <= 5 else 13.0  # at most five restarts within a minute
    codes: Counter[str] = Counter()
    reference = httpx.post(f"{server.url}/plan", json=plan(), timeout=PATIENCE_S).json()
    stopping = threading.Event()

    def drive(index: int) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest:
            while not stopping.is_set():
                fallback = HOLD if index % 2 else ...
                answer = rest.post("/plan", json=plan(fallback=fallback))
                body = answer.json()
                code = body.get("code", body.get("status"))
                if code == "completed":
                    np.testing.assert_array_equal(body["actions"], reference["actions"])
                elif answer.status_code == 503:
                    assert 1 <= int(answer.headers["retry-after"]) <= 30
                codes[code] += 1

    robots = [threading.Thread(target=drive, args=(index,)) for index in range(8)]
    for robot in robots:
        robot.start()
    try:
        for _ in range(kills):
            answered = codes["completed"]
            wait_until(lambda answered=answered: codes["completed"] > answered + 40)  # type: ignore[misc]
            kill_engine(server)
            time.sleep(pause_s)
    finally:
        stopping.set()
        for robot in robots:
            robot.join(PATIENCE_S)
    assert not any(robot.is_alive() for robot in robots)
    assert set(codes) <= {"completed", "fallback", "restarting"}
    assert codes["restarting"] > 0
    assert codes["fallback"] > 0
    assert server.metric(RESTARTS) == kills
    assert server.metric("lewm_active_plans") == 0
