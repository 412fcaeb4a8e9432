"""How long `lewm serve` takes to be ready, for the first time and for the second.

The first start finds caches of compiled code empty (a folder of its own stands in for the user's),
the second finds what the first one left. Files that the system has read before stay in memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import Report, at_most
from benchmarks.run import Run
from benchmarks.served import random_folder
from lewm_serve.cli.local_server import local_server

CACHES = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
FIRST_S, SECOND_S = 120.0, 15.0


def measure(run: Run) -> Report:
    """See the module."""
    figures = []
    for preset in ("edge",) if run.quick else ("edge", "paper"):
        with random_folder(preset) as folder, empty_caches():
            for start, bound in (("first", FIRST_S), ("second", SECOND_S)):
                run.say(f"{preset}: {start} start")
                began = time.perf_counter()
                with local_server(folder):
                    seconds = time.perf_counter() - began
                figures.append(at_most(f"{start} start, size {preset}", seconds, "s", bound))
    return Report(tuple(figures))


@contextmanager
def empty_caches() -> Iterator[None]:
    """Processes started meanwhile keep what they compile in a new folder."""
    before = {name: os.environ.get(name) for name in CACHES}
    with tempfile.TemporaryDirectory(prefix="lewm-caches-") as folder:
        for name in CACHES:
            os.environ[name] = str(Path(folder) / name.lower())
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
