"""A real browser without a screen, in which no name resolves."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.patience import PATIENCE_S

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
PAGE_TIME_MS = 20_000
"""The page's own time after which it is read. It passes faster than real time, but it does not pass
while the page waits for the network."""


FLAGS = (
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def find_program() -> str:
    """The browser that is installed."""
    program = next(filter(shutil.which, PROGRAMS), None)
    if program is None:
        pytest.fail(f"{PROGRAMS[0]} is missing: `make setup`, as root on Debian, installs it")
    return program


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser that a test clicks and types in.

    Meanwhile, the thread has an event loop, so tests with loops of their own cannot run.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which(find_program()), args=list(FLAGS)
        )
        yield browser
        browser.close()


def open_page(url: str) -> tuple[str, list[str]]:
    """The document of a page after its scripts have run, and what the console shows."""
    program = find_program()
    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.run(
            [
                program,
                *("--headless", *FLAGS),
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
