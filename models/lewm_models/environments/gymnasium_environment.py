"""A user's gymnasium environment as an `Environment`; docs/environments.md has an example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lewm_models.environments.environment import (
    PAPER,
    SEED_COUNT,
    Environment,
    EvaluationProtocol,
    FloatArray,
    Frame,
    RecordedEpisode,
)
from lewm_models.preprocessing import to_model_frames

Act = Callable[[FloatArray], ArrayLike]
"""A state (S,) to an action (A,)."""

Policy = Callable[[np.random.Generator], Act]
"""Starts an episode: returns what chooses its actions."""

MAX_FRAME_SIZE = 224
"""Larger frames are reduced to this side."""

CHECKED_STEPS = 5
"""The steps after which two runs with the same seed and actions are compared."""

REACHED_DEVIATIONS = 0.1
"""Without a goal test, a goal is reached at this distance, in standard deviations of the states."""

DEVIATION_EPISODES, DEVIATION_STEPS = 16, 100
"""The episodes that these deviations are measured on."""


@dataclass(frozen=True)
class _Origin:
    """How a state came about: a reset with a seed, then actions (n, A)."""

    seed: int
    actions: NDArray[np.float32]


class GymnasiumEnvironment(Environment):
    """An environment around a gymnasium environment.

    A state is ``info["state"]`` of `reset` and `step` where there is one, else the observation.
    `TimeLimit` and other ends by truncation are ignored.

    Args:
        make: makes the environment, with ``render_mode="rgb_array"``. It is called for every
            simulation.
        name: as reports and cards have it; None takes the environment's id or class.
        policy: the data policy. None: uniform random actions within the bounds.
        reached: whether a state (S,) counts as the goal (S,). None: the states differ by less than
            `REACHED_DEVIATIONS` in the root mean square, each number in units of its standard
            deviation under the data policy.
        set_state: puts an environment that was reset into a state (S,). None: a state is reached
            again by its seed and actions, so only states of `trajectories` can be.
        protocols: the protocols by name; ``paper`` if there are no others.
        has_fast_frames: see `Environment`.

    Raises:
        ValueError: the environment cannot be used; the message says what is missing.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        *,
        name: str | None = None,
        policy: Policy | None = None,
        reached: Callable[[FloatArray, FloatArray], bool] | None = None,
        set_state: Callable[[gymnasium.Env[Any, Any], FloatArray], None] | None = None,
        protocols: Mapping[str, EvaluationProtocol] | None = None,
        has_fast_frames: bool = False,
    ) -> None:
        self.make = make
        self.policy = policy or self._random_actions
        self.set_state = set_state
        self.protocols = {"paper": PAPER, **(protocols or {})}
        self.has_fast_frames = has_fast_frames
        self._user_reached = reached
        self._origins: dict[bytes, tuple[_Origin, int]] = {}
        with closing(make()) as env:
            self.name = name or _name(env)
            space = env.action_space
            self._check_render_mode(env)
            self._check_actions(space)
            assert isinstance(space, gymnasium.spaces.Box)
            self.action_low = tuple(map(float, space.low))
            self.action_high = tuple(map(float, space.high))
            self.action_dtype = space.dtype
            self.state_dim = self._check_states_and_frames(env)

    def simulation(self) -> GymnasiumSimulation:
        return GymnasiumSimulation(self)

    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        for states, actions, frames in self._run(episodes, steps, seed, frame_every):
            yield RecordedEpisode(
                frames=np.stack(frames), actions=actions, states=states.astype(np.float32)
            )

    def trajectories(self, episodes: int, steps: int, seed: int) -> FloatArray:
        trajectories = self._run(episodes, steps, seed, frame_every=None)
        return np.stack([states for states, _, _ in trajectories])

    def reached(self, state: FloatArray, goal: FloatArray) -> bool:
        if self._user_reached is not None:
            return bool(self._user_reached(state, goal))
        difference = (state - goal) / self._deviations
        return float(np.sqrt(np.mean(np.square(difference)))) < REACHED_DEVIATIONS

    def origin(self, state: FloatArray) -> tuple[_Origin, int]:
        """How a state of `trajectories` came about, and the number of actions that led to it.

        Raises:
            ValueError: it is another state.
        """
        try:
            return self._origins[_key(state)]
        except KeyError:
            raise ValueError(
                f"{self.name}: has no set_state, so only states of its own trajectories can be "
                "reached again"
            ) from None

    def _run(
        self, episodes: int, steps: int, seed: int, frame_every: int | None
    ) -> Iterator[tuple[FloatArray, NDArray[np.float32], list[Frame]]]:
        """States (steps + 1, S), actions (steps, A) and frames of episodes of the data policy."""
        generator = np.random.default_rng(seed)
        with closing(self.simulation()) as simulation:
            for _ in range(episodes):
                episode_seed = int(generator.integers(SEED_COUNT))
                act = self.policy(np.random.default_rng((seed, episode_seed)))
                simulation.start(episode_seed)
                states, actions, frames = [simulation.state()], [], []
                for step in range(steps + 1):
                    if frame_every is not None and step % frame_every == 0:
                        frames.append(simulation.frame())
                    if step == steps:
                        break
                    actions.append(self.to_action(act(states[-1])))
                    simulation.step(actions[-1])
                    states.append(simulation.state())
                    if simulation.terminated:
                        raise ValueError(
                            f"{self.name}: terminated after {step + 1} of {steps} steps; make it "
                            "without an end, or ask for shorter episodes"
                        )
                origin = _Origin(episode_seed, np.stack(actions))
                if self.set_state is None and frame_every is None:
                    for step, state in enumerate(states):
                        self._origins[_key(state)] = origin, step
                yield np.stack(states), origin.actions, frames

    def to_action(self, values: ArrayLike) -> NDArray[np.float32]:
        """An action (A,) within the bounds.

        Raises:
            ValueError: it has another shape, or is not finite.
        """
        action = np.asarray(values, np.float32)
        if action.shape != (self.action_dim,) or not np.isfinite(action).all():
            raise ValueError(
                f"{self.name}: expected {self.action_dim} finite numbers as action, got {values!r}"
            )
        return np.clip(action, *np.array((self.action_low, self.action_high), np.float32))

    def _random_actions(self, generator: np.random.Generator) -> Act:
        return lambda _: generator.uniform(self.action_low, self.action_high)

    @cached_property
    def _deviations(self) -> FloatArray:
        """The standard deviation of each number of a state (S,); 1 for one that never changes."""
        states = [
            states for states, _, _ in self._run(DEVIATION_EPISODES, DEVIATION_STEPS, 0, None)
        ]
        deviations: FloatArray = np.concatenate(states).std(axis=0)
        return np.where(deviations > 0, deviations, 1.0)

    def _check_render_mode(self, env: gymnasium.Env[Any, Any]) -> None:
        if env.render_mode != "rgb_array":
            raise ValueError(
                f"{self.name}: expected an environment made with render_mode='rgb_array', got "
                f"{env.render_mode!r}"
            )

    def _check_actions(self, space: Any) -> None:
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ValueError(
                f"{self.name}: expected actions that are numbers in one row, "
                f"gymnasium.spaces.Box(low, high, shape=(A,)), got {space}"
            )
        if not space.is_bounded():
            raise ValueError(f"{self.name}: expected actions with finite bounds, got {space}")

    def _check_states_and_frames(self, env: gymnasium.Env[Any, Any]) -> int:
        """Run twice with the same seed and actions.

        Returns:
            The numbers of a state.
        """
        generator = np.random.default_rng(0)
        shape = CHECKED_STEPS, self.action_dim
        actions = generator.uniform(self.action_low, self.action_high, shape)
        ends: list[tuple[FloatArray, Frame]] = []
        for _ in range(2):
            observation, info = env.reset(seed=0)
            state = state_of(self.name, observation, info)
            for action in actions:
                observation, _, _, _, info = env.step(action.astype(self.action_dtype))
                state = state_of(self.name, observation, info)
            ends.append((state, frame_of(self.name, env)))
        (first, first_frame), (again, frame) = ends
        if not np.array_equal(first, again) or not np.array_equal(first_frame, frame):
            raise ValueError(
                f"{self.name}: is not deterministic: two runs with reset(seed=0) and the same "
                f"{CHECKED_STEPS} actions end differently"
            )
        return len(first)


