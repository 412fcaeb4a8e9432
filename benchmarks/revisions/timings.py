"""Paired timings of two checkouts: plans over REST and gRPC, paper-size plans, time to ready.

The servers of both checkouts run at the same time, but only one of them works at a time. In each
round they take turns in random order, with the same requests. The two values of a round are a pair,
and the median ratio of the pairs has a 95 % interval by the bootstrap.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from benchmarks.clients import (
    RestClient,
    image_document,
    new_jpegs,
    new_pngs,
    photographs,
    two_room_pictures,
)
from benchmarks.comparison import median_ratio, median_ratio_interval
from benchmarks.processes import checkout_server, clean_environment, lewm_program
from benchmarks.report import Target
from lewm_client import PlannerClient
from lewm_serve.cli.local_server import LocalServer

OLD, NEW = "old", "new"
PLAN_TIMEOUT_S = 600.0
PAPER_SEARCH = {"name": "cem", "samples": 300, "iterations": 30, "elites": 30, "horizon": 5}
MAX_TIME_RATIO = Target("at most", 1.03)
MAX_READY_RATIO = Target("at most", 1.1)

ShowProgress = Callable[[str], None]
Plan = Callable[[bytes, bytes, int], object]
"""Plans from the image of a frame to that of a goal, with a seed."""


@dataclass(frozen=True)
class PairedTimes:
    """Seconds of the old and of the new checkout, a pair per round.

    ``target`` is that of the upper end of the interval of new / old.
    """

    what: str
    old: list[float]
    new: list[float]
    target: Target

    @property
    def ratio(self) -> float:
        """The median over the rounds of new / old."""
        return median_ratio(self.new, self.old)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the ratio."""
        return median_ratio_interval(self.new, self.old)

    @property
    def is_met(self) -> bool:
        """Whether the upper end of the interval keeps the target."""
        return self.target.is_met(self.interval[1])

    def to_json(self) -> dict[str, object]:
        """All values, the ratio, its interval, and whether the target is met."""
        results = {"ratio": self.ratio, "interval_95": self.interval, "met": self.is_met}
        return asdict(self) | results


