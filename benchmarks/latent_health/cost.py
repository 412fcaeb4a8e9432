"""How much longer a plan takes because its frames' health is assessed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from benchmarks.in_process import SearchLoop, predict_newest
from benchmarks.latent_health.requests import Requests
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.health import LatentScores, Monitor
from lewm_serve.registry.registry import LoadedModel

NO_MONITOR, ORDINARY, WITH_FALLBACK = "without the monitor", "ordinary", "with a fallback named"
PLAN_KINDS = (NO_MONITOR, ORDINARY, WITH_FALLBACK)
PLANS_PER_SERIES = 10

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Cost:
    """What the monitor costs plans of one kind; medians in milliseconds.

    Attributes:
        kind: the kind of plan.
        plan_ms: how long a plan takes with the monitor.
        bare_ms: how long it takes without.
        share: by what share of ``bare_ms`` it takes longer.
        assess_ms: the work of the monitor itself, in whichever thread.
        predict_ms: the one-step prediction of the newest frame. A search after it is shorter,
            because it uses parts of the prediction.
        runs: the number of plans.
    """

    kind: str
    plan_ms: float
    bare_ms: float
    share: float
    assess_ms: float
    predict_ms: float
    runs: int


class Durations:
    """Seconds of one plan and of its parts, in whichever thread they ran."""

    def __init__(self) -> None:
        self.seconds = {"plan": 0.0, "assess": 0.0, "predict": 0.0}

    def measure(
        self, part: Literal["plan", "assess", "predict"], work: Callable[[], ResultT]
    ) -> ResultT:
        """Do the work and add its duration to the part."""
        start = time.perf_counter()
        result = work()
        self.seconds[part] += time.perf_counter() - start
        return result


def measure_cost(model: LoadedModel, requests: Requests, series: int) -> list[Cost]:
    """The cost for plans without and with a fallback, each from a full history of frames.

    A plan is the search by the model's own solver, in a thread of its own as in a server, without
    decoding, encoding and transport. The kinds take turns, with a series of plans each, every plan
    from another request. The first plan of a series is not counted.
    """
    monitor = Monitor(Metrics())
    monitor.watch([model])
    durations: dict[str, list[Durations]] = {kind: [] for kind in PLAN_KINDS}
    with ThreadPoolExecutor(1) as engine:
        for number in range(len(PLAN_KINDS) * series):
            kind = PLAN_KINDS[number % len(PLAN_KINDS)]
            for place in range(1 + PLANS_PER_SERIES):
                index = (number * (1 + PLANS_PER_SERIES) + place) % len(requests)
                plan = MonitoredPlan(
                    model,
                    monitor,
                    kind=kind,
                    latents=requests.latents[index],
                    goal=requests.latents[-1 - index, -1],
                    past_actions=requests.actions[index],
                )
                plan.durations.measure("plan", partial(plan.run, engine))
                if place > 0:
                    durations[kind].append(plan.durations)
    bare_ms = _median_ms(durations[NO_MONITOR], "plan")
    return [_cost(kind, durations[kind], bare_ms) for kind in PLAN_KINDS[1:]]


class MonitoredPlan:
    """One plan, with the calls of the monitor that `lewm_serve.planner.planner` makes for it.

    Args:
        model: the model.
        monitor: the monitor.
        kind: one of `PLAN_KINDS`.
        latents: the context latents (H, D).
        goal: the goal's latent (D,).
        past_actions: the action blocks (H − 1, A) between the frames.
    """

    def __init__(
        self,
        model: LoadedModel,
        monitor: Monitor,
        *,
        kind: str,
        latents: Tensor,
        goal: Tensor,
        past_actions: Tensor,
    ) -> None:
        self.durations = Durations()
        self._model = model
        self._monitor = monitor
        self._kind = kind
        self._latents = latents
        self._goal = goal
        self._latents_and_goal = torch.cat([latents, goal[None]])
        self._past_actions = past_actions

    def run(self, engine: ThreadPoolExecutor) -> None:
        """Plan. The search runs in the engine's thread."""
        scores: LatentScores | None = None
        if self._kind == WITH_FALLBACK:
            scores = self.durations.measure("assess", self._score)
        surprise = engine.submit(self._search).result()
        if self._kind == ORDINARY:
            scores = self.durations.measure("assess", self._score)
        if scores is not None:
            assess = partial(self._monitor.record, self._model, scores, surprise=surprise)
            self.durations.measure("assess", assess)

    def _search(self) -> float | None:
        """Search, and return the surprise. A request with a fallback needs it before."""
        surprise = self._surprise() if self._kind == WITH_FALLBACK else None
        search = SearchLoop(
            self._model,
            self._model.card.solver,
            latents=self._latents,
            goal=self._goal,
            past_actions=self._past_actions,
        )
        search.run()
        return self._surprise() if self._kind == ORDINARY else surprise

    def _surprise(self) -> float:
        predict = partial(
            predict_newest, self._model, self._latents[None], self._past_actions[None]
        )
        (predicted,) = self.durations.measure("predict", predict)
        return self.durations.measure("assess", partial(surprise_of, self._latents, predicted))

    def _score(self) -> LatentScores:
        return self._monitor.score(self._model, self._latents_and_goal, len(self._latents))


def surprise_of(latents: Tensor, predicted: Tensor) -> float:
    """The distance of the newest of latents (H, D) from its one-step prediction (D,)."""
    distance: float = torch.linalg.vector_norm(latents[-1] - predicted).item()
    return distance


def _cost(kind: str, durations: list[Durations], bare_ms: float) -> Cost:
    plan_ms = _median_ms(durations, "plan")
    return Cost(
        kind=kind,
        plan_ms=plan_ms,
        bare_ms=bare_ms,
        share=plan_ms / bare_ms - 1,
        assess_ms=_median_ms(durations, "assess"),
        predict_ms=_median_ms(durations, "predict"),
        runs=len(durations),
    )


def _median_ms(durations: list[Durations], part: str) -> float:
    return 1000 * statistics.median(one.seconds[part] for one in durations)
