"""What training needs of an environment: its actions, and episodes to record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode of L steps.

    Attributes:
        frames: (L + 1, H, W, 3) uint8.
        actions: (L, action_dim) float32 in the environment's units: those between the frames.
        states: (L + 1, S) float32 in the environment's units.
    """

    frames: Tensor
    actions: Tensor
    states: Tensor


@dataclass(frozen=True)
class Environment:
    """An environment that episodes can be recorded in.

    Attributes:
        name: as the command line has it.
        action_low: the lower bound of each action.
        action_high: the upper bound of each action.
        state_dim: S, the numbers in a state.
        controllers: entry-point names of the fallback controllers of its models.
        record: yields episodes of the data policy, given their number, the steps of each and a
            seed. The same arguments give the same episodes.
    """

    name: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    state_dim: int
    controllers: tuple[str, ...]
    record: Callable[[int, int, int], Iterator[RecordedEpisode]]

    @property
    def action_dim(self) -> int:
        return len(self.action_low)
