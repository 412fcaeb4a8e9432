"""What plans cost on this machine, measured through a server of its own, for `lewm pilot`."""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_client import PlannerClient, PlannerError
from lewm_models.card import ModelCard
from lewm_serve.cli.local_server import LocalServer, local_server
from lewm_serve.solvers import SOLVERS

WARM_UP_PLANS = 5
TIMEOUT_S = 120.0
MAX_SECONDS, MIN_PLANS = 60.0, 5
"""A slow solver makes fewer plans: as many as take this long, and at least some."""

DEADLINE_STEP_S = 0.005

RAPL = Path("/sys/class/powercap")
"""Where Linux counts the energy of Intel's and AMD's processors."""

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class SolverCost:
    """What the plans of one solver cost.

    Attributes:
        solver: its name.
        is_default: whether it is the card's, with the card's settings.
        p50_s: the median seconds of a plan, from the client's call to its answer, with a new frame.
        p99_s: the 99th percentile.
        processor_s: seconds of processor time of a plan, in all processes of the server.
        energy_j: joules of processors and NVIDIA devices during a plan, with whatever else they
            did; None where they are not counted.
        predictor_tokens: the latents that are predicted for a plan.
    """

    solver: str
    is_default: bool
    p50_s: float
    p99_s: float
    processor_s: float
    energy_j: float | None
    predictor_tokens: int


