"""Commands whose standard files are closed, full or not read end without a traceback."""

import os
import subprocess
import sys

import pytest

from tests.lewm_serve.support.server_process import ROOT
from tests.patience import PATIENCE_S

COMMANDS = ["--version", "models list", "models show two-room --json", "models verify two-room"]
LEWM = (sys.executable, "-m", "lewm_serve.cli.main")


def run(command: str, stdout: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LEWM, *command.split()],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_gone(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = run(command, writer)
    finally:
        os.close(writer)
    assert (process.returncode, process.stderr) == (1, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(command: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        process = run(command, full)
    finally:
        os.close(full)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("lewm")
    assert "No space left on device" in line


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_standard_file_that_is_closed(descriptor: int) -> None:
    shell = f"exec {' '.join(LEWM)} models list {descriptor}>&-"
    process = subprocess.run(
        ["sh", "-c", shell],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert ("two-room" in process.stdout) == (descriptor != 1)
