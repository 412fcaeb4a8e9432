"""How many threads the model runs on: what was asked for, or what is fastest here."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

from service.served import ServedModel

REPEATS = 5


def choose_threads(wanted: int | None, model: ServedModel) -> int:
    """Set the backend's threads and say how many: ``wanted``, or one or all cores, as measured.

    Threads meet after every operation. A small model on shared cores loses more by waiting there
    than it gains: on two noisy cores the embedded model plans twice as fast on one thread.
    """
    if wanted is not None:
        model.backend.threads = wanted
        return wanted
    candidates = {1, len(os.sched_getaffinity(0))}
    rollout = _default_rollout(model)
    fastest = min(sorted(candidates), key=lambda count: _seconds(model, count, rollout))
    model.backend.threads = fastest
    return fastest


def _default_rollout(model: ServedModel) -> Callable[[], object]:
    """The first iteration of a plan with the model's default solver."""
    config, solver = model.card.config, model.card.solver
    latents, past = torch.zeros(1, 1, config.latent_dim), torch.empty(1, 0, config.block_width)
    candidates = torch.zeros(1, solver.samples, solver.horizon, config.block_width)
    return lambda: model.backend.rollout(latents, past, candidates)


def _seconds(model: ServedModel, count: int, rollout: Callable[[], object]) -> float:
    """The median of a few, so that one disturbance does not decide."""
    model.backend.threads = count
    durations = []
    for _ in range(REPEATS):
        start = time.monotonic()
        rollout()
        durations.append(time.monotonic() - start)
    return statistics.median(durations)