def markdown_table(timings: Sequence[PairedTimes]) -> str:
    """One row per comparison."""
    rows = [
        "| | pairs | old | new | new ÷ old | 95 % interval | upper end | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for times in timings:
        low, high = times.interval
        cells = (
            times.what,
            str(len(times.old)),
            _milliseconds(times.old),
            _milliseconds(times.new),
            f"{times.ratio:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{times.target.kind} {times.target.bound:g}",
            "met" if times.is_met else "missed",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.4g} ms"


class RevisionClient:
    """The connections to the server of a checkout."""

    def __init__(self, server: LocalServer) -> None:
        self._rest = RestClient(server)
        self._grpc = PlannerClient(server.target)

    def describe(self) -> str:
        """The backend and the precision of the server's model."""
        (model,) = self._grpc.models()
        return f"{model.backend}, {model.precision}"

    def plan_by_rest(self, frame: bytes, goal: bytes, seed: int) -> None:
        """Plan over REST."""
        document = {
            "frames": [image_document(frame)],
            "goal": image_document(goal),
            "seed": seed,
        }
        self._rest.post("/plan", document)

    def plan_by_grpc(self, frame: bytes, goal: bytes, seed: int) -> None:
        """Plan over gRPC."""
        self._grpc.plan([frame], goal, seed=seed, timeout_s=PLAN_TIMEOUT_S)

    def plan_paper_search(self, frame: bytes, goal: bytes, seed: int) -> None:
        """Plan over gRPC, by the search of the paper."""
        self._grpc.plan([frame], goal, seed=seed, solver=PAPER_SEARCH, timeout_s=PLAN_TIMEOUT_S)


@contextmanager
def both_servers(
    checkouts: Mapping[str, Path], flags: Sequence[str], show_progress: ShowProgress
) -> Iterator[dict[str, RevisionClient]]:
    """Servers of both checkouts with the same flags, for the duration of the block."""
    with ExitStack() as stack:
        clients = {}
        for revision, checkout in checkouts.items():
            server = stack.enter_context(checkout_server(checkout, flags))
            clients[revision] = RevisionClient(server)
            show_progress(f"{revision}: {clients[revision].describe()}; flags {' '.join(flags)}")
        yield clients


def alternate(
    measure: Mapping[str, Callable[[int], float]], rounds: int, order: random.Random
) -> dict[str, list[float]]:
    """Measure both revisions in each round, in random order.

    ``measure`` returns the value of a revision in a round of this number. Round 0 is not counted.
    """
    values: dict[str, list[float]] = {revision: [] for revision in measure}
    for number in range(rounds + 1):
        for revision in order.sample(list(measure), len(measure)):
            value = measure[revision](number)
            if number:
                values[revision].append(value)
    return values


def measure_latency(
    checkouts: Mapping[str, Path],
    *,
    rounds: int,
    requests: int,
    flags: Sequence[str],
    order: random.Random,
    show_progress: ShowProgress,
) -> list[PairedTimes]:
    """The p50 of blocks of plans of the embedded model, over REST and over gRPC.

    Every request has two new images: JPEG in even rounds, PNG in odd ones.
    """
    jpegs, pngs = new_jpegs(two_room_pictures()), new_pngs(two_room_pictures())
    timings = []
    with both_servers(checkouts, ["--threads", "1", *flags], show_progress) as clients:
        for what, plan in (
            ("/plan over REST, p50", RevisionClient.plan_by_rest),
            ("/plan over gRPC, p50", RevisionClient.plan_by_grpc),
        ):
            show_progress(what)
            blocks = [
                list(islice(pngs if number % 2 else jpegs, 2 * requests))
                for number in range(rounds + 1)
            ]
            values = alternate(
                {
                    revision: _block_timer(partial(plan, client), blocks)
                    for revision, client in clients.items()
                },
                rounds,
                order,
            )
            timings.append(PairedTimes(what, values[OLD], values[NEW], target=MAX_TIME_RATIO))
    return timings


def measure_plan_speed(
    checkouts: Mapping[str, Path],
    *,
    rounds: int,
    flags: Sequence[str],
    order: random.Random,
    show_progress: ShowProgress,
) -> list[PairedTimes]:
    """The time of one plan of a paper-size model over gRPC, on all cores."""
    what = "paper-size plan over gRPC"
    images = new_jpegs(photographs())
    blocks = [list(islice(images, 2)) for _ in range(rounds + 1)]
    with tempfile.TemporaryDirectory(prefix="lewm-revisions-") as folder:
        model = Path(folder) / "paper"
        # A folder that the old checkout wrote must load in the new one too.
        program = str(lewm_program(checkouts[OLD]))
        command = [program, "models", "init", str(model), "--preset", "paper"]
        subprocess.run(
            command, check=True, cwd=folder, env=clean_environment(), stdout=subprocess.DEVNULL
        )
        threads = str(len(os.sched_getaffinity(0)))
        all_flags = ["--models", str(model), "--threads", threads, *flags]
        with both_servers(checkouts, all_flags, show_progress) as clients:
            show_progress(what)
            values = alternate(
                {
                    revision: _block_timer(client.plan_paper_search, blocks)
                    for revision, client in clients.items()
                },
                rounds,
                order,
            )
    return [PairedTimes(what, values[OLD], values[NEW], target=MAX_TIME_RATIO)]


def measure_ready(
    checkouts: Mapping[str, Path],
    *,
    rounds: int,
    flags: Sequence[str],
    order: random.Random,
    show_progress: ShowProgress,
) -> list[PairedTimes]:
    """The time from the start of `lewm serve` to its ready line, with the embedded model.

    The uncounted first round compiles what a checkout compiles at its first start.
    """
    what = "time to ready"

    def timer(checkout: Path) -> Callable[[int], float]:
        def time_start(_round: int) -> float:
            start = time.perf_counter()
            with checkout_server(checkout, flags):
                return time.perf_counter() - start

        return time_start

    show_progress(what)
    timers = {revision: timer(checkout) for revision, checkout in checkouts.items()}
    values = alternate(timers, rounds, order)
    return [PairedTimes(what, values[OLD], values[NEW], target=MAX_READY_RATIO)]


def _block_timer(plan: Plan, blocks: Sequence[Sequence[bytes]]) -> Callable[[int], float]:
    """Times the plans of a round: p50 in seconds. A block holds a frame and a goal per plan."""

    def time_block(number: int) -> float:
        images = blocks[number]
        seconds = []
        for index in range(0, len(images), 2):
            start = time.perf_counter()
            plan(images[index], images[index + 1], index)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    return time_block
