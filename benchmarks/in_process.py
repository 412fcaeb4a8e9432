"""Models and plans in this process: loaded as a server loads them, searched as the engine does.

Axes: H context frames, S candidates, T horizon in action blocks, D latent_dim, A one action block.
Actions are z-scored.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.card import SolverConfig
from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_card, random_model
from lewm_serve.backends.backend import Backend
from lewm_serve.engine.jobs import roll_out_one_plan
from lewm_serve.objectives import DEFAULT_OBJECTIVE
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.registry.loading import load_registry
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.settings import load_settings
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import ScoredSequence, SearchSpace

Rollout = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Context latents (H, D), past actions (H − 1, A), candidates (S, T, A) → latents (S, T, D)."""


@contextmanager
def random_model_folder(preset: str) -> Iterator[Path]:
    """A model folder with random weights, for the duration of the block."""
    config = PRESETS[preset]
    with tempfile.TemporaryDirectory(prefix="lewm-benchmark-") as name:
        folder = Path(name) / preset
        checkpoint.save(folder, random_model(config), random_card(f"random-{preset}", config, {}))
        yield folder


def load_like_server(folder: Path | None = None, **settings: Any) -> LoadedModel:
    """Load and warm up the only model of a server with these settings, by default on the CPU.

    Args:
        folder: the model's folder; None: the embedded model.
        **settings: settings of the server. Backend and threads are chosen as a server does.
    """
    models = {} if folder is None else {"models": str(folder)}
    with _warnings_only():
        return load_registry(load_settings(**{"device": "cpu", **models, **settings})).get(None)


@contextmanager
def _warnings_only() -> Iterator[None]:
    """Log warnings alone, to standard error, for the duration of the block."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def describe_model(model: LoadedModel) -> dict[str, Any]:
    """A model, and what was chosen to run it."""
    return {
        "model": model.name,
        "version": model.version,
        "backend": model.backend.name,
        "device": model.backend.device,
        "precision": model.backend.precision,
        "threads": getattr(model.backend, "threads", torch.get_num_threads()),
    }


class SearchLoop:
    """A search without engine, queue and deadline: ask, roll out, score, tell.

    Args:
        model: the model.
        settings: the settings of the solver.
        latents: the context latents (H, D).
        goal: the goal's latent (D,).
        past_actions: the actions (H − 1, A) between the context frames; None: there is one frame.
        seed: the seed of the search.
        rollout: the roll-out; None: that of the model's backend.

    Attributes:
        solver: the solver.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: SolverConfig,
        *,
        latents: Tensor,
        goal: Tensor,
        past_actions: Tensor | None = None,
        seed: int = 0,
        rollout: Rollout | None = None,
    ) -> None:
        config = model.card.config
        start = torch.zeros(settings.horizon, config.block_width).clamp(model.low, model.high)
        space = SearchSpace(model.low, model.high, start, action_dim=config.action_dim)
        self._objective = model.objectives[settings.objective or DEFAULT_OBJECTIVE]
        if isinstance(self._objective, DistanceObjective):
            proposed = self._objective.propose(latents[-1], goal)
            space = space if proposed is None else space.starting_with(proposed)
        self.solver = SOLVERS[settings.name](settings, space, seed)
        self._latents = latents
        self._goal = goal
        self._past_actions = start[:0] if past_actions is None else past_actions
        self._rollout = backend_rollout(model.backend) if rollout is None else rollout

    def iterate(self, iterations: int = 1) -> None:
        """Do one iteration, or several. The search must be long enough for all of them."""
        for _ in range(iterations):
            candidates = self.solver.ask()
            predicted = self._rollout(self._latents, self._past_actions, candidates)
            self.solver.tell(candidates, self._objective(predicted, self._goal))

    def run(self) -> ScoredSequence:
        """Iterate until the search has ended."""
        while not self.solver.done:
            self.iterate()
        assert self.solver.best is not None  # every iteration scores candidates
        return self.solver.best


def backend_rollout(backend: Backend) -> Rollout:
    """The roll-out of a backend for one plan."""

    def rollout(latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        return roll_out_one_plan(
            backend, latents=latents, past_actions=past_actions, candidates=candidates
        )

    return rollout


@torch.inference_mode()
def plain_rollout(model: LeWM, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
    """The roll-out that speed is compared with: eager, everything computed anew in each step.

    Each step predicts all positions of the window of the last ``history`` latents: 12 predictor
    tokens a candidate over 5 steps from one frame with a history of 3. Public planners roll out
    like this. The result is that of `LeWM.rollout`. There must be one context frame.
    """
    assert len(latents) == 1, "plain_rollout starts from one frame"
    assert not len(past_actions)
    window, predicted = latents.expand(len(candidates), 1, -1), []
    for step in range(candidates.shape[1]):
        first = max(0, step + 1 - model.config.history)
        next_latent = model.predict(window, candidates[:, first : step + 1])[:, -1:]
        window = torch.cat([window, next_latent], dim=1)[:, -model.config.history :]
        predicted.append(next_latent)
    return torch.cat(predicted, dim=1)


def predict_newest(model: LoadedModel, latents: Tensor, past_actions: Tensor) -> Tensor:
    """One-step predictions (N, D) of the newest of latents (N, H, D), actions (N, H − 1, A)."""
    return model.backend.predict_newest(latents, past_actions)
