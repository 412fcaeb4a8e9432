"""The interface of environments: simulations, the data policy, the success test and protocols.

Axes: L steps of an episode, A values of an action, S values of a state, H and W of a frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
Frame = NDArray[np.uint8]

Pairs = tuple[FloatArray, FloatArray]
"""Starts and goals, states (N, S) each."""

INSTALL_COMMAND = "pip install 'lewm-serve[environments]'"

SEED_COUNT = 2**31
"""Seeds of training and of evaluation are 0 to this - 1, see `evaluation_seed`."""


class Simulation(Protocol):
    """One world for one robot. A single thread creates, uses and closes it."""

    def reset(self, state: FloatArray) -> None:
        """Put the world into exactly this state (S,). All that follows depends on it alone."""

    def step(self, action: FloatArray) -> None:
        """Execute an action (A,) in the environment's units. It is clipped to the bounds."""

    def frame(self) -> Frame:
        """What the camera shows, (H, W, 3) RGB. H and W are always the same."""

    def state(self) -> FloatArray:
        """The state (S,)."""

    def close(self) -> None:
        """Free what the simulation holds, such as a window or an OpenGL context."""


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode of L steps.

    Attributes:
        frames: (L // frame_every + 1, H, W, 3) uint8, at the steps 0, frame_every, and so on.
        actions: (L, A) float32 in the environment's units: those between the states.
        states: (L + 1, S) float32 in the environment's units.
    """

    frames: Frame
    actions: NDArray[np.float32]
    states: NDArray[np.float32]


@dataclass(frozen=True)
class EvaluationProtocol:
    """What an episode of a measurement is.

    Attributes:
        budget: the steps after which an episode ends.
        offset: the steps from a start to its goal on one trajectory of the data policy. None: the
            environment draws them in another way, see `Environment.draw_pairs`.
        plan_steps: the actions of a plan that are executed before the next plan.
    """

    budget: int
    offset: int | None = None
    plan_steps: int = 25


PAPER = EvaluationProtocol(offset=25, budget=50)
"""The field's protocol. Source: arXiv 2603.19312."""


class Environment(ABC):
    """A task: a world with a camera, a data policy, and a test whether a goal is reached.

    Everything that is drawn at random depends on a seed, 0 to 2³² − 1. Training has the lower half
    of the seeds and evaluation the upper half, so different seeds have to give different episodes.

    Attributes:
        name: as the command line and cards have it.
        action_low: the lower bound of each action (A,).
        action_high: the upper bound of each action.
        state_dim: S.
        state_names: the name of each state (S,), for probes; empty: they are numbered.
        state_periods: the period of each state that repeats after it, such as an angle.
        controllers: entry-point names of the fallback controllers of its models.
        protocols: the protocols by name. ``paper`` is always one of them.
        demo_protocol: the protocol of `lewm demo`.
        has_fast_frames: whether a frame costs little. If so, all steps are recorded with frames,
            by one call of `record`. If not, only frames one action block apart are recorded, in
            several processes.
        trajectory_steps: the length of the trajectories that starts and goals are taken from.
        trajectories_per_draw: the trajectories that are simulated together for them.
    """

    name: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    state_dim: int
    state_names: tuple[str, ...] = ()
    state_periods: Mapping[str, float] = MappingProxyType({})
    controllers: tuple[str, ...] = ()
    protocols: Mapping[str, EvaluationProtocol] = MappingProxyType({"paper": PAPER})
    demo_protocol: str = "paper"
    has_fast_frames: bool = False
    trajectory_steps: ClassVar[int] = 150
    trajectories_per_draw: ClassVar[int] = 32

    @property
    def action_dim(self) -> int:
        return len(self.action_low)

    @property
    def neutral_action(self) -> NDArray[np.float32]:
        """The action (A,) of a robot that does nothing: the one nearest to zero."""
        low, high = (np.array(bound, np.float32) for bound in (self.action_low, self.action_high))
        return np.clip(np.zeros_like(low), low, high)

    @abstractmethod
    def simulation(self) -> Simulation:
        """A new simulation for the calling thread, in any state; `Simulation.reset` comes first."""

    @abstractmethod
    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        """Yield episodes of the data policy. The same arguments give the same episodes.

        Args:
            episodes: their number.
            steps: L of each.
            seed: of everything random.
            frame_every: the steps from one frame to the next. Actions and states do not depend on
                it.
        """

    @abstractmethod
    def trajectories(self, episodes: int, steps: int, seed: int) -> FloatArray:
        """States (episodes, steps + 1, S) of the data policy, without frames."""

    @abstractmethod
    def reached(self, state: FloatArray, goal: FloatArray) -> bool:
        """Whether a state (S,) counts as the goal's state (S,)."""

    def draw_pairs(self, protocol: str, seed: int) -> Iterator[Pairs]:
        """Yield starts and goals of a protocol without an offset, without end.

        The parts do not depend on how many are taken. No start is at its goal. ``seed`` is one of
        `evaluation_seed`.
        """
        raise NotImplementedError(f"{self.name}: the protocol {protocol} has no offset")

    def pairs_on_trajectories(self, offset: int, seed: int) -> Iterator[Pairs]:
        """Yield starts and goals ``offset`` steps apart on new trajectories, without end.

        Each trajectory gives one pair at most, from a random step on. Starts that are at their
        goals are left out. ``seed`` is one of `evaluation_seed`.
        """
        generator = np.random.default_rng(seed)
        steps = max(self.trajectory_steps, offset)
        while True:
            draw_seed = SEED_COUNT + int(generator.integers(SEED_COUNT))
            states = self.trajectories(self.trajectories_per_draw, steps, draw_seed)
            first = generator.integers(steps - offset + 1, size=len(states))
            yield self.apart(
                states[np.arange(len(states)), first],
                states[np.arange(len(states)), first + offset],
            )

    def apart(self, starts: FloatArray, goals: FloatArray) -> Pairs:
        """The pairs whose start is not at its goal."""
        is_apart = [
            not self.reached(start, goal) for start, goal in zip(starts, goals, strict=True)
        ]
        return starts[is_apart], goals[is_apart]

    def state_at(self, x: float, y: float) -> FloatArray | None:
        """The possible state nearest to a point of the picture, for people who choose a goal there.

        Args:
            x: from the left, 0, to the right, 1.
            y: from the top, 0, to the bottom, 1.

        Returns:
            (S,); None where a point does not say what the state is.
        """
        return None

    def detour(self, states: FloatArray, goal: FloatArray) -> float | None:
        """The length of a way that reached its goal, divided by that of the shortest way.

        Args:
            states: (n + 1, S), the first one at the start and the last one at the goal.
            goal: (S,).

        Returns:
            At least 1; None where the environment does not know the shortest way.
        """
        return None


def evaluation_seed(seed: int) -> int:
    """The seed of random numbers in an evaluation; no training seed gives the same numbers.

    Raises:
        ValueError: the seed is outside [0, 2³¹).
    """
    if not 0 <= seed < SEED_COUNT:
        raise ValueError(f"seed: expected 0 to {SEED_COUNT - 1}, got {seed}")
    return SEED_COUNT + seed


def load_simulator(library: str, environment: str) -> Any:
    """Import a library that an environment needs.

    Raises:
        ValueError: it is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise ValueError(
            f"--env {environment}: {library} is needed ({error}); "
            f"install it with: {INSTALL_COMMAND}"
        ) from error
