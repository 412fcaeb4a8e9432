"""What the monitor adds to a plan, ordinary or with a fallback named."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from benchmarks.latent_health.requests import Requests, plan
from service.metrics import Metrics
from service.monitor.monitor import Monitor
from service.served import ServedModel

BARE, ORDINARY, GUARDED = "without the monitor", "ordinary", "with a fallback named"
KINDS = (BARE, ORDINARY, GUARDED)
WARM_UPS = 3


@dataclass(frozen=True)
class Cost:
    """What the monitor costs plans of one kind; medians in milliseconds.

    ``plan_ms`` is the search, whose roll-outs begin with the prediction that surprise needs;
    ``share`` all of the monitor's time over that of all the searches; ``added_ms`` how far the
    median of both together lies above that of a search with neither prediction nor monitor.
    """

    kind: str
    plan_ms: float
    assess_ms: float
    share: float
    added_ms: float
    runs: int


class Laps:
    """Seconds of the search and of the monitor, which take turns."""

    def __init__(self) -> None:
        self.plan = self.assess = 0.0
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def cost(model: ServedModel, asked: Requests, runs: int) -> list[Cost]:
    """Plans with a full history by the model's own solver, and the monitor's work for them.

    A plan is the search alone, without decoding, encoding or any transport. The kinds take turns at
    random, each with a request of its own, and after a plan that does not count: as in a server,
    the monitor comes to its work when others have had the processor's cache.
    """
    monitor = Monitor(Metrics())
    monitor.watch(model)
    chance = Random(0)
    taken: dict[str, list[Laps]] = {kind: [] for kind in KINDS}
    for turn in range(WARM_UPS + runs):
        for place, kind in enumerate(chance.sample(KINDS, len(KINDS))):
            index = turn * len(KINDS) + place
            shown = torch.cat([asked.latents[index], asked.latents[-1 - index, -1:]])
            actions = asked.actions[index]
            plan(model, asked.latents[index - 1], asked.actions[index - 1], shown[-1], index)
            taken[kind].append(_watched(model, monitor, kind, shown, actions, index))
    bare, *others = (taken[kind][WARM_UPS:] for kind in KINDS)
    without = _median([laps.plan for laps in bare])
    return [_cost(kind, laps, without) for kind, laps in zip(KINDS[1:], others, strict=True)]


def _watched(
    model: ServedModel, monitor: Monitor, kind: str, shown: Tensor, actions: Tensor, seed: int
) -> Laps:
    """One plan from the latents (H + 1, D) of frames and goal, in the order of `service.plans`."""
    latents, goal = shown[:-1], shown[-1]
    laps = Laps()
    if kind == BARE:
        plan(model, latents, actions, goal, seed)
        laps.plan += laps.lap()
        return laps
    scores = monitor.score(model, shown, len(latents))
    if kind == GUARDED:
        monitor.is_anomalous(model, scores)
    laps.assess += laps.lap()
    expected = model.backend.expect(latents[None], actions[None])[0]
    laps.plan += laps.lap()
    surprise: float | None = None
    if kind == GUARDED:
        surprise = scores.surprise(expected)
        monitor.is_anomalous(model, scores, surprise)
        laps.assess += laps.lap()
    plan(model, latents, actions, goal, seed)
    laps.plan += laps.lap()
    if surprise is None:
        surprise = scores.surprise(expected)
    monitor.assess(model, scores, surprise)
    laps.assess += laps.lap()
    return laps


def _cost(kind: str, taken: list[Laps], without: float) -> Cost:
    plans, assessing = [laps.plan for laps in taken], [laps.assess for laps in taken]
    added = _median([laps.plan + laps.assess for laps in taken]) - without
    share = sum(assessing) / sum(plans)
    return Cost(kind, _median(plans), _median(assessing), share, added, len(taken))


def _median(seconds: list[float]) -> float:
    """In milliseconds."""
    return 1000 * statistics.median(seconds)
