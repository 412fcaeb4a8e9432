"""The life of a server: it listens, loads, serves, drains and stops."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from lewm_client import PlannerClient, PlannerError
from lewm_models import checkpoint
from lewm_serve.transports.grpc.calls import SERVICE
from tests.lewm_serve.support.endless_plan import endless_plan
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.random_model import MODEL_NAME, write_random_model
from tests.lewm_serve.support.raw_http import RawConnection, get, post
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S, wait_until

LONG_GRACE = ("--grace-s", "600")


def serve(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a server that should not be able to start."""
    command = [sys.executable, "-m", "lewm_serve.cli.main", "serve"]
    return subprocess.run(
        [*command, *flags],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class HeldCard:
    """A pipe in the place of a model's card. The server waits when it reads it, until `release`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / checkpoint.CARD_FILE
        self.content = self.path.read_bytes()
        self.path.unlink()
        os.mkfifo(self.path)

    def release(self) -> None:
        """Let the server read the card. When it reads it again, it finds a file."""
        with self.path.open("wb") as pipe:  # waits for the server
            self.path.unlink()
            self.path.write_bytes(self.content)
            pipe.write(self.content)


def test_a_server_loads_serves_and_drains(tmp_path: Path) -> None:
    card = HeldCard(write_random_model(tmp_path / "models" / MODEL_NAME))
    flags = ("--models", str(tmp_path / "models"), *LONG_GRACE)
    with (
        ServerProcess(tmp_path / "log", *flags).wait_listening() as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
        PlannerClient(server.target) as rpc,
        ThreadPoolExecutor(1) as pool,
    ):
        assert_loading(rest)
        listening = server.ready
        card.release()
        server.wait_ready()
        assert server.ready == {
            "event": "ready",
            "http_port": listening["http_port"],
            "grpc_port": listening["grpc_port"],
            "models": [MODEL_NAME],
        }
        assert rest.get("/readyz").status_code == 200
        assert rpc.encode([picture(0)], timeout_s=PATIENCE_S).latents

        with server.paused_engine() as resume:
            admitted = pool.submit(rest.post, "/plan", json=plan())
            wait_until(lambda: server.metric('lewm_queued_requests{endpoint="plan"}') == 1)
            server.signal(signal.SIGTERM)
            server.wait_draining()
            assert_draining(rest, rpc)
            resume()
            answer = admitted.result(PATIENCE_S)
        assert server.wait_stopped() == 0, server.errors()
        assert (answer.status_code, answer.json()["status"]) == (200, "completed")
        assert server.lines.get(timeout=PATIENCE_S) == ""  # the ready line was the only one
        assert "Traceback" not in server.errors()


def test_a_signal_ends_a_server_that_loads(tmp_path: Path) -> None:
    HeldCard(write_random_model(tmp_path / "models" / MODEL_NAME))
    with ServerProcess(tmp_path / "log", "--models", str(tmp_path / "models")) as server:
        server.wait_listening()
        assert server.stop() == 0, server.errors()
        assert server.lines.get(timeout=PATIENCE_S) == ""


def assert_loading(rest: httpx.Client) -> None:
    """Check that the server answers that it is loading."""
    assert rest.get("/healthz").status_code == 200
    ready, refused = rest.get("/readyz"), rest.post("/plan", json=plan())
    assert refused.status_code == ready.status_code == 503
    assert refused.json()["code"] == ready.json()["code"] == "loading"
    assert int(refused.headers["retry-after"]) >= 1


def assert_draining(rest: httpx.Client, rpc: PlannerClient) -> None:
    """Check that the server answers that it is draining."""
    ready = rest.get("/readyz")
    assert (ready.status_code, ready.json()["code"]) == (503, "draining")
    refused = rest.post("/plan", json=plan())
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert refused.headers["retry-after"]
    with pytest.raises(PlannerError) as caught:
        rpc.plan([picture(0)], picture(1), timeout_s=PATIENCE_S)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE
    assert caught.value.code == "draining"
    assert caught.value.retry_after_s


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder), *LONG_GRACE)
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        endless_plan(server) as running_plan,
    ):
        server.signal(signal.SIGINT)
        server.wait_draining()
        assert not running_plan.done()
        server.signal(signal.SIGINT)
        assert server.wait_stopped() == 128 + signal.SIGINT


def test_a_server_that_leaves_is_unready_and_serves(tmp_path: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder), "--drain-lag-s", "600")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE_S) as rest,
        PlannerClient(server.target) as rpc,
        RawConnection(server) as idle,
    ):
        idle.send(get("/healthz"))
        assert "connection" not in idle.read_answer().headers
        health = HealthStub(rpc.channel).Watch(HealthCheckRequest(service=SERVICE))
        assert next(health).status == HealthCheckResponse.SERVING
        server.signal(signal.SIGTERM)
        assert next(health).status == HealthCheckResponse.NOT_SERVING
        ready = rest.get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        assert rest.get("/healthz").json() == {"status": "leaving"}

        answer = rest.post("/plan", json=plan())
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        idle.send(post("/plan", plan()))  # on a connection that was open before
        late = idle.read_answer()
        assert (late.status, late.headers["connection"]) == (200, "close")
        assert idle.is_closed()
        assert rpc.plan([picture(0)], picture(1), timeout_s=PATIENCE_S).actions.size

        server.signal(signal.SIGTERM)
        assert server.wait_stopped() == 128 + signal.SIGTERM


def test_a_server_leaves_before_it_drains(tmp_path: Path, model_folder: Path) -> None:
    lag_s = 0.5
    flags = ("--models", str(model_folder), "--drain-lag-s", str(lag_s))
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        RawConnection(server) as idle,
    ):
        idle.send(get("/healthz"))
        assert idle.read_answer().status == 200
        assert server.stop() == 0, server.errors()
        assert idle.is_closed()
        times = {
            line["event"]: datetime.fromisoformat(line["timestamp"]) for line in server.log_lines()
        }
    events = [event for event in times if event in ("stopping", "leaving", "draining", "stopped")]
    assert events[1:] == ["leaving", "draining", "stopped"]
    assert (times["draining"] - times["leaving"]).total_seconds() >= 0.9 * lag_s


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_a_port_in_use_is_one_clear_error(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other_program:
        port = str(other_program.getsockname()[1])
        other = "--grpc-port" if flag == "--http-port" else "--http-port"
        result = serve(flag, port, other, "0")
    assert (result.returncode, result.stdout) == (1, "")
    problem = f"cannot listen on 127.0.0.1:{port}: address already in use"
    assert result.stderr == f"lewm serve: {problem}\n"


@pytest.mark.parametrize("host", ["nobody.invalid", "192.0.2.1"])
def test_a_host_that_is_not_here_is_one_clear_error(host: str) -> None:
    result = serve("--host", host, "--http-port", "0", "--grpc-port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"lewm serve: cannot listen on {host}: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_model_is_one_clear_error() -> None:
    result = serve("--models", "/nowhere/model", "--http-port", "0", "--grpc-port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert "/nowhere/model" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--http-port", "70000"),
        ("--grpc-port", "x"),
        ("--device", "tpu"),
        ("--threads", "0"),
        ("--drain-lag-s", "-1"),
        ("--redis-url", "localhost:6379"),
        ("--backend", "tensorrt"),
        ("--precision", "float16"),
        ("--log-level", "loud"),
    ],
)
def test_a_bad_setting_is_one_clear_line(flag: str, value: str) -> None:
    result = serve(flag, value)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert flag in result.stderr


def test_unknown_variables_are_warned_about() -> None:
    links = {"LEWM_SERVICE_HOST": "10.0.0.1", "LEWM_PORT": "tcp://10.0.0.1:80"}
    flags = ("--models", "/nowhere/model", "--http-port", "0", "--grpc-port", "0")
    result = serve(*flags, "--log-format", "json", LEWM_MAX_QUE="5", **links)
    unknown, services, *_ = map(json.loads, result.stderr.splitlines()[:2])
    assert (unknown["event"], unknown["variable"]) == ("unknown setting", "LEWM_MAX_QUE")
    assert (unknown["did_you_mean"], unknown["level"]) == ("LEWM_MAX_QUEUE", "warning")
    assert services["variables"] == sorted(links)
    assert "enableServiceLinks" in services["event"]
    assert (result.stderr.count("LEWM_"), result.returncode) == (4, 1)


def test_help_lists_every_setting() -> None:
    from lewm_serve.settings import Settings

    text = serve("--help").stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"LEWM_{name.upper()}" in text
