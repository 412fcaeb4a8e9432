"""Signals: some stop the server, at any time of its life; others are ignored with a line."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.lewm_serve.support.endless_plan import endless_plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

IGNORED = ("SIGUSR1", "SIGUSR2")


def ignored_signals(server: ServerProcess) -> list[str]:
    """The signals that the log calls ignored."""
    return [line["signal"] for line in server.log_lines() if line["event"] == "signal ignored"]


def test_signals_that_are_ignored(tmp_path: Path, model_folder: Path) -> None:
    with ServerProcess(tmp_path / "log", "--models", str(model_folder)).wait_ready() as server:
        for name in IGNORED:
            server.signal(signal.Signals[name])
        wait_until(lambda: sorted(ignored_signals(server)) == sorted(IGNORED))
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        with endless_plan(server):  # they do not count as the second signal to stop, either
            server.signal(signal.SIGTERM)
            server.wait_draining()
            server.signal(signal.SIGHUP)  # it reads no models any more
            wait_until(lambda: "SIGHUP" in ignored_signals(server))
            assert server.process.poll() is None
        assert server.wait_stopped() == 0


EARLY = """
import os, signal, sys
from lewm_serve.cli.main import app
import lewm_serve.signals

signals = sys.argv.pop().split(",")
handle = lewm_serve.signals.handle_early_signals

def handle_and_send() -> None:
    handle()
    for name in signals:
        os.kill(os.getpid(), signal.Signals[name])

lewm_serve.signals.handle_early_signals = handle_and_send
app()
"""
"""`lewm` that gets signals after it has begun to import the server."""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_the_event_loop_runs(name: str) -> None:
    command = [sys.executable, "-c", EARLY, "serve", "--log-format", "json", f"SIGHUP,{name}"]
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (process.returncode, process.stdout) == (0, "")
    assert '"signal":"SIGHUP","event":"signal ignored"' in process.stderr
    assert f'"signal":"{name}","event":"stopped before the start"' in process.stderr
    assert "Traceback" not in process.stderr


RESOLVING = """
import asyncio, time
from lewm_serve.cli.main import app
from lewm_serve.transports import addresses

async def resolve(host):
    print("resolving", flush=True)
    await asyncio.to_thread(time.sleep, 600)

addresses.resolve = resolve
app()
"""


def test_a_signal_while_the_host_is_resolved() -> None:
    command = [sys.executable, "-c", RESOLVING, "serve", "--host", "slow.example"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "resolving\n"
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
