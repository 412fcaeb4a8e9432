"""A real browser without a screen, in which no name resolves."""

import shutil
import subprocess
import tempfile

import pytest

from tests.patience import PATIENCE_S

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
PAGE_TIME_MS = 20_000
"""The page's own time after which it is read. It passes faster than real time, but it does not pass
while the page waits for the network."""


def open_page(url: str) -> tuple[str, list[str]]:
    """The document of a page after its scripts have run, and what the console shows."""
    program = next(filter(shutil.which, PROGRAMS), None)
    if program is None:
        pytest.fail(f"{PROGRAMS[0]} is missing: `make setup`, as root on Debian, installs it")
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",  # which root cannot have
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--user-data-dir={profile}",
                "--enable-logging=stderr",
                f"--virtual-time-budget={PAGE_TIME_MS}",
                "--dump-dom",
                url,
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
    console = [line for line in process.stderr.splitlines() if ":CONSOLE" in line]
    return process.stdout, console
