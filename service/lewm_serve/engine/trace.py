"""What a search did in each iteration, recorded for people who look at it.

Axes: H context frames, D latent_dim, K kept candidates, T horizon in action blocks, A one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lewm_models.card import SolverConfig

MAX_KEPT, MIN_KEPT = 32, 4
"""How many candidates of an iteration are kept."""

MAX_KEPT_VALUES = 1 << 17
"""The most numbers of all kept candidates of a search. A longer search keeps fewer of each
iteration."""


@dataclass(frozen=True)
class TracedIteration:
    """One iteration.

    Attributes:
        candidates: the kept candidates (K, T, A), z-scored, the best first.
        costs: their costs (K,).
        elites: how many of them, from the first on, are elites.
        scored: how many candidates it had.
        is_final_mean: whether it is none of the search's iterations: after them, CEM scores its
            final mean alone.
        ended_s: when it ended, in seconds since the start of the search.
    """

    candidates: Tensor
    costs: Tensor
    elites: int
    scored: int
    is_final_mean: bool
    ended_s: float


@dataclass(frozen=True)
class SearchTrace:
    """A search: its iterations, and the latents (H, D) and blocks (H − 1, A) that it began with."""

    latents: Tensor
    past_actions: Tensor
    iterations: tuple[TracedIteration, ...]

    @property
    def size_in_bytes(self) -> int:
        """About how much memory it takes."""
        return 4 * sum(
            part.candidates.numel() + part.costs.numel() for part in self.iterations
        ) + 4 * (self.latents.numel() + self.past_actions.numel())


class TraceRecorder:
    """Records a search.

    Args:
        settings: those of its solver.
        counts_elites: whether the solver has elites. If not, the best candidate counts as one.
    """

    def __init__(self, settings: SolverConfig, *, counts_elites: bool) -> None:
        self._elites = settings.elites if counts_elites else 1
        self._kept: list[tuple[Tensor, Tensor, int]] = []
        self._iterations = settings.iterations + 1
        self._began: list[float] = []

    def begin(self, now: float) -> None:
        """An iteration begins."""
        self._began.append(now)

    def end(self, candidates: Tensor, costs: Tensor) -> None:
        """An iteration had these candidates (S, T, A) with these costs (S,)."""
        most = MAX_KEPT_VALUES // (self._iterations * candidates[0].numel())
        count = min(len(candidates), max(MIN_KEPT, min(MAX_KEPT, most)))
        order = costs.numpy().argsort(kind="stable")
        best = min(self._elites, (count + 1) // 2)
        others = np.linspace(best, len(order) - 1, count - best).astype(np.int64)
        kept = torch.from_numpy(order[np.concatenate([np.arange(best), others])])
        self._kept.append((candidates[kept], costs[kept], len(candidates)))

    def finish(
        self,
        started: float,
        ended: float,
        *,
        iterations: int,
        latents: Tensor,
        past_actions: Tensor,
    ) -> SearchTrace:
        """The trace of a search of so many iterations that was started and ended at these times."""
        ends = [*self._began[1:], ended]
        return SearchTrace(
            latents=latents,
            past_actions=past_actions,
            iterations=tuple(
                TracedIteration(
                    candidates=candidates,
                    costs=costs,
                    elites=min(self._elites, (len(candidates) + 1) // 2),
                    scored=scored,
                    is_final_mean=index >= iterations,
                    ended_s=max(0.0, end - started),
                )
                for index, ((candidates, costs, scored), end) in enumerate(
                    zip(self._kept, ends, strict=False)
                )
            ),
        )
