"""What ONNX Runtime's own profiler says of the operations of a session."""

from __future__ import annotations

import gc
import importlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch


def profile_sessions(make: Callable[[], Callable[[], object]]) -> Counter[str]:
    """Microseconds in each kind of node while what was made is called.

    ``make`` makes sessions and gives what runs them; profiling is an option of a session when it
    is made, and the profile is written when it ends.
    """
    with tempfile.TemporaryDirectory() as name:
        with _profiled(Path(name)):
            work = make()
            work()
            del work
            gc.collect()
        files = sorted(Path(name).glob("*.json"))
        return sum((_microseconds(file) for file in files), Counter())


@contextmanager
def _profiled(folder: Path) -> Iterator[None]:
    """Sessions made meanwhile write profiles into the folder."""
    onnxruntime = importlib.import_module("onnxruntime")
    plain = onnxruntime.SessionOptions
    made = 0

    def options() -> object:
        nonlocal made
        made += 1
        profiled = plain()
        profiled.enable_profiling = True
        profiled.profile_file_prefix = str(folder / f"session-{made}")
        return profiled

    with patch.object(onnxruntime, "SessionOptions", options):
        yield


def _microseconds(file: Path) -> Counter[str]:
    """By type of node."""
    kinds: Counter[str] = Counter()
    for event in json.loads(file.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            kinds[event["args"]["op_name"]] += event["dur"]
    return kinds
