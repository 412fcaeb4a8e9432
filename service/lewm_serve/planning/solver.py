"""What every solver is: settings as resolved, and ask/tell with the best so far at any time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lewm_models.card import SolverDefaults

SHARED = ("name", "samples", "iterations", "horizon", "tolerance")
"""The settings that every solver has."""


@dataclass(frozen=True)
class Problem:
    """What a search is about, in z-scored action space.

    ``low``, ``high`` (A,): the bounds of one action block; ``start`` (T, A): the sequence around
    which the search begins, inside the bounds; ``action_dim``: how many of a block's A values are
    of one time step. T is the horizon in blocks.
    """

    low: Tensor
    high: Tensor
    start: Tensor
    action_dim: int


@dataclass(frozen=True)
class Solution:
    """A scored sequence: ``actions`` (T, A), z-scored, and the ``cost`` of exactly these."""

    actions: Tensor
    cost: float


class Solver(ABC):
    """One search: `ask` for candidates, `tell` their costs, until `done`.

    Each solver has a random stream of its own, so a seed fixes a plan whatever else is served.
    """

    own: ClassVar[Mapping[str, float]]
    """The settings that this solver has beside the `SHARED` ones, and their defaults."""

    needs_gradients: ClassVar[bool] = False
    """Whether `tell` has to be given the costs' gradients."""

    def __init__(self, settings: SolverDefaults, problem: Problem, seed: int) -> None:
        self.settings = settings
        self.problem = problem
        self.seed = seed
        self.iterations = 0
        self.candidates = 0
        self.converged = False
        self.done = False
        self.best: Solution | None = None

    @cached_property
    def generator(self) -> np.random.Generator:
        """The search's random stream, begun with the search: most of what making one costs."""
        # torch's own generator looks at 32 bits of a seed only.
        return np.random.default_rng(self.seed)

    def setting(self, name: str) -> float:
        """One of this solver's `own` settings: as resolved, its default where left out."""
        value: float | None = getattr(self.settings, name)
        return self.own[name] if value is None else value

    def resolved(self) -> dict[str, Any]:
        """All settings that this search runs with, by name."""
        shared = {name: getattr(self.settings, name) for name in SHARED}
        return shared | {name: self.setting(name) for name in self.own}

    def workload(self) -> list[int]:
        """How many candidates each `ask` of the whole search holds, if it never converges."""
        return [self.settings.samples] * self.settings.iterations

    @abstractmethod
    def ask(self) -> Tensor:
        """The next candidates (S, T, A), inside the bounds."""

    def clip(self, candidates: Tensor) -> Tensor:
        """Candidates (S, T, A) moved into the bounds, in the space in which they live."""
        return candidates.clamp(self.problem.low, self.problem.high)

    def tell(self, candidates: Tensor, costs: Tensor, gradients: Tensor | None = None) -> None:
        """Take what the candidates of the last `ask` cost (S,); a NaN is as bad as can be.

        ``gradients`` (S, T, A): how the costs change with the candidates, for solvers that need
        them; the others take no notice.
        """
        # NumPy: of so few values it makes less ado, and keeps the interpreter's lock meanwhile.
        known = np.nan_to_num(costs.numpy(), nan=np.inf, posinf=np.inf)
        self.candidates += len(candidates)
        lowest = int(known.argmin())
        cost = float(known[lowest])
        if self.best is None or cost < self.best.cost:
            self.best = Solution(torch.from_numpy(candidates.numpy()[lowest].copy()), cost)
        self._learn(candidates, torch.from_numpy(known), gradients)

    @abstractmethod
    def _learn(self, candidates: Tensor, costs: Tensor, gradients: Tensor | None) -> None:
        """Take the costs in, and end the iteration."""

    def _end_iteration(self, spread: float) -> None:
        """Count the iteration; ``spread``: how far the search still looks, in any component."""
        self.iterations += 1
        self.converged = self._settled(spread)
        self.done = self.converged or self.iterations == self.settings.iterations

    def _settled(self, spread: float) -> bool:
        """Whether the spread is within the tolerance; a tolerance of 0 never stops early."""
        return self.settings.tolerance > 0 and spread <= self.settings.tolerance
