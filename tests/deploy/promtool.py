"""Prometheus's own checker, and the alerts as they stand in their file."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
ALERTS = re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text())


def need(program: str) -> None:
    """Fail, saying what to install, where a program of Debian's `prometheus` is missing."""
    if shutil.which(program) is None:
        pytest.fail(f"{program} is missing: `make setup`, as root on Debian, installs it")


def promtool(*arguments: str) -> None:
    """Run promtool; it must find no fault."""
    need("promtool")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
