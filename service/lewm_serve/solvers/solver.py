"""The interface of all solvers, and what several of them share.

A solver searches for the action sequence with the least cost: `ask` it for candidates, `tell` it
their costs, until it is ``done``. Its ``best`` is valid at any time after the first `tell`. Solvers
know neither models nor threads. Actions are z-scored everywhere in this package.

Axes: S candidates, T horizon in action blocks, A = action_dim · action_block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.card import SolverConfig

Array = NDArray[np.float32]

COMMON_SETTINGS = ("name", "samples", "iterations", "horizon", "tolerance", "objective")
"""The settings that every solver has."""

FLOAT32_BYTES, COPIES = 4, 8
"""A solver has up to this many arrays of the candidates' size at once: noise, candidates, moments,
gradients."""

MIN_VARIANCE_DIVISOR = 1e-4
"""The least value of 1 − Σ weights². Below it one candidate has nearly all the weight, so the
deviation is unknown."""


@dataclass(frozen=True)
class SearchSpace:
    """The search space.

    Attributes:
        low: lower bounds (A,) of one action block.
        high: upper bounds (A,) of one action block.
        start: the sequence (T, A), inside the space, around which the search starts.
        action_dim: how many of the A values belong to one time step.
        max_change: the largest change (action_dim,) of each action from one time step to the next;
            None: any.
        previous_action: the action (action_dim,) before the first one, from which the first change
            is measured; None: it is unknown.
    """

    low: Tensor
    high: Tensor
    start: Tensor
    action_dim: int
    max_change: Tensor | None = None
    previous_action: Tensor | None = None

    def starting_with(self, blocks: Tensor) -> SearchSpace:
        """The same space, whose start begins with these blocks (n, A), as far as it reaches."""
        horizon = len(self.start)
        start = torch.cat([blocks[:horizon], self.start[len(blocks) :]])
        return replace(self, start=self.clip(start))

    def clip(self, sequences: Tensor) -> Tensor:
        """Sequences (…, T, A) moved into the bounds, and then, step by step, to allowed changes."""
        clipped = sequences.clamp(self.low, self.high)
        if self.max_change is None:
            return clipped
        actions = clipped.numpy().reshape(*clipped.shape[:-2], -1, self.action_dim)
        steps = np.moveaxis(actions, -2, 0)  # a view: what is written to it is in ``clipped``
        change = self.max_change.numpy()
        previous = None if self.previous_action is None else self.previous_action.numpy()
        for step in steps:
            if previous is not None:
                np.clip(step, previous - change, previous + change, out=step)
            previous = step
        return clipped


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence of ``actions`` (T, A) and the ``cost`` of exactly these actions."""

    actions: Tensor
    cost: float


class Solver(ABC):
    """One search. It has its own random stream, so a seed fixes a plan whatever else runs.

    Attributes:
        iterations: the number of completed iterations.
        scored_candidates: the number of scored candidates.
        best: the best candidate so far; None before the first `tell`.
        converged: whether the search ended because its spread fell to the tolerance.
        done: whether the search has ended.
    """

    own_settings: ClassVar[Mapping[str, float]]
    """The settings of this solver beside `COMMON_SETTINGS`, with their defaults."""

    needs_gradients: ClassVar[bool] = False
    """Whether `tell` needs the gradients of the costs."""

    def __init__(self, settings: SolverConfig, space: SearchSpace, seed: int) -> None:
        self.settings = settings
        self.space = space
        self.seed = seed
        self.iterations = 0
        self.scored_candidates = 0
        self.converged = False
        self.done = False
        self.best: ScoredSequence | None = None

    @classmethod
    def own_setting_of(cls, settings: SolverConfig, name: str) -> float:
        """The value of one of `own_settings`; its default if ``settings`` leave it out."""
        value: float | None = getattr(settings, name)
        return cls.own_settings[name] if value is None else value

    @classmethod
    def all_settings(cls, settings: SolverConfig) -> dict[str, Any]:
        """All settings of a search by name, defaults included."""
        common = {name: getattr(settings, name) for name in COMMON_SETTINGS}
        return common | {name: cls.own_setting_of(settings, name) for name in cls.own_settings}

    @classmethod
    def candidates_per_ask(cls, settings: SolverConfig) -> list[int]:
        """The number of candidates of each `ask` of a search that does not converge early."""
        return [settings.samples] * settings.iterations

    @classmethod
    def memory_bytes(cls, settings: SolverConfig, block_width: int) -> int:
        """About how much memory a search takes at most."""
        return FLOAT32_BYTES * COPIES * settings.samples * settings.horizon * block_width

    @abstractmethod
    def ask(self) -> Tensor:
        """The next candidates (S, T, A), inside the search space."""

    def tell(self, candidates: Tensor, costs: Tensor, gradients: Tensor | None = None) -> None:
        """Take the costs (S,) of the candidates of the last `ask`. NaN counts as infinity.

        ``gradients`` (S, T, A) are those of the costs; only solvers that need them read them.
        """
        # NumPy is faster than torch for so few values. It also does not release the interpreter's
        # lock, which this thread might have to wait for afterwards.
        costs_without_nan = without_nan(costs)
        self.scored_candidates += len(candidates)
        lowest = int(costs_without_nan.argmin())
        cost = float(costs_without_nan[lowest])
        if self.best is None or cost < self.best.cost:
            self.best = ScoredSequence(torch.from_numpy(candidates.numpy()[lowest].copy()), cost)
        self._learn(candidates, torch.from_numpy(costs_without_nan), gradients)

    @cached_property
    def generator(self) -> np.random.Generator:
        """The random stream. It is made when it is first used, because that takes a while."""
        # torch.Generator uses only 32 bits of a seed.
        return np.random.default_rng(self.seed)

    def own_setting(self, name: str) -> float:
        """The value of one of `own_settings` in this search."""
        return self.own_setting_of(self.settings, name)

    def clip(self, candidates: Tensor) -> Tensor:
        """Candidates (S, T, A) moved into the search space."""
        return self.space.clip(candidates)

    @abstractmethod
    def _learn(self, candidates: Tensor, costs: Tensor, gradients: Tensor | None) -> None:
        """Update the search from the costs, and end the iteration by `_end_iteration`."""

    def _end_iteration(self, spread: float) -> None:
        """Count the iteration, and set ``converged`` and ``done``.

        ``spread`` is how widely the solver still searches; it is compared with ``tolerance``.
        """
        self.iterations += 1
        self.converged = self._has_converged(spread)
        self.done = self.converged or self.iterations == self.settings.iterations

    def _has_converged(self, spread: float) -> bool:
        """Whether the spread is within the tolerance. A tolerance of 0 disables the early stop."""
        return self.settings.tolerance > 0 and spread <= self.settings.tolerance


