"""Results on disk: one JSON file for each benchmark."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.catalogue import BENCHMARKS
from benchmarks.report import Figure


@dataclass(frozen=True)
class Result:
    """One benchmark's figures, and of what, where and when they are."""

    benchmark: str
    taken: str
    quick: bool
    seconds: float
    machine: dict[str, Any]
    figures: tuple[Figure, ...]
    details: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """Write it as ``<benchmark>.json``."""
        path = folder / f"{self.benchmark}.json"
        values = {
            "benchmark": self.benchmark,
            "taken": self.taken,
            "quick": self.quick,
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "figures": [figure.to_json() for figure in self.figures],
            "details": self.details,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(values), indent=2, ensure_ascii=False) + "\n")
        return path


def now() -> str:
    """The moment, UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def read_results(folder: Path) -> list[Result]:
    """What is there, in the catalogue's order."""
    paths = [folder / f"{name}.json" for name in BENCHMARKS]
    return [_read(path) for path in paths if path.exists()]


def _read(path: Path) -> Result:
    values = json.loads(path.read_text())
    values["figures"] = tuple(map(Figure.from_json, values["figures"]))
    return Result(**values)


def _rounded(value: Any) -> Any:
    """Five significant digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {str(key): _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value
