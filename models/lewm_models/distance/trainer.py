"""Training of a distance: temporal differences between frames of recorded pieces.

A pair is a frame, a goal, and a later frame of the same piece, a few frames on. The distance of the
frame from the goal is the recorded time between them if the goal was recorded on the way to the
later frame, and otherwise at most the time to the later frame plus that frame's distance. An
asymmetric loss prefers the smaller of the values that different recorded ways give, so that the
distance approaches that of the shortest way.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lewm_models.distance.latents import PieceLatents
from lewm_models.distance.loop import TrainingLoop
from lewm_models.distance.network import WIDTH, GoalDistance
from lewm_models.distance.quality import DistanceQuality, measure_quality

GOAL_SHARES = (0.5, 0.4)
"""The shares of pairs whose goal is a later frame of the same piece, and any frame of all pieces.
The goal of the rest is the next frame."""

SAME_FRAME_SHARE, SAME_FRAME_WEIGHT = 0.125, 0.1
"""The share of a batch whose distance from itself is penalised, and the weight of that."""

MAX_JUMP = 4
"""The most frames from a frame to the later one. Longer jumps carry distances to far goals in fewer
steps, shorter ones take less of the detours of a recorded way."""


@dataclass(frozen=True)
class DistanceTraining:
    """The settings of the training.

    Args:
        steps: training steps of the distance; the proposal has a fourth as many.
        seed: of the weights and the pairs.
        batch: pairs per step.
        learning_rate: the highest one, of AdamW with a cosine schedule.
        weight_decay: of AdamW.
        optimism: the weight in the loss of a distance above its target; one below it has the rest.
        averaging: the share of the new weights in the target network after each step.
        width: of the hidden layers.
    """

    steps: int = 9000
    seed: int = 0
    batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    optimism: float = 0.9
    averaging: float = 0.01
    width: int = WIDTH


@dataclass(frozen=True)
class Pairs:
    """A batch of B pairs: rows of frames, of later frames, and of goals, (B,)."""

    rows: NDArray[np.int64]
    later: NDArray[np.int64]
    goals: NDArray[np.int64]

    @property
    def is_passed(self) -> NDArray[np.bool_]:
        """Whether the goal was recorded on the way to the later frame."""
        return (self.rows < self.goals) & (self.goals <= self.later)


class PairSampler:
    """Draws pairs of a frame that has a next one, and a goal; see `GOAL_SHARES`."""

    def __init__(self, pieces: PieceLatents, *, batch: int, seed: int) -> None:
        self._rows, self._left = pieces.rows_left
        self._frames = len(pieces.latents)
        self._batch = batch
        self._seed = seed

    def draw(self, step: int) -> Pairs:
        """The pairs of a step. They depend on the seed and the step only."""
        generator = np.random.default_rng((self._seed, step))
        chosen = generator.integers(len(self._rows), size=self._batch)
        rows = self._rows[chosen]
        left = self._left[chosen]
        jumps = generator.integers(1, np.minimum(left, MAX_JUMP), endpoint=True)
        of_same_piece = rows + generator.integers(1, left, endpoint=True)
        anywhere = generator.integers(self._frames, size=self._batch)
        kind = generator.random(self._batch)
        of_piece, of_all = GOAL_SHARES
        goals = np.where(
            kind < of_piece, of_same_piece, np.where(kind < of_piece + of_all, anywhere, rows + 1)
        )
        return Pairs(rows, later=rows + jumps, goals=goals)


class DistanceTrainer(TrainingLoop):
    """Trains a distance. All randomness depends on the seed and the step only.

    Args:
        training: the pieces to train on.
        held_out: the pieces that reports are measured on.
        config: the settings.
        device: where to train.

    Attributes:
        network: the distance.
    """

    part = "distance"

    def __init__(
        self,
        training: PieceLatents,
        held_out: PieceLatents,
        config: DistanceTraining,
        device: torch.device,
    ) -> None:
        self.config = config
        self.held_out = held_out
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = GoalDistance(
                training.latents.mean(dim=0), training.latents.std(dim=0), config.width
            )
        self.network = network.to(device)
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        super().__init__(
            self.network,
            kept={"target": self.target},
            identity={**asdict(config), "frames": training.fingerprint},
            steps=config.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self._latents = self.network.standardise(training.latents.to(device))
        self._times = torch.from_numpy(training.times).to(device)
        self._sampler = PairSampler(training, batch=config.batch, seed=config.seed)

    def quality(self) -> DistanceQuality:
        """The quality on the held-out pieces."""
        return measure_quality(self.network, self.held_out)

    def measure(self) -> dict[str, float]:
        """See `TrainingLoop.measure`."""
        return asdict(self.quality())

    def loss(self, step: int) -> Tensor:
        """See `TrainingLoop.loss`."""
        pairs = self._sampler.draw(step)
        latents, goals = self._latents[pairs.rows], self._latents[pairs.goals]
        with torch.no_grad():
            is_passed = torch.from_numpy(pairs.is_passed).to(goals.device)
            rest = self.target.of_standardised(self._latents[pairs.later], goals)
            target = torch.where(
                is_passed,
                self._times[pairs.goals] - self._times[pairs.rows],
                self._times[pairs.later] - self._times[pairs.rows] + rest,
            )
        distances = self.network.of_standardised(latents, goals)
        is_above = distances > target
        weights = torch.where(is_above, self.config.optimism, 1 - self.config.optimism)
        errors = F.huber_loss(distances, target, reduction="none")
        same = latents[: max(1, int(SAME_FRAME_SHARE * len(latents)))]
        same_frame = self.network.of_standardised(same, same).square().mean()
        return (weights * errors).mean() + SAME_FRAME_WEIGHT * same_frame

    def update(self) -> Tensor:
        """See `TrainingLoop.update`. The target network moves towards the distance."""
        loss = super().update()
        with torch.no_grad():
            for average, value in zip(
                self.target.parameters(), self.network.parameters(), strict=True
            ):
                average.lerp_(value, self.config.averaging)
        return loss