class GaussianSolver(Solver):
    """A search that fits a Gaussian to its better candidates, as CEM, iCEM and MPPI do.

    Candidates are drawn around ``mean`` (T, A) with the deviation ``std`` (T, A), which starts at
    the setting ``deviation``. They are clipped to the bounds before they are scored, so the
    Gaussian that is fitted to them respects the bounds too.

    The search has converged when the deviation of every component is at most ``tolerance``.
    """

    def __init__(self, settings: SolverConfig, space: SearchSpace, seed: int) -> None:
        super().__init__(settings, space, seed)
        self.mean = space.start
        self.std = torch.full_like(space.start, self.own_setting("deviation"))

    def around_mean(self, noise: Tensor) -> Tensor:
        """Candidates (S, T, A) from noise (S, T, A) of unit deviation."""
        return self.clip(torch.addcmul(self.mean, self.std, noise))

    def _fit(self, candidates: Array, weights: Array, momentum: float) -> float:
        """Fit mean and deviation to candidates (S, T, A) with weights (S,) that sum to 1.

        ``momentum`` is the weight of the old mean and deviation in the new ones. The deviation is
        the unbiased one. If one candidate has all the weight, the old deviation is kept.

        Returns:
            The largest deviation of any component; infinity if the old deviation was kept.
        """
        weights = weights[:, None, None]
        mean = (weights * candidates).sum(axis=0)
        variance_divisor = float(1 - np.square(weights).sum())
        self.mean = _blend(mean, self.mean, momentum)
        if variance_divisor < MIN_VARIANCE_DIVISOR:
            return math.inf
        squares = (weights * np.square(candidates - mean)).sum(axis=0)
        variance = squares / np.float32(variance_divisor)
        self.std = _blend(np.sqrt(variance), self.std, momentum)
        return float(self.std.numpy().max())


def without_nan(costs: Tensor) -> Array:
    """Costs (S,) with infinity in place of NaN."""
    # Much faster than `numpy.nan_to_num` for so few values.
    values: Array = costs.numpy()
    return np.where(np.isnan(values), np.float32(np.inf), values)


def _blend(new: Array, old: Tensor, old_weight: float) -> Tensor:
    return torch.from_numpy(new + np.float32(old_weight) * (old.numpy() - new))


def coloured_noise(
    generator: np.random.Generator, space: SearchSpace, *, samples: int, exponent: float
) -> Tensor:
    """Noise (samples, T, A) whose power falls as 1 / frequency^exponent along the time steps.

    An exponent of 0 gives white noise, 2 that of a random walk. Correlated noise moves a robot
    somewhere, whereas white noise cancels out over many steps. Each sequence of each action
    dimension has a root mean square of 1. A single time step gets white noise.

    Source: Timmer and König, On generating power law noise, 1995.
    """
    horizon, width = space.start.shape
    steps = horizon * width // space.action_dim
    if steps == 1:
        white = generator.standard_normal((samples, horizon, width), dtype=np.float32)
        return torch.from_numpy(white)
    amplitudes = noise_amplitudes(steps, exponent)
    shape = (samples, space.action_dim, len(amplitudes))
    spectrum = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    # The constant part is real. It gets the power that other parts share between two values.
    spectrum[..., 0] = np.sqrt(2) * spectrum[..., 0].real
    noise = np.fft.irfft(spectrum * amplitudes, n=steps)
    noise /= np.sqrt(np.square(noise).mean(axis=-1, keepdims=True))
    by_step = noise.transpose(0, 2, 1).astype(np.float32)
    return torch.from_numpy(by_step.reshape(samples, horizon, width))


@lru_cache(maxsize=64)
def noise_amplitudes(steps: int, exponent: float) -> NDArray[np.float64]:
    """The amplitude of each frequency of ``steps`` time steps, lowest frequency first."""
    frequencies = np.fft.rfftfreq(steps)
    frequencies[0] = 1 / steps
    amplitudes: NDArray[np.float64] = np.power(frequencies, -exponent / 2, dtype=np.float64)
    return amplitudes
