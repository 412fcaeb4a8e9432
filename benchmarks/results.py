"""Results on disk: one JSON file per benchmark, with a description of the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Measurement, Report

ROOT = Path(__file__).parents[1]

MATRIX_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
)
"""Processor features that decide how fast matrix products are."""

REPORTED_PACKAGES = ("torch", "onnxruntime", "numpy", "grpcio")

SIGNIFICANT_DIGITS = 5

EXCLUDE_RESULT_FILES = ":(exclude)benchmarks/*.json"
"""A git pathspec without the files that the benchmarks write, because a change of these files does
not change what is measured."""


@dataclass(frozen=True)
class Result:
    """The report of one benchmark, with its time, its duration and its machine.

    ``machine`` is what `describe_machine` returned.
    """

    benchmark: str
    taken: str
    quick: bool
    seconds: float
    machine: dict[str, Any]
    report: Report

    def write(self, folder: Path) -> Path:
        """Write it to ``<benchmark>.json`` in a folder and return the path."""
        path = folder / f"{self.benchmark}.json"
        values = {
            "benchmark": self.benchmark,
            "taken": self.taken,
            "quick": self.quick,
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            **self.report.to_json(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_round(values), indent=2, ensure_ascii=False) + "\n")
        return path


def now() -> str:
    """The time in UTC, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def read_results(folder: Path, names: Iterable[str]) -> list[Result]:
    """The results of these benchmarks that exist in a folder, in the order of the names."""
    paths = [folder / f"{name}.json" for name in names]
    return [_read(path) for path in paths if path.exists()]


def _read(path: Path) -> Result:
    values = json.loads(path.read_text())
    # The file calls the measurements "figures".
    measurements = tuple(map(Measurement.from_json, values.pop("figures")))
    report = Report(measurements, values.pop("details"))
    return Result(**values, report=report)


def _round(value: Any) -> Any:
    """Round all numbers to five significant digits; further digits are noise."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {str(key): _round(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_round(entry) for entry in value]
    return value


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPU, versions and git revision; None for what is unknown."""
    processor = _first_processor()
    return {
        "processor": processor.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [feature for feature in MATRIX_FEATURES if feature in _features(processor)],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in REPORTED_PACKAGES if (version := _version(name))},
        "revision": _revision(),
    }


def summarise_machine(machine: dict[str, Any]) -> str:
    """One line about a machine that `describe_machine` described."""
    features = " ".join(machine["flags"]) or "no known vector units"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    return f"{machine['processor']}, {machine['cores']} cores ({features}){gpu}; {versions}"


def _first_processor() -> dict[str, str]:
    """What Linux reports about the first core; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _features(processor: dict[str, str]) -> set[str]:
    return set((processor.get("flags") or processor.get("Features") or "").split())


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision, with the mark `-changed` if the working tree differs from it."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    if revision is None:
        return None
    return revision + (
        "-changed" if _git("status", "--porcelain", "--", ".", EXCLUDE_RESULT_FILES) else ""
    )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
