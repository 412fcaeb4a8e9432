"""From the first byte of a server's life to its exit code."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import httpx
import pytest

from service.rpc.client import PlannerClient, PlannerError
from tests.service.cases import plan
from tests.service.frames import picture
from tests.service.process import ROOT, ServerProcess

LONG = {"samples": 512, "iterations": 200, "elites": 8}
UNTIL = {"deadline_ms": 3000}


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def serve(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to give up."""
    command = [sys.executable, "-m", "service.cli.main", "serve"]
    return subprocess.run(
        [*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_servers_life(tmp_path: Path, model_folder: Path) -> None:
    http_port, grpc_port = free_port(), free_port()
    ports = ("--http-port", str(http_port), "--grpc-port", str(grpc_port))
    with (
        ServerProcess(tmp_path / "log", *ports, "--models", str(model_folder)) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=60) as rest,
        PlannerClient(f"127.0.0.1:{grpc_port}") as rpc,
    ):
        assert is_seen_loading(server, rest)
        server.wait_ready()
        assert server.ready["event"] == "ready"
        assert (server.ready["http_port"], server.ready["grpc_port"]) == (http_port, grpc_port)
        assert server.ready["models"] == [model_folder.name]
        assert rest.get("/readyz").status_code == 200
        assert rpc.encode([picture(0)]).latents

        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(rest.post("/plan", json=plan(solver=LONG, **UNTIL)))
        )
        asking.start()
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        time.sleep(0.1)
        ready = rest.get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        refused = rest.post("/plan", json=plan())
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert refused.headers["retry-after"]
        with pytest.raises(PlannerError) as caught:
            rpc.plan([picture(0)], picture(1))
        assert caught.value.status is grpc.StatusCode.UNAVAILABLE
        assert caught.value.code == "draining"
        assert caught.value.retry_after_s

        asking.join(60)
        assert server.process.wait(30) == 0, server.errors()
        assert [answer.status_code for answer in answers] == [200]
        assert answers[0].json()["status"] == "deadline"
        assert server.lines.get(timeout=5) == ""  # the ready line was the only one
        assert "Traceback" not in server.errors()


def is_seen_loading(server: ServerProcess, rest: httpx.Client) -> bool:
    """Whether the server answered before it was ready, and said so."""
    while not server.lines.qsize():
        with contextlib.suppress(httpx.TransportError):
            ready = rest.get("/readyz")
            refused = rest.post("/plan", json=plan())
            if refused.status_code == 503:
                assert rest.get("/healthz").status_code == 200
                assert refused.json()["code"] == ready.json()["code"] == "loading"
                assert int(refused.headers["retry-after"]) >= 1
                return True
        time.sleep(0.01)
    return False


def test_a_second_signal_ends_at_once(tmp_path: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder), "--host", "0.0.0.0")
    with ServerProcess(tmp_path / "log", *flags).wait_ready() as server:
        assert "without authentication" in server.errors()
        request = json.dumps(plan(solver=LONG))
        with socket.create_connection(("127.0.0.1", server.ready["http_port"])) as connection:
            head = "POST /plan HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(request)}\r\n\r\n{request}".encode())
            time.sleep(0.3)
            started = time.monotonic()
            server.signal(signal.SIGINT)
            time.sleep(0.1)
            server.signal(signal.SIGINT)
            assert server.process.wait(5) != 0
            assert time.monotonic() - started < 3


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_port_in_use(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        other = "--grpc-port" if flag == "--http-port" else "--http-port"
        result = serve(flag, port, other, "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_model() -> None:
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
        ("--redis-url", "localhost:6379"),
        ("--backend", "onnx"),
        ("--precision", "bfloat16"),
        ("--log-level", "loud"),
    ],
)
def test_bad_settings(flag: str, value: str) -> None:
    result = serve(flag, value)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert flag in result.stderr


def test_help_lists_every_setting() -> None:
    from service.settings import Settings

    text = serve("--help").stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"LEWM_{name.upper()}" in text
