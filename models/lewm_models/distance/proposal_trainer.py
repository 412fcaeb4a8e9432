"""Training of a proposal: its gradient comes from the distance, through the frozen world model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lewm_models.distance.latents import PieceLatents
from lewm_models.distance.loop import TrainingLoop
from lewm_models.distance.network import GoalDistance, PlanProposal
from lewm_models.lewm import LeWM

BATCH, LEARNING_RATE, WEIGHT_DECAY, WIDTH = 96, 1e-3, 1e-2, 256

NEAR_SHARE, NEAR_FRAMES = 0.5, 20
"""The share of goals that are at most so many frames later in the same piece. The others are any
frames."""

HELD_OUT_PAIRS = 256
"""The starts and goals that reports are measured on."""


class ProposalTrainer(TrainingLoop):
    """Trains the proposal of a distance, for roll-outs from one frame.

    The loss is the mean distance of the predicted latents from the goal.

    Args:
        model: the world model in ``eval()`` mode, on the device where to train.
        distance: the trained distance, on the same device.
        training: the latents to start from and to choose goals from.
        held_out: those that reports are measured on.
        low: the lower bounds (A,) of a z-scored action block.
        high: the upper bounds.
        horizon: the blocks that are proposed.
        steps: training steps.
        seed: of the weights and the pairs.
        identity: what a checkpoint must agree with besides, see `TrainingLoop`.

    Attributes:
        proposal: the proposal.
    """

    part = "proposal"

    def __init__(
        self,
        model: LeWM,
        distance: GoalDistance,
        training: PieceLatents,
        held_out: PieceLatents,
        *,
        low: Tensor,
        high: Tensor,
        horizon: int,
        steps: int,
        seed: int,
        identity: Mapping[str, Any],
    ) -> None:
        device = distance.mean.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            proposal = PlanProposal(distance.latent_dim, low, high, horizon=horizon, width=WIDTH)
        self.proposal = proposal.to(device)
        super().__init__(
            self.proposal,
            kept={},
            identity={**identity, "steps": steps, "seed": seed, "horizon": horizon},
            steps=steps,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
        )
        self._model = model.requires_grad_(False)
        self._distance = distance.requires_grad_(False)
        self._seed = seed
        self._training = training
        self._held_out = self._draw(held_out, np.random.default_rng(seed), HELD_OUT_PAIRS)

    def loss(self, step: int) -> Tensor:
        """See `TrainingLoop.loss`."""
        generator = np.random.default_rng((self._seed, step))
        starts, goals = self._draw(self._training, generator, BATCH)
        return self._cost(starts, goals, self._propose(starts, goals)).mean()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The mean distance on the way of the proposed actions, and of the mean action."""
        starts, goals = self._held_out
        proposed = self._propose(starts, goals)
        return {
            "proposal_cost": self._cost(starts, goals, proposed).mean().item(),
            "mean_action_cost": self._cost(starts, goals, torch.zeros_like(proposed)).mean().item(),
        }

    def _draw(
        self, pieces: PieceLatents, generator: np.random.Generator, count: int
    ) -> tuple[Tensor, Tensor]:
        """Latents of starts and of goals (count, D)."""
        rows, left = pieces.rows_left
        chosen = generator.integers(len(rows), size=count)
        starts = rows[chosen]
        near = starts + generator.integers(1, np.minimum(left[chosen], NEAR_FRAMES), endpoint=True)
        anywhere = generator.integers(len(pieces.latents), size=count)
        goals = np.where(generator.random(count) < NEAR_SHARE, near, anywhere)
        device = self._distance.mean.device
        return pieces.latents[starts].to(device), pieces.latents[goals].to(device)

    def _propose(self, starts: Tensor, goals: Tensor) -> Tensor:
        standardise = self._distance.standardise
        actions: Tensor = self.proposal(standardise(starts), standardise(goals))
        return actions

    def _cost(self, starts: Tensor, goals: Tensor, actions: Tensor) -> Tensor:
        """The mean distances (B,) on the way of actions (B, T, A)."""
        predicted = self._model.rollout_each(starts, actions)
        distances: Tensor = self._distance(predicted, goals.unsqueeze(1))
        return distances.mean(dim=-1)
