"""What the monitor adds to a plan, ordinary or with a fallback named."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.latent_health.requests import Requests, plan
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.health import LatentScores, Monitor
from lewm_serve.registry.registry import LoadedModel

BARE, ORDINARY, GUARDED = "without the monitor", "ordinary", "with a fallback named"
KINDS = (BARE, ORDINARY, GUARDED)
SERIES = 10

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What the monitor costs plans of one kind; medians in milliseconds.

    ``plan_ms`` is how long the plan took with the monitor, ``bare_ms`` without, and ``share`` what
    it is longer by. ``assess_ms`` is the monitor's own work, in whichever thread; ``predict_ms``
    went into predicting the newest frame, some of which a search after it is spared.
    """

    kind: str
    plan_ms: float
    bare_ms: float
    share: float
    assess_ms: float
    predict_ms: float
    runs: int


class Spent:
    """Seconds that a plan and parts of it took, in whichever thread."""

    def __init__(self) -> None:
        self.plan = self.assess = self.predict = 0.0

    def on(self, part: str, work: Callable[[], T]) -> T:
        """Do the work, and count it as that part."""
        began = time.perf_counter()
        result = work()
        setattr(self, part, getattr(self, part) + time.perf_counter() - began)
        return result


def cost(model: LoadedModel, asked: Requests, series: int) -> list[Cost]:
    """Plans with a full history by the model's own solver, and the monitor's work for them.

    A plan is the search, in a thread of its own as in a server, without decoding, encoding or any
    transport. The kinds take turns, a series of plans of one kind after another, each with a
    request of its own; the first of a series does not count.
    """
    monitor = Monitor(Metrics())
    monitor.watch(model)
    taken: dict[str, list[Spent]] = {kind: [] for kind in KINDS}
    with ThreadPoolExecutor(1) as engine:
        for number in range(len(KINDS) * series):
            kind = KINDS[number % len(KINDS)]
            for place in range(1 + SERIES):
                index = (number * (1 + SERIES) + place) % len(asked)
                shown = torch.cat([asked.latents[index], asked.latents[-1 - index, -1:]])
                one = Watched(model, monitor, kind, shown, asked.actions[index])
                spent = Spent()
                spent.on("plan", partial(one.run, engine, spent))
                if place > 0:
                    taken[kind].append(spent)
    bare_ms = _median([spent.plan for spent in taken[BARE]])
    return [_cost(kind, taken[kind], bare_ms) for kind in KINDS[1:]]


@dataclass(frozen=True)
class Watched:
    """One plan from the latents (H + 1, D) of frames and goal, as `lewm_serve.planner.planner` does."""

    model: LoadedModel
    monitor: Monitor
    kind: str
    shown: Tensor
    actions: Tensor

    def run(self, engine: ThreadPoolExecutor, spent: Spent) -> None:
        """Plan, and do for it what the monitor has to do."""
        scores: LatentScores | None = None
        if self.kind == GUARDED:
            scores = spent.on("assess", self._look)
            spent.on("assess", partial(self.monitor.is_anomalous, self.model, scores))
        surprise, expected = engine.submit(self._search, scores, spent).result()
        if self.kind == ORDINARY:
            scores = spent.on("assess", self._look)
        if scores is not None:
            spent.on("assess", partial(self._assess, scores, surprise, expected))

    def _search(
        self, scores: LatentScores | None, spent: Spent
    ) -> tuple[float | None, Tensor | None]:
        """As the engine does: the surprise that a guard saw, or else what was expected."""
        surprise: float | None = None
        if scores is not None:
            surprise = spent.on("assess", partial(self._guard, scores, self._expect(spent)))
        plan(self.model, self.shown[:-1], self.actions, self.shown[-1], 0)
        return surprise, self._expect(spent) if self.kind == ORDINARY else None

    def _expect(self, spent: Spent) -> Tensor:
        latents, actions = self.shown[None, :-1], self.actions[None]
        return spent.on("predict", lambda: self.model.backend.expect(latents, actions)[0])

    def _look(self) -> LatentScores:
        return self.monitor.score(self.model, self.shown, len(self.shown) - 1)

    def _guard(self, scores: LatentScores, expected: Tensor) -> float | None:
        surprise = scores.surprise(expected)
        self.monitor.is_anomalous(self.model, scores, surprise)
        return surprise

    def _assess(
        self, scores: LatentScores, surprise: float | None, expected: Tensor | None
    ) -> None:
        told = scores.surprise(expected) if surprise is None else surprise
        self.monitor.assess(self.model, scores, told)


def _cost(kind: str, taken: list[Spent], bare_ms: float) -> Cost:
    parts = ([getattr(one, part) for one in taken] for part in ("plan", "assess", "predict"))
    plan_ms, assess_ms, predict_ms = map(_median, parts)
    return Cost(kind, plan_ms, bare_ms, plan_ms / bare_ms - 1, assess_ms, predict_ms, len(taken))


def _median(seconds: list[float]) -> float:
    """In milliseconds."""
    return 1000 * statistics.median(seconds)
