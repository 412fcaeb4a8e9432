"""Real loads on a real server."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import loadtests.soak  # noqa: F401
from loadtests.__main__ import app
from loadtests.load import run_load, running_load
from loadtests.server_metrics import increases, scrape
from loadtests.spec import LoadSpec
from tests.lewm_serve.support.protection import Protection
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import wait_until

DEADLINE_MS = 60_000.0
"""No plan is later on any machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("load") / "log") as process:
        yield process.wait_ready()


def spec_of(server: ServerProcess, **changes: float) -> LoadSpec:
    fields = {
        "http": f"127.0.0.1:{server.http_port}",
        "grpc": server.target,
        "robots": 4,
        "robot_hz": 20.0,
        "deadline_ms": DEADLINE_MS,
    }
    return LoadSpec(**fields | changes)  # type: ignore[arg-type]


def plans_answered(server: ServerProcess) -> float:
    return sum(
        server.metric(f'lewm_requests_total{{code="ok",endpoint="plan",protocol="{protocol}"}}')
        for protocol in ("rest", "grpc")
    )


def test_a_load_of_all_kinds_ends_with_its_last_request(server: ServerProcess) -> None:
    before = scrape(server.url)
    result = run_load(spec_of(server, requests=150, seconds=300))
    assert [call for call in result.calls if not call.is_expected] == []
    assert len(result.calls) == 150
    kinds = Counter(call.kind for call in result.calls)
    assert set(kinds) >= {
        *(f"rest {name}" for name in ("plan", "bad request", "client leaves", "slow reader")),
        *(f"grpc {name}" for name in ("plan", "bad request", "client leaves")),
        *(f"{protocol} plan, open loop" for protocol in ("rest", "grpc")),
    }
    assert all(call.late_ms == 0 for call in result.calls if "open loop" not in call.kind)
    # Clients and server count the same plans.
    answered = {
        dict(labels)["protocol"]: value
        for (name, labels), value in increases(before, scrape(server.url)).items()
        if name == "lewm_requests_total"
        and (dict(labels)["endpoint"], dict(labels)["code"]) == ("plan", "ok")
    }
    for protocol in ("rest", "grpc"):
        plans = kinds[f"{protocol} plan"] + kinds[f"{protocol} plan, open loop"]
        # A client that leaves may have its answer before.
        left = kinds[f"{protocol} client leaves"]
        assert plans <= answered[protocol] <= plans + left


def test_the_command_ends_in_time_and_reports(server: ServerProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests", "--grpc", server.target, "--seconds", "2"]
    command += ["--deadline-ms", str(DEADLINE_MS), "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("no call failed: ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["load"]["slow_readers"] == 0
    assert "server" not in report  # without the address of HTTP
    assert {kind["kind"].split()[0] for kind in report["kinds"]} == {"grpc"}


def test_a_server_with_keys_and_certificates_of_clients(tmp_path: Path) -> None:
    protection = Protection.in_folder(tmp_path)
    with ServerProcess(tmp_path / "log", *protection.server_flags).wait_ready() as server:
        command = [sys.executable, "-m", "loadtests", "--grpc", server.target]
        command += ["--http", f"127.0.0.1:{server.http_port}", "--requests", "150"]
        command += ["--seconds", "300", "--deadline-ms", str(DEADLINE_MS)]
        command += [*protection.tls_options, "--output", str(tmp_path)]
        without_key = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        command += protection.key_options
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        log = server.errors()
    assert without_key.returncode == 2
    assert "401" in without_key.stderr
    assert run.returncode == 0, run.stderr + (tmp_path / "report.md").read_text()
    report = json.loads((tmp_path / "report.json").read_text())
    assert {kind["kind"].split()[0] for kind in report["kinds"]} == {"rest", "grpc"}
    assert report["server"]
    written = run.stdout + run.stderr + log + (tmp_path / "report.json").read_text()
    assert protection.api_key not in written


def test_a_server_that_dies_fails_calls(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log").wait_ready() as dying:
        answered = plans_answered(dying)
        with running_load(spec_of(dying, requests=200, seconds=60)) as load:
            wait_until(lambda: plans_answered(dying) > answered + 5)
            dying.process.kill()
            failures = load.wait().failures
    codes = {(call.kind, call.code) for call in failures}
    assert codes >= {("rest plan", "connection_lost"), ("grpc plan", "unavailable")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--http", "nowhere"], "--http: expected HOST:PORT, got 'nowhere'"),
        (["--http", "127.0.0.1:9", "--robots", "501"], "--robots: expected 0 to 500, got 501"),
        (["--http", "127.0.0.1:9"], "Connection refused"),
        (["--http", "127.0.0.1:9", "--tls-key", "k"], "expected --tls-cert and --tls-key together"),
        (
            ["--http", "127.0.0.1:9", "--tls-cert", "c", "--tls-key", "k"],
            "--tls-cert: expected --tls-ca too",
        ),
        (["--http", "127.0.0.1:9", "--api-key-file", __file__], "expected the key alone"),
        (["--http", "127.0.0.1:9", "--tls-ca", "/none/ca.pem"], "No such file or directory"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_only_the_process_of_the_load_uses_gevent() -> None:
    assert {"loadtests.__main__", "loadtests.soak"} <= set(sys.modules)
    assert "gevent" not in sys.modules