@dataclass(frozen=True)
class Machine:
    """What was measured on this machine.

    Attributes:
        cores: the cores that this process may use.
        encode_p50_s: the median seconds to encode one new frame.
        encode_p99_s: the 99th percentile.
        frame_tokens: the patches of a frame and one more, which the encoder sees.
        peak_memory_mib: the most memory of the server's processes.
        solvers: the default first.
        rate_hz: plans a second of a robot.
        robots_per_core: how many such robots take one core, by processor time.
        recommended_solver: the default, or the fastest one if the default is too slow.
        recommended_deadline_ms: twice its p99, or the time between two plans if that is less.
        notes: what could not be measured, one sentence each.
    """

    cores: int
    encode_p50_s: float
    encode_p99_s: float
    frame_tokens: int
    peak_memory_mib: int
    solvers: tuple[SolverCost, ...]
    rate_hz: float
    robots_per_core: float
    recommended_solver: str
    recommended_deadline_ms: float
    notes: tuple[str, ...]

    @property
    def recommended(self) -> SolverCost:
        """The costs of the recommended solver."""
        return next(cost for cost in self.solvers if cost.solver == self.recommended_solver)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_machine(
    folder: Path,
    card: ModelCard,
    frames: Sequence[Frames],
    *,
    rate_hz: float,
    plans: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Machine:
    """Serve a model here, and time its encodes and plans.

    Args:
        folder: the model's folder.
        card: its card.
        frames: recorded frames, at least two.
        rate_hz: plans a second of a robot.
        plans: how many plans of each solver are timed.
        progress: called after each solver with the number done and in all.

    Raises:
        LocalServerError: the server did not start.
        PlannerError: it made no plan with the default solver.
    """
    notes: list[str] = []
    names = [card.solver.name, *(name for name in SOLVERS if name != card.solver.name)]
    with local_server(folder) as server, PlannerClient(server.target) as client:
        numbered = _new_frames(frames)
        for _ in range(WARM_UP_PLANS):
            client.plan([next(numbered)], frames[-1], timeout_s=TIMEOUT_S)
        encodes = [
            _seconds(lambda: client.encode([next(numbered)], timeout_s=TIMEOUT_S))
            for _ in range(plans)
        ]
        costs = []
        for number, name in enumerate(names, 1):
            try:
                costs.append(_cost(server, client, card, name, numbered, frames[-1], plans))
            except PlannerError as error:
                if name == card.solver.name:
                    raise
                notes.append(f"{name} was not measured: {error}")
            progress(number, len(names))
        peak_memory_mib = sum(map(_peak_mib, _tree(server.pid)))
    default, *others = costs
    period_s = 1 / rate_hz
    chosen = default
    if default.p99_s > period_s:
        chosen = min([default, *others], key=lambda cost: cost.p99_s)
    step = 1000 * DEADLINE_STEP_S
    deadline_ms = math.ceil(2000 * chosen.p99_s / step) * step
    if default.energy_j is None:
        notes.append(
            f"The energy is not readable: {RAPL} has no counter that this user may read, and there "
            "is no NVIDIA device that counts it."
        )
    if chosen is not default:
        notes.append(f"The judgement is of {default.solver}, and not of {chosen.solver}.")
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        encode_p50_s=float(np.quantile(encodes, 0.5)),
        encode_p99_s=float(np.quantile(encodes, 0.99)),
        frame_tokens=(card.config.image_size // card.config.patch_size) ** 2 + 1,
        peak_memory_mib=peak_memory_mib,
        solvers=tuple(costs),
        rate_hz=rate_hz,
        robots_per_core=1 / (chosen.processor_s * rate_hz),
        recommended_solver=chosen.solver,
        recommended_deadline_ms=min(deadline_ms, 1000 * period_s),
        notes=tuple(notes),
    )


def _cost(
    server: LocalServer,
    client: PlannerClient,
    card: ModelCard,
    name: str,
    frames: Iterator[Frames],
    goal: Frames,
    plans: int,
) -> SolverCost:
    settings = None if name == card.solver.name else {"name": name}
    processor_s, energy_j = sum(map(_processor_s, _tree(server.pid))), _energy_j()
    seconds: list[float] = []
    while len(seconds) < plans and (len(seconds) < MIN_PLANS or sum(seconds) < MAX_SECONDS):
        seconds.append(
            _seconds(
                lambda: client.plan([next(frames)], goal, solver=settings, timeout_s=TIMEOUT_S)
            )
        )
    used_s = sum(map(_processor_s, _tree(server.pid))) - processor_s
    energy_after_j = _energy_j()
    candidates = sum(SOLVERS[name].candidates_per_ask(card.solver))
    return SolverCost(
        solver=name,
        is_default=settings is None,
        p50_s=float(np.quantile(seconds, 0.5)),
        p99_s=float(np.quantile(seconds, 0.99)),
        processor_s=max(used_s, 1e-6) / len(seconds),
        energy_j=_difference(energy_j, energy_after_j, len(seconds)),
        predictor_tokens=candidates * card.solver.horizon,
    )


def _new_frames(frames: Sequence[Frames]) -> Iterator[Frames]:
    """Recorded frames without end, each changed in one pixel, so that no cache holds it."""
    number = 0
    while True:
        frame = frames[number % len(frames)].copy()
        frame[0, 0] = (number >> 16 & 255, number >> 8 & 255, number & 255)
        yield frame
        number += 1


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _tree(pid: int) -> list[int]:
    """A process and those that descend from it."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(status.parent.name)] = int(fields[1])
    tree = [pid]
    for known in tree:
        tree += [child for child, parent in parents.items() if parent == known]
    return tree


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    return 0


def _difference(before_j: float | None, after_j: float | None, plans: int) -> float | None:
    """Joules a plan; None if they are not counted, or the counter began anew in between."""
    if before_j is None or after_j is None or after_j < before_j:
        return None
    return (after_j - before_j) / plans


def _energy_j() -> float | None:
    """Joules that processors and NVIDIA devices have used so far; None if neither is counted."""
    counted = [found for found in (_processors_j(), _devices_j()) if found is not None]
    return sum(counted) if counted else None


def _processors_j() -> float | None:
    """Joules of all processors, by RAPL."""
    counters = [
        zone / "energy_uj" for zone in RAPL.glob("intel-rapl:*") if zone.name.count(":") == 1
    ]
    try:
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except OSError:
        return None


def _devices_j() -> float | None:
    """Joules of all NVIDIA devices, by NVML's counter, which newer devices have."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    count, total = ctypes.c_uint(), 0.0
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0 or not count.value:
            return None
        for number in range(count.value):
            device, used_mj = ctypes.c_void_p(), ctypes.c_ulonglong()
            if (
                nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)) != 0
                or nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(used_mj)) != 0
            ):
                return None
            total += used_mj.value / 1e3
    finally:
        nvml.nvmlShutdown()
    return total