class GymnasiumSimulation:
    """One gymnasium environment; see `lewm_models.environments.environment.Simulation`.

    Attributes:
        terminated: whether the environment has ended its episode. Then it stands still.
    """

    def __init__(self, environment: GymnasiumEnvironment) -> None:
        self._environment = environment
        self._env = environment.make()
        self._state = np.zeros(environment.state_dim)
        self.terminated = False

    def start(self, seed: int) -> None:
        """Start an episode that the environment draws itself."""
        observation, info = self._env.reset(seed=seed)
        self._state = state_of(self._environment.name, observation, info)
        self.terminated = False

    def reset(self, state: FloatArray) -> None:
        set_state = self._environment.set_state
        if set_state is not None:
            self.start(seed=0)
            set_state(self._env.unwrapped, state)
            self._state = np.array(state, np.float64)
            return
        origin, steps = self._environment.origin(state)
        self.start(origin.seed)
        for action in origin.actions[:steps]:
            self.step(action)
        if not np.array_equal(self._state, state):
            raise ValueError(
                f"{self._environment.name}: is not deterministic: reset(seed={origin.seed}) and "
                f"the same {steps} actions lead to another state"
            )

    def step(self, action: FloatArray) -> None:
        if self.terminated:
            return
        environment = self._environment
        taken = environment.to_action(action).astype(environment.action_dtype)
        observation, _, self.terminated, _, info = self._env.step(taken)
        self._state = state_of(environment.name, observation, info)

    def frame(self) -> Frame:
        return frame_of(self._environment.name, self._env)

    def state(self) -> FloatArray:
        return self._state.copy()

    def close(self) -> None:
        self._env.close()


