"""How long `lewm serve` takes until it is ready, at the first start and at the second.

A new folder stands in for the caches in which libraries keep compiled code, so the first start
finds them empty and the second finds what the first one left. Files that the system has read before
are still in memory.

Targets: at most 120 s for the first start and 15 s for the second. Half a minute.

    python -m benchmarks.startup [--quick]
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.in_process import random_model_folder
from benchmarks.report import Report, RunOptions, at_most, run_as_program
from lewm_serve.cli.local_server import local_server

CACHE_VARIABLES = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
MAX_READY_S = {"first": 120.0, "second": 15.0}


def measure(options: RunOptions) -> Report:
    """See the module."""
    measurements = []
    for preset in ("edge",) if options.quick else ("edge", "paper"):
        with random_model_folder(preset) as folder, empty_caches():
            for start, max_ready_s in MAX_READY_S.items():
                options.show_progress(f"{preset}: {start} start")
                began = time.perf_counter()
                with local_server(folder):
                    ready_s = time.perf_counter() - began
                measurements.append(
                    at_most(f"{start} start, size {preset}", ready_s, "s", bound=max_ready_s)
                )
    return Report(tuple(measurements))


@contextmanager
def empty_caches() -> Iterator[None]:
    """Processes that start during the block keep compiled code in a new folder."""
    before = {name: os.environ.get(name) for name in CACHE_VARIABLES}
    with tempfile.TemporaryDirectory(prefix="lewm-caches-") as folder:
        for name in CACHE_VARIABLES:
            os.environ[name] = str(Path(folder) / name.lower())
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


if __name__ == "__main__":
    run_as_program(measure, __doc__)
