"""The machine, and the software, that figures are of."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")
"""Features of a processor that decide how fast its matrix products are."""

PACKAGES = ("torch", "onnxruntime", "numpy", "grpcio")
RESULTS = ":(exclude)benchmarks/*.json"
"""Written by the benchmarks themselves, so no change of what is measured."""


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPU, versions and revision; None for what cannot be known."""
    processor = _processor()
    return {
        "processor": processor.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in _features(processor)],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "revision": _revision(),
    }


def summary(machine: dict[str, Any]) -> str:
    """A line for people."""
    flags = " ".join(machine["flags"]) or "no known vector units"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    return f"{machine['processor']}, {machine['cores']} cores ({flags}){gpu}; {versions}"


def _processor() -> dict[str, str]:
    """What Linux says of the first core."""
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
    """The git revision, with a mark where the tree differs from it."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    if revision is None:
        return None
    return revision + ("-changed" if _git("status", "--porcelain", "--", ".", RESULTS) else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
