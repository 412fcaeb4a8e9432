"""The unit for systemd: systemd's own checker accepts it, and it agrees with the server."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lewm_serve.server import FLUSH_S
from lewm_serve.settings import Settings
from tests.deploy.fleet_settings import drain_lag_s

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "lewm-serve.service"
MAX_EXPOSURE = 20
"""Of `systemd-analyze security`, in tenths: 2.0 of 10, which it calls OK."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def values(name: str) -> list[str]:
    """The values that the unit gives a directive."""
    pairs = [line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line]
    return [pair[1] for pair in pairs if pair[0] == name]


def analyze(*arguments: str | Path) -> None:
    """Run systemd-analyze; it must find no fault."""
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    (command,) = values("ExecStart")
    program, *_ = command.split()
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(program, sys.executable))
    analyze("verify", "--man=no", unit)


@needs_systemd
def test_the_sandbox_is_tight() -> None:
    analyze("security", "--offline=true", "--no-pager", f"--threshold={MAX_EXPOSURE}", UNIT)


def test_a_stop_takes_longer_than_the_lag_and_the_grace_period() -> None:
    (timeout,) = values("TimeoutStopSec")
    assert float(timeout) > drain_lag_s() + Settings().grace_s + FLUSH_S
    (name,) = values("KillSignal")
    assert signal.Signals[name] == signal.SIGTERM