def state_of(name: str, observation: Any, info: Mapping[str, Any]) -> NDArray[np.float64]:
    """The state (S,) after a reset or a step.

    Raises:
        ValueError: neither ``info`` nor the observation has one.
    """
    value = info.get("state", observation)
    state = np.asarray(value) if not isinstance(value, Mapping | tuple) else np.empty(0)
    if state.ndim != 1 or not len(state) or state.dtype.kind not in "fiub":
        kind = f"{type(value).__name__} {state.shape}" if len(state) else type(value).__name__
        raise ValueError(
            f"{name}: expected numbers in one row, as info['state'] or as observation, got {kind}"
        )
    return state.astype(np.float64)


def frame_of(name: str, env: gymnasium.Env[Any, Any]) -> Frame:
    """What `render` returns as a square frame: black bars complete it.

    Raises:
        ValueError: it is no frame.
    """
    rendered: Any = env.render()
    if (
        not isinstance(rendered, np.ndarray)
        or rendered.dtype != np.uint8
        or rendered.ndim != 3
        or rendered.shape[2] != 3
    ):
        kind = type(rendered).__name__
        if isinstance(rendered, np.ndarray):
            kind = f"{rendered.shape} of {rendered.dtype}"
        raise ValueError(f"{name}: expected render() to return (H, W, 3) of uint8, got {kind}")
    size = min(MAX_FRAME_SIZE, max(rendered.shape[:2]))
    frames = torch.from_numpy(np.array(rendered[None]))
    frame: Frame = to_model_frames(frames, size, "pad")[0].numpy()
    return frame


def _name(env: gymnasium.Env[Any, Any]) -> str:
    """The environment's id without its namespace, or its class."""
    if env.spec is not None:
        return env.spec.id.rpartition("/")[2]
    return type(env.unwrapped).__name__


def _key(state: FloatArray) -> bytes:
    return np.asarray(state, np.float64).tobytes()
