"""The sections of the benchmark, one after another, each within its budget of time."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.gpu import hardware, sections, throughput
from benchmarks.gpu.bench import Bench, Found
from benchmarks.report import Measurement, Report, RunOptions

TOTAL_S = 480.0
"""Seconds for all sections, with their warm-up."""

SMALL_BUDGET_S = 0.3
"""Seconds of each section with tiny shapes."""

GRACE_S = 15.0
"""A section that hangs is given up so long after the time for all sections."""

NOT_MEASURED = "not measured: this machine has no CUDA device"


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        budget_s: seconds that it may take, with its warm-up.
        measure: measures; it looks at `Bench.left_s`.
        expected: what it measures, with targets and without values.
    """

    budget_s: float
    measure: Callable[[Bench], Found]
    expected: tuple[Measurement, ...] = field(default=())


SECTIONS: dict[str, Section] = {
    "correctness": Section(60, sections.correctness, sections.CORRECTNESS_TARGETS),
    "one_plan": Section(60, throughput.one_plan, throughput.ONE_PLAN_TARGETS),
    "clients": Section(80, throughput.clients, throughput.CLIENTS_TARGETS),
    "deadlines": Section(30, throughput.deadlines, throughput.DEADLINE_TARGETS),
    "encode": Section(25, sections.encode),
    "embedded": Section(80, throughput.embedded),
    "dino_wm": Section(35, sections.dino_wm),
    "profile": Section(40, hardware.profile),
    "energy": Section(25, hardware.energy),
}


def measure(options: RunOptions) -> Report:
    """All sections; without a GPU, a report that says so."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        expected = [one for section in SECTIONS.values() for one in section.expected]
        return Report(tuple(replace(one, note=NOT_MEASURED) for one in expected))
    return run(options)


def run(
    options: RunOptions,
    *,
    limit_s: float = TOTAL_S,
    only: Sequence[str] | None = None,
    on_progress: Callable[[Report], None] = lambda _report: None,
) -> Report:
    """Run sections, and report after each of them.

    Args:
        options: the device, and whether shapes are tiny.
        limit_s: seconds for all. If a section hangs beyond them, the process ends with the report
            of the others.
        only: the sections to run; None: all.
        on_progress: called with what there is after each section.

    Raises:
        RuntimeError: the device is a GPU that does not exist.
    """
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device: received {options.device}, but there is no CUDA device")
    began = time.monotonic()
    bench = Bench(device, small=options.quick, show_progress=options.show_progress)
    found = Found([], {"device": _describe(device), "seconds": {}})
    watchdog = threading.Timer(limit_s + GRACE_S, _give_up, args=(found, bench, on_progress))
    watchdog.daemon = True
    watchdog.start()
    try:
        for name, section in SECTIONS.items():
            if only and name not in only:
                continue
            options.show_progress(name)
            section_began = time.monotonic()
            budget_s = SMALL_BUDGET_S if options.quick else section.budget_s
            bench.until = min(section_began + budget_s, began + limit_s)
            _run_section(name, section, bench, found)
            found.details["seconds"][name] = time.monotonic() - section_began
            on_progress(_report(found, bench))
    finally:
        watchdog.cancel()
        bench.close()
    return _report(found, bench)


def _run_section(name: str, section: Section, bench: Bench, found: Found) -> None:
    """Add what a section finds. If it fails, say why, and what it did not measure."""
    if bench.is_over:
        found.skip(name, section.expected, "not measured: the time was over")
        return
    try:
        part = section.measure(bench)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        found.details.setdefault("failures", {})[name] = traceback.format_exc()
        found.skip(name, section.expected, f"failed: {reason.splitlines()[0]}")
        bench.show_progress(f"{name} failed: {reason}")
        return
    found.measurements += part.measurements
    found.details[name] = part.details


def _report(found: Found, bench: Bench) -> Report:
    measurements = found.measurements
    if bench.device.type != "cuda" or bench.small:  # values that were only tried have no target
        note = f"tried on {bench.device}: not a result"
        measurements = [replace(one, target=None, note=one.note or note) for one in measurements]
    return Report(tuple(measurements), found.details)


def _give_up(found: Found, bench: Bench, on_progress: Callable[[Report], None]) -> None:
    found.details.setdefault("failures", {})["limit"] = "a section did not end in time"
    on_progress(_report(found, bench))
    os._exit(3)


def _describe(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": str(device)}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "triton": _triton_version(),
    }


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    version: str = triton.__version__
    return version
