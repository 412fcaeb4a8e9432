"""Push-T as an `Environment`, with the data policy: the expert with noise, from goal to goal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lewm_models.environments import push_t
from lewm_models.environments.environment import Environment, FloatArray, RecordedEpisode
from lewm_models.environments.push_t import PushTSimulation
from lewm_models.environments.push_t_expert import PushTExpert, block_is_placed, is_clear

GOAL_STEPS = 120
"""After these steps the policy gives up a goal."""
DETOUR_PROBABILITY = 0.03
"""The probability in each step that a detour begins: one random action for some steps."""
DETOUR_STEPS = (3, 9)
"""A detour lasts at least the first and less than the second."""

START_REACH, GOAL_REACH = 150.0, 80.0
"""Blocks start within this distance of the table's middle, per axis, and are pushed to this one.
As in the field's data, where people push them to the middle, most contacts are far from walls."""

Generator = np.random.Generator


def draw_state(generator: Generator, reach: float = START_REACH) -> NDArray[np.float64]:
    """A random state (10,) at rest, with agent and block apart from each other and the walls.

    Args:
        generator: the source of randomness.
        reach: the most pixels from the table's middle to the block's centre of gravity, per axis.
    """
    state = np.zeros(push_t.STATE_DIM)
    middle = push_t.TABLE_SIZE / 2
    while True:
        state[:2] = generator.uniform(0.0, push_t.TABLE_SIZE, size=2)
        state[4] = angle = generator.uniform(0.0, 2 * math.pi)
        center = generator.uniform(middle - reach, middle + reach, size=2)
        state[2] = center[0] + push_t.CENTER_OF_GRAVITY * math.sin(angle)
        state[3] = center[1] - push_t.CENTER_OF_GRAVITY * math.cos(angle)
        if is_clear(state):
            return state


class DataPolicy:
    """The expert with noise, with new goals for the block.

    Speeds and noise are drawn for each episode, so that data hold states on and off the expert's
    ways. As soon as the block is placed, or after `GOAL_STEPS`, the goal changes.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._expert = PushTExpert(
            push_speed=generator.uniform(3.5, 8.0), travel_speed=generator.uniform(7.0, 13.0)
        )
        self._noise_std = generator.uniform(0.02, 0.15)
        self._goal = draw_state(generator, GOAL_REACH)
        self._steps_to_goal = GOAL_STEPS
        self._detour = np.zeros(2)
        self._detour_steps = 0

    def action(self, state: FloatArray) -> NDArray[np.float32]:
        """The next action (2,), within the bounds."""
        generator = self._generator
        self._steps_to_goal -= 1
        if self._steps_to_goal < 0 or block_is_placed(state, self._goal):
            self._goal = draw_state(generator, GOAL_REACH)
            self._steps_to_goal = GOAL_STEPS
            self._expert.restart()
        if self._detour_steps == 0 and generator.random() < DETOUR_PROBABILITY:
            self._detour_steps = int(generator.integers(*DETOUR_STEPS))
            self._detour = generator.uniform(-0.4, 0.4, size=2)
        action = self._expert.action(state, self._goal)
        if self._detour_steps > 0:
            self._detour_steps -= 1
            # A detour does not lead off the table.
            middle = push_t.TABLE_SIZE / 2
            outwards = (state[:2] - middle) * self._detour > 0
            at_edge = np.abs(state[:2] - middle) > middle - 40
            action = np.where(outwards & at_edge, action, self._detour)
        noise = self._noise_std * generator.standard_normal(2)
        return (action + noise).clip(-1.0, 1.0).astype(np.float32)


class PushT(Environment):
    """An agent that has to push a block into a pose, and to end at a place itself."""

    name = push_t.NAME
    action_low = (-1.0, -1.0)
    action_high = (1.0, 1.0)
    state_dim = push_t.STATE_DIM
    state_names = (
        *("agent_x", "agent_y", "block_x", "block_y", "block_angle"),
        *("agent_velocity_x", "agent_velocity_y", "block_velocity_x", "block_velocity_y"),
        "block_angular_velocity",
    )
    state_periods: Mapping[str, float] = MappingProxyType({"block_angle": 2 * math.pi})

    def simulation(self) -> PushTSimulation:
        return PushTSimulation()

    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        simulation = self.simulation()
        for episode in range(episodes):
            states, actions = _drive(simulation, steps, np.random.default_rng((seed, episode)))
            frames = np.stack([push_t.render(state) for state in states[::frame_every]])
            yield RecordedEpisode(frames=frames, actions=actions, states=states)

    def trajectories(self, episodes: int, steps: int, seed: int) -> FloatArray:
        simulation = self.simulation()
        generators = [np.random.default_rng((seed, episode)) for episode in range(episodes)]
        return np.stack([_drive(simulation, steps, generator)[0] for generator in generators])

    def reached(self, state: FloatArray, goal: FloatArray) -> bool:
        return push_t.reached(state, goal)


def _drive(
    simulation: PushTSimulation, steps: int, generator: Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """States (steps + 1, 10) and actions (steps, 2) of an episode of the data policy."""
    simulation.reset(draw_state(generator))
    policy = DataPolicy(generator)
    states, actions = [simulation.state()], []
    for _ in range(steps):
        actions.append(policy.action(states[-1]))
        simulation.step(actions[-1])
        states.append(simulation.state())
    return np.array(states, np.float32), np.array(actions, np.float32)


PUSH_T = PushT()
