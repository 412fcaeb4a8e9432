"""Reacher: a two-link arm that has to take the joint angles of a goal frame.

The arm and its motors are those of dm_control's Reacher; its target is hidden, as in
`stable_worldmodel`. `reacher.xml` describes the arm for MuJoCo, and `reacher_frames` draws it.

A state is (angle of the shoulder, angle of the wrist, velocity of the shoulder, velocity of the
wrist), in radians and radians a second, counter-clockwise. The shoulder turns without limits, and
its angle counts full turns; the wrist is limited to ±160°. An action is the torque of each motor,
(2,) in [-1, 1], and holds for 0.04 s. Friction stops the arm within about five actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.environments.environment import (
    Environment,
    FloatArray,
    Frame,
    RecordedEpisode,
)
from lewm_models.environments.mujoco_library import load_mujoco
from lewm_models.environments.reacher_frames import render

TOLERANCE = 0.05
"""A goal is reached if each joint is nearer to the goal's angle than this, in radians."""

WRIST_LIMIT = math.radians(160)

PHYSICS_STEPS = 2
"""The steps of the simulation, 0.02 s each, for one action: `stable_worldmodel` repeats actions."""

EPISODES_AT_ONCE = 256
"""Episodes that are simulated together. Their number changes the memory that is needed only."""


class ReacherSimulation:
    """One arm."""

    def __init__(self) -> None:
        mujoco = load_mujoco(Reacher.name)
        self._reset, self._step = mujoco.mj_resetData, mujoco.mj_step
        self._model = _model()
        self._data = mujoco.MjData(self._model)

    def reset(self, state: FloatArray) -> None:
        self._reset(self._model, self._data)  # also what the last step has left in the solver
        self._data.qpos[:], self._data.qvel[:] = state[:2], state[2:]

    def step(self, action: FloatArray) -> None:
        self._data.ctrl[:] = np.clip(action, -1, 1)
        self._step(self._model, self._data, PHYSICS_STEPS)

    def frame(self) -> Frame:
        frame: Frame = render(self._data.qpos[None])[0]
        return frame

    def state(self) -> FloatArray:
        return np.concatenate((self._data.qpos, self._data.qvel))

    def close(self) -> None:
        """There is nothing to free."""


class Reacher(Environment):
    """Arms that uniformly random torques move from a random pose, at rest in the beginning.

    Start, data policy and success test are those of `stable_worldmodel`, with two differences: its
    test does not accept a shoulder that is full turns away from the goal's, which no frame shows,
    and it also looks at the arm in the middle of an action.
    """

    name = "reacher"
    action_low = (-1.0, -1.0)
    action_high = (1.0, 1.0)
    state_dim = 4
    state_names = ("shoulder", "wrist", "shoulder_velocity", "wrist_velocity")
    state_periods: Mapping[str, float] = MappingProxyType({"shoulder": 2 * math.pi})
    trajectory_steps = 200

    def simulation(self) -> ReacherSimulation:
        return ReacherSimulation()

    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        for states, actions in _simulate(episodes, steps, seed):
            for episode_states, episode_actions in zip(states, actions, strict=True):
                yield RecordedEpisode(
                    frames=render(episode_states[::frame_every, :2]),
                    actions=episode_actions,
                    states=episode_states,
                )

    def trajectories(self, episodes: int, steps: int, seed: int) -> FloatArray:
        return np.concatenate([states for states, _ in _simulate(episodes, steps, seed)])

    def reached(self, state: FloatArray, goal: FloatArray) -> bool:
        return bool((np.abs(angle_differences(state, goal)) < TOLERANCE).all())


REACHER = Reacher()


def angle_differences(states: FloatArray, goals: FloatArray) -> NDArray[np.float64]:
    """Turns (…, 2) in [-π, π) that take the joints of states (…, 4) to those of goals (…, 4).

    They are the shortest ones: full turns do not count.
    """
    differences = np.asarray(goals, np.float64)[..., :2] - np.asarray(states, np.float64)[..., :2]
    return (differences + np.pi) % (2 * np.pi) - np.pi


@lru_cache
def _model() -> Any:
    """The arm. Simulations only read it, so all of them share it."""
    description = files("lewm_models.environments") / "reacher.xml"
    return load_mujoco(Reacher.name).MjModel.from_xml_string(description.read_text())


def _simulate(
    episodes: int, steps: int, seed: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield states (n, steps + 1, 4) and actions (n, steps, 2) of some episodes after others.

    An episode depends on the seed and its number only.
    """
    for begin in range(0, episodes, EPISODES_AT_ONCE):
        numbers = range(begin, min(begin + EPISODES_AT_ONCE, episodes))
        starts = np.zeros((len(numbers), 4), np.float32)
        actions = np.empty((len(numbers), steps, 2), np.float32)
        for row, number in enumerate(numbers):
            generator = np.random.default_rng((seed, number))
            starts[row, :2] = generator.uniform(-1, 1, 2) * (np.pi, WRIST_LIMIT)
            actions[row] = generator.uniform(-1, 1, (steps, 2))
        yield _roll_out(starts, actions), actions


def _roll_out(starts: NDArray[np.float32], actions: NDArray[np.float32]) -> NDArray[np.float32]:
    """The states (N, steps + 1, 4) that actions (N, steps, 2) lead to, the starts (N, 4) first.

    They are bit for bit those of `ReacherSimulation`.
    """
    model = _model()
    count, steps = actions.shape[:2]
    full_state = np.zeros((count, 1 + starts.shape[1]))  # with the time in front
    full_state[:, 1:] = starts
    reached, _ = import_module("mujoco.rollout").rollout(
        model,
        load_mujoco(Reacher.name).MjData(model),
        full_state,
        np.repeat(actions.astype(np.float64), PHYSICS_STEPS, axis=1),
    )
    states = np.empty((count, steps + 1, starts.shape[1]), np.float32)
    states[:, 0] = starts
    states[:, 1:] = reached[:, PHYSICS_STEPS - 1 :: PHYSICS_STEPS, 1:]
    return states
