"""Searches in this process, with the solvers and objectives of a server."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lewm_models.card import ModelCard, SolverConfig
from lewm_models.checkpoint import Checkpoint
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.objectives import Objective
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import ScoredSequence, SearchSpace


def search_space(card: ModelCard) -> SearchSpace:
    """The search space of a plan without a warm start."""
    low, high = (
        torch.tensor(bounds, dtype=torch.float32).repeat(card.config.action_block)
        for bounds in card.zscored_bounds
    )
    limit = card.action_rate_limit
    start = torch.zeros(card.solver.horizon, card.config.block_width)
    space = SearchSpace(
        low=low,
        high=high,
        start=start,
        action_dim=card.config.action_dim,
        max_change=None if limit is None else torch.tensor(limit) / torch.tensor(card.action_std),
    )
    return replace(space, start=space.clip(start))


def search(
    backend: Backend,
    settings: SolverConfig,
    space: SearchSpace,
    *,
    start: Tensor,
    goal: Tensor,
    objective: Objective,
    seed: int,
) -> ScoredSequence:
    """The best plan from a start (D,) to a goal (D,) of a complete search."""
    solver = SOLVERS[settings.name](settings, space, seed)
    context, goals = start.view(1, 1, -1), goal.unsqueeze(0)
    while not solver.done:
        asked = solver.ask()
        candidates, past_actions = asked.unsqueeze(0), torch.empty(1, 0, asked.shape[-1])
        if solver.needs_gradients:
            costs, gradients = backend.gradients(
                context, past_actions, candidates, goals=goals, objective=objective
            )
            solver.tell(asked, costs[0], gradients[0])
        else:
            predicted = backend.rollout(context, past_actions, candidates)
            solver.tell(asked, objective(predicted, goals)[0])
    assert solver.best is not None
    return solver.best


class DefaultSearch:
    """Plans by a model's default solver and objective, as a server's; float32 in PyTorch.

    See `lewm_models.judging.recovery.Plan`.

    Args:
        checkpoint: the model.
        device: where it runs.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        card = checkpoint.card
        elites = min(card.solver.elites, card.solver.samples)
        self._settings = replace(card.solver, elites=elites)
        self._space = search_space(card)
        self._backend = TorchBackend(checkpoint.model, device)
        self._distance: DistanceObjective | None = None
        if card.solver.objective == "distance" and checkpoint.distance is not None:
            self._distance = DistanceObjective(checkpoint.distance, device)

    def __call__(self, start: Tensor, goal: Tensor, *, blocks: int, seed: int) -> Tensor:
        """Z-scored action blocks (blocks, A) from a latent (D,) to a goal (D,)."""
        space = replace(self._space, start=self._space.start[:1].repeat(blocks, 1))
        if self._distance is not None:
            proposed = self._distance.propose(start, goal)
            if proposed is not None:
                space = space.starting_with(proposed)
        best = search(
            self._backend,
            replace(self._settings, horizon=blocks),
            space,
            start=start,
            goal=goal,
            objective=LATENT if self._distance is None else self._distance,
            seed=seed,
        )
        return best.actions
