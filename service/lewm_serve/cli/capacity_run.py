"""How many robots one server on this machine carries, and what limits it first."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lewm_models.card import SolverConfig
from lewm_models.checkpoint import Checkpoint
from lewm_serve.cli.local_server import LocalServer
from lewm_serve.cli.process_usage import (
    energy_j,
    joules_between,
    machine_s,
    process_tree,
    processor_s,
)
from lewm_serve.cli.robot_load import LoadProcess, Outcome, RobotLoad, encode_picture
from lewm_serve.solvers import SOLVERS

IN_TIME_SHARE = 0.99
"""A server carries robots if this share of their plans is complete and in time."""

FIRST_SHARE, STEP = 0.9, 1.12
"""The first number of robots asks for this share of the plans that robots without a pace got. The
next numbers are larger or smaller by this factor."""

MAX_TRIALS = 8

UNPACED_ROBOTS = 8
WARM_UP_S = 1.0

PICTURES = 8

BUSY_SHARE = 0.85
"""A thread or all cores that work for this share of the time are busy: what waits for them waits
ever longer."""

OTHER_WORK_SHARE = 0.2
"""More than this share of the cores for other work makes the measurements useless."""

SECONDS_AN_HOUR = 3600

LIMITS = {
    "one plan": "a plan alone takes longer than its deadline",
    "other work": "processes other than the server and its load keep the cores busy",
    "cores": "all cores are busy; a part of their work is the load itself, which also runs here",
    "engine": "the engine's processes are busy",
    "protocols": "the process that speaks the protocols is busy",
    "load": "the load itself cannot send more",
    "bursts": "nothing is busy all the time, but plans that come at once end too late",
}
"""What limits first, by its short name."""


@dataclass(frozen=True)
class Usage:
    """What a load used, in seconds of processor time for each second.

    Attributes:
        engine: the engine's processes.
        protocols: the first process, which speaks the protocols and decodes images.
        load: the process that puts on the load.
        others: all other processes of the machine.
        energy_j: joules that the machine used for a plan; None if they are not counted.
    """

    engine: float
    protocols: float
    load: float
    others: float
    energy_j: float | None


@dataclass(frozen=True)
class Capacity:
    """What one server carries with one solver at one rate.

    Attributes:
        solver: the solver's name.
        rate_hz: plans a second of a robot.
        robots: how many robots of this rate the server carries: the largest number tried of which
            `IN_TIME_SHARE` of the plans were complete and in time; 0 if not even one was.
        tried: the smallest number tried that was too large; None if none was.
        p50_s: the median latency of a plan with this many robots; None without robots.
        p99_s: the 99th percentile.
        limit: what limits first, a name in `LIMITS`.
        usage: what these robots used, or what the smallest number tried used if ``robots`` is 0.
        processor_s: seconds of processor time of the server for a plan.
    """

    solver: str
    rate_hz: float
    robots: int
    tried: int | None
    p50_s: float | None
    p99_s: float | None
    limit: str
    usage: Usage
    processor_s: float

    @property
    def plans_per_s(self) -> float:
        """Plans a second of all robots."""
        return self.robots * self.rate_hz


@dataclass(frozen=True)
class SolverSpeed:
    """How fast plans are.

    Attributes:
        solver: the solver's name.
        settings: the settings with which it planned.
        candidates: the candidates of a plan.
        alone_p50_s: the median seconds of a plan of one robot, from the call to the answer.
        alone_p99_s: the 99th percentile.
        plans_per_s: plans a second of `UNPACED_ROBOTS` robots that always wait for one.
    """

    solver: str
    settings: dict[str, Any]
    candidates: int
    alone_p50_s: float
    alone_p99_s: float
    plans_per_s: float


@dataclass(frozen=True)
class Report:
    """What was measured on this machine.

    Attributes:
        cores: the cores that this process may use.
        peak_memory_mib: the most memory of the server's processes.
        speeds: one for each solver.
        capacities: one for each solver and rate.
    """

    model: str
    cores: int
    image_size: tuple[int, int]
    peak_memory_mib: int
    speeds: tuple[SolverSpeed, ...]
    capacities: tuple[Capacity, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def pictures_of(checkpoint: Checkpoint, size: tuple[int, int] | None) -> tuple[bytes, ...]:
    """JPEG files of what the model typically sees, of a camera's size (width, height).

    A model folder without frames gets noise, which takes longer to decode than a photograph.
    """
    image_size = checkpoint.card.config.image_size
    if checkpoint.frames is not None:
        pictures = list(checkpoint.frames[:PICTURES].numpy())
    else:
        shape = (PICTURES, image_size, image_size, 3)
        pictures = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    if size is not None:
        pictures = [np.asarray(Image.fromarray(picture).resize(size)) for picture in pictures]
    return tuple(encode_picture(picture, "JPEG") for picture in pictures)


def measure_capacity(
    server: LocalServer,
    process: LoadProcess,
    *,
    solver: SolverConfig,
    images: Sequence[bytes],
    solvers: Sequence[str],
    rates_hz: Sequence[float],
    deadline_s: float | None,
    seconds: float,
    progress: Callable[[str], None],
) -> tuple[list[SolverSpeed], list[Capacity]]:
    """Measure every solver at every rate.

    Args:
        server: the server.
        process: what puts on the load.
        solver: the card's settings, which all solvers use.
        images: JPEG files that the robots send.
        solvers: the names of the solvers.
        rates_hz: plans a second of a robot.
        deadline_s: when a plan has to arrive; None: before the robot's next one is due.
        seconds: how long each load is measured.
        progress: called with what comes next, in words.

    Raises:
        RuntimeError: the server does not plan.
    """
    speeds, capacities = [], []
    for name in solvers:
        settings = None if name == solver.name else {"name": name}
        load = RobotLoad(server.target, tuple(images), settings)
        progress(f"{name}: plans of one robot")
        process.run(load.unpaced, 1, WARM_UP_S)
        alone = _require_plans(process.run(load.unpaced, 1, seconds))
        progress(f"{name}: plans of {UNPACED_ROBOTS} robots without a pace")
        crowd = _require_plans(process.run(load.unpaced, UNPACED_ROBOTS, seconds))
        speed = SolverSpeed(
            solver=name,
            settings=asdict(solver) | {"name": name},
            candidates=sum(SOLVERS[name].candidates_per_ask(solver)),
            alone_p50_s=float(np.quantile(alone.latencies_s, 0.5)),
            alone_p99_s=float(np.quantile(alone.latencies_s, 0.99)),
            plans_per_s=len(crowd.latencies_s) / crowd.seconds,
        )
        speeds.append(speed)
        for rate_hz in rates_hz:
            trials = Trials(server, process, load, rate_hz, deadline_s or 1 / rate_hz, seconds)
            capacities.append(trials.search(speed, progress))
    return speeds, capacities


def _require_plans(outcome: Outcome) -> Outcome:
    if not outcome.latencies_s:
        raise RuntimeError(f"the server made no plan: {outcome.error}")
    return outcome


class Trial(NamedTuple):
    """A load of some robots: what became of their plans, and what it used."""

    robots: int
    outcome: Outcome
    usage: Usage


class Trials:
    """Loads of one solver and rate with different numbers of robots."""

    def __init__(
        self,
        server: LocalServer,
        process: LoadProcess,
        load: RobotLoad,
        rate_hz: float,
        deadline_s: float,
        seconds: float,
    ) -> None:
        self._server = server
        self._process = process
        self._load = load
        self._rate_hz = rate_hz
        self._deadline_s = deadline_s
        self._seconds = seconds

    def search(self, speed: SolverSpeed, progress: Callable[[str], None]) -> Capacity:
        """Find the largest number of robots that the server carries, to within `STEP`."""
        robots = max(1, int(FIRST_SHARE * speed.plans_per_s / self._rate_hz))
        carried: Trial | None = None
        refused: Trial | None = None
        for _ in range(MAX_TRIALS):
            progress(f"{speed.solver}: {robots} robots at {self._rate_hz:g} Hz")
            trial = Trial(robots, *self._try(robots))
            if trial.outcome.in_time_share >= IN_TIME_SHARE:
                carried = trial
                following = max(robots + 1, int(robots * STEP))
            else:
                refused = trial
                following = min(robots - 1, math.ceil(robots / STEP))
            if (carried and refused) or following == 0:
                break
            robots = following
        return self._capacity(speed, carried, refused)

    def _try(self, robots: int) -> tuple[Outcome, Usage]:
        before = self._used()
        before_j = energy_j()
        outcome = self._process.run(
            self._load.paced, robots, self._rate_hz, self._deadline_s, self._seconds
        )
        joules = joules_between(before_j, energy_j())
        engine, protocols, load, others = (
            (after - used) / outcome.seconds
            for used, after in zip(before, self._used(), strict=True)
        )
        joules_a_plan = None if joules is None else joules / max(1, outcome.answered)
        return outcome, Usage(engine, protocols, load, max(0.0, others), joules_a_plan)

    def _used(self) -> tuple[float, float, float, float]:
        """Seconds of processor time so far: engine, first process, load, and everything else."""
        first, *rest = process_tree(self._server.pid)
        ours = sum(map(processor_s, rest)), processor_s(first), processor_s(self._process.pid)
        return *ours, machine_s() - sum(ours)

    def _capacity(
        self, speed: SolverSpeed, carried: Trial | None, refused: Trial | None
    ) -> Capacity:
        limiting, shown = refused or carried, carried or refused
        assert limiting  # there was a trial
        assert shown
        usage = shown.usage
        plans_per_s = shown.robots * self._rate_hz
        if carried is None:
            plans_per_s = max(1, shown.outcome.answered) / shown.outcome.seconds
        latencies_s = carried.outcome.latencies_s if carried else ()
        return Capacity(
            solver=speed.solver,
            rate_hz=self._rate_hz,
            robots=carried.robots if carried else 0,
            tried=refused.robots if refused else None,
            p50_s=float(np.quantile(latencies_s, 0.5)) if latencies_s else None,
            p99_s=float(np.quantile(latencies_s, 0.99)) if latencies_s else None,
            limit=name_limit(
                limiting.usage,
                alone_p99_s=speed.alone_p99_s,
                deadline_s=self._deadline_s,
                cores=len(os.sched_getaffinity(0)),
            ),
            usage=usage,
            processor_s=(usage.engine + usage.protocols) / plans_per_s,
        )


def name_limit(usage: Usage, *, alone_p99_s: float, deadline_s: float, cores: int) -> str:
    """What keeps a server from carrying more robots: a name in `LIMITS`.

    Args:
        usage: what was used under a load that was too large.
        alone_p99_s: how long a plan takes without other robots.
        deadline_s: when it has to arrive.
        cores: the machine's cores.
    """
    if alone_p99_s > deadline_s:
        return "one plan"
    ours = usage.engine + usage.protocols + usage.load
    if ours + usage.others >= BUSY_SHARE * cores:
        return "other work" if usage.others > OTHER_WORK_SHARE * cores else "cores"
    busiest = max(("engine", "protocols", "load"), key=lambda name: float(getattr(usage, name)))
    return busiest if getattr(usage, busiest) >= BUSY_SHARE else "bursts"
