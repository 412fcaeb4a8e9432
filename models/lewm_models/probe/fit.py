"""Fitting a probe to training episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lewm_models.distance.loop import TrainingLoop
from lewm_models.probe.network import WIDTH, StateProbe, StateSpace
from lewm_models.probe.ridge import fit_ridge

MIN_FRAMES = 200
"""A probe is not fitted to fewer frames."""


class TooFewStates(ValueError):
    """There are too few frames with states for a probe. The message says how many."""


@dataclass(frozen=True)
class ProbeTraining:
    """The settings of the MLP's training.

    Args:
        steps: training steps.
        seed: of the weights and the order of samples.
        batch: frames per step.
        learning_rate: the highest one, of AdamW with a cosine schedule.
        weight_decay: of AdamW.
        width: of the hidden layers.
    """

    steps: int = 1000
    seed: int = 0
    batch: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    width: int = WIDTH


@dataclass(frozen=True)
class LabelledLatents:
    """N latents and the states that the robot had.

    Attributes:
        latents: (N, D) float32.
        states: (N, S) float32 in their units, all finite.
        groups: (N,), the episode of each.
    """

    latents: Tensor
    states: NDArray[np.float32]
    groups: NDArray[np.int64]

    @classmethod
    def finite(
        cls, latents: Tensor, states: NDArray[np.float32], groups: NDArray[np.int64]
    ) -> LabelledLatents:
        """The rows whose states are all finite."""
        rows = np.flatnonzero(np.isfinite(states).all(axis=1))
        return cls(latents[torch.from_numpy(rows)], states[rows], groups[rows])

    def __len__(self) -> int:
        return len(self.latents)


class _ProbeTrainer(TrainingLoop):
    """Trains the MLP of a probe on the mean squared error of standardised states."""

    part = "probe"

    def __init__(
        self, probe: StateProbe, latents: Tensor, targets: Tensor, config: ProbeTraining
    ) -> None:
        super().__init__(
            probe,
            kept={},
            identity={},
            steps=config.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self._probe, self._latents, self._targets, self._config = probe, latents, targets, config

    def loss(self, step: int) -> Tensor:
        """See `TrainingLoop.loss`."""
        generator = np.random.default_rng((self._config.seed, step))
        rows = torch.from_numpy(generator.integers(len(self._latents), size=self._config.batch))
        return F.mse_loss(self._probe(self._latents[rows]), self._targets[rows])

    def measure(self) -> dict[str, float]:
        """See `TrainingLoop.measure`: `ProbeQuality` measures a probe."""
        return {}


def fit_probe(
    training: LabelledLatents, space: StateSpace, config: ProbeTraining | None = None
) -> StateProbe:
    """A probe without gradients, on the CPU: the linear map by ridge regression, then the MLP.

    Args:
        training: frames of training episodes.
        space: the states.
        config: the settings of the MLP's training; None takes the defaults.

    Raises:
        TooFewStates: there are fewer than `MIN_FRAMES` frames.
        FloatingPointError: a loss is not finite.
    """
    if len(training) < MIN_FRAMES:
        raise TooFewStates(
            f"the training episodes have {len(training):,} frames with states, a probe needs "
            f"{MIN_FRAMES:,}"
        )
    config = config or ProbeTraining()
    states = torch.from_numpy(training.states)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        probe = StateProbe(
            training.latents.mean(dim=0),
            training.latents.std(dim=0),
            state_mean=states.double().mean(dim=0),
            state_std=states.double().std(dim=0),
            periods=torch.tensor(space.periods),
            width=config.width,
        )
    targets = probe.standardise(states)
    _set_linear_map(probe, training, targets)
    probe.linear.requires_grad_(False)
    _ProbeTrainer(probe, training.latents, targets, config).run()
    return probe.eval().requires_grad_(False)


@torch.no_grad()
def _set_linear_map(probe: StateProbe, training: LabelledLatents, targets: Tensor) -> None:
    inputs = probe.standardise_latents(training.latents)
    found = fit_ridge(inputs, targets, training.groups)
    probe.linear.weight.copy_(found.weight.T)
    probe.linear.bias.copy_(found.bias)


@torch.inference_mode()
def read_states(probe: StateProbe, latents: Tensor, *, linear: bool = False) -> NDArray[np.float64]:
    """The states (N, S) in their units that a probe reads from latents (N, D)."""
    values = probe.by_linear_map(latents) if linear else probe(latents)
    return probe.in_units(values).double().numpy()
