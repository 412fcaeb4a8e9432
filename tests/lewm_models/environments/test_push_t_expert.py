"""Push-T's expert."""

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from lewm_models.environments.push_t import PushTSimulation, reached
from lewm_models.environments.push_t_environment import draw_state
from lewm_models.environments.push_t_expert import PushTExpert, block_is_placed, is_clear

Array = NDArray[np.float64]


def tasks(count: int) -> list[tuple[Array, Array]]:
    """Random starts and goals."""
    generator = np.random.default_rng(0)
    return [(draw_state(generator), draw_state(generator)) for _ in range(count)]


def solve(start: Array, goal: Array, noise: float = 0.0, steps: int = 200) -> list[Array]:
    """The states of an episode, which ends where its goal is reached."""
    generator, expert, simulation = np.random.default_rng(1), PushTExpert(), PushTSimulation()
    simulation.reset(start)
    states = [simulation.state()]
    while len(states) <= steps and not reached(states[-1], goal):
        action = expert.action(states[-1], goal)
        assert np.abs(action).max() <= 1
        simulation.step(action + noise * generator.standard_normal(2))
        states.append(simulation.state())
    return states


def test_the_expert_reaches_random_goals() -> None:
    for start, goal in tasks(15):
        assert not reached(start, goal)
        assert reached(solve(start, goal)[-1], goal)


def test_random_actions_do_not() -> None:
    generator, simulation = np.random.default_rng(1), PushTSimulation()
    for start, goal in tasks(15):
        simulation.reset(start)
        for _ in range(200):
            simulation.step(generator.uniform(-1, 1, 2))
            assert not reached(simulation.state(), goal)


def test_the_expert_copes_with_noise() -> None:
    assert sum(reached(solve(*task, noise=0.2, steps=300)[-1], task[1]) for task in tasks(10)) >= 9


def test_the_agent_goes_around_the_block() -> None:
    # The goal lies above the block, which has to be pushed from below, and the agent is above it.
    start = np.array((256, 120, 256, 220, 0, 0, 0, 0, 0, 0), float)
    goal = np.array((256, 440, 256, 140, 0, 0, 0, 0, 0, 0), float)
    states = solve(start, goal)
    assert reached(states[-1], goal)
    moved = [math.dist(state[2:4], start[2:4]) for state in states]
    first_push = next(step for step, distance in enumerate(moved) if distance > 1)
    assert states[first_push][1] > 260
    assert max(before - after for before, after in pairwise(moved)) < 2


def test_a_placed_block_is_left_alone() -> None:
    start = np.array((256, 120, 256, 220, 0, 0, 0, 0, 0, 0), float)
    goal = np.array((256, 450, 256, 220, 0, 0, 0, 0, 0, 0), float)
    states = solve(start, goal)
    assert reached(states[-1], goal)
    assert all(state[2:5].tolist() == start[2:5].tolist() for state in states)


@pytest.mark.parametrize(
    ("state", "clear"),
    [
        ((256, 150, 256, 220, 0), True),
        ((256, 204, 256, 220, 0), False),  # the agent nearly touches the bar's outer edge
        ((256, 300, 256, 220, 0), False),  # the agent is in the stem
        ((256, 150, 60, 220, 0), False),  # the bar is beyond the wall
        ((5, 150, 256, 220, 0), False),
    ],
)
def test_clear_states(state: tuple[float, ...], clear: bool) -> None:
    assert is_clear(np.array((*state, 0, 0, 0, 0, 0), float)) is clear


def test_a_block_is_placed_only_well_within_what_counts_as_reached() -> None:
    goal = np.array((0, 0, 256, 220, 6.2, 0, 0, 0, 0, 0), float)
    assert block_is_placed(goal + np.array((0, 0, 8, 0, 0.15, 0, 0, 0, 0, 0)), goal)
    assert not block_is_placed(goal + np.array((0, 0, 10, 0, 0, 0, 0, 0, 0, 0)), goal)
    assert not block_is_placed(goal + np.array((0, 0, 0, 0, 0.2, 0, 0, 0, 0, 0)), goal)
