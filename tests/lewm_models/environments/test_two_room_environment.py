"""Two-Room as an environment: the same motion, frames and data as its functions."""

import numpy as np
import pytest
import torch

from lewm_models.environments import two_room
from lewm_models.environments.environment import evaluation_seed
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.environments.two_room_policy import simulate_trajectories


def test_a_simulation_moves_and_draws_as_the_functions_do() -> None:
    [episode] = TWO_ROOM.record(1, 40, seed=3)
    simulation = TWO_ROOM.simulation()
    simulation.reset(episode.states[0])
    for step, action in enumerate(episode.actions):
        assert np.array_equal(simulation.state(), episode.states[step])
        assert np.array_equal(simulation.frame(), episode.frames[step])
        simulation.step(action)
    assert np.array_equal(simulation.state(), episode.states[-1])
    simulation.close()


def test_all_frames_or_some_of_them() -> None:
    complete, sparse = (list(TWO_ROOM.record(3, 12, seed=1, frame_every=every)) for every in (1, 5))
    for episode, part in zip(complete, sparse, strict=True):
        assert episode.frames.shape == (13, 224, 224, 3)
        assert np.array_equal(part.frames, episode.frames[::5])
        assert np.array_equal(part.states, episode.states)
        assert np.array_equal(part.actions, episode.actions)


def test_trajectories_are_those_of_recorded_episodes() -> None:
    states = TWO_ROOM.trajectories(3, 12, seed=1)
    for trajectory, episode in zip(states, TWO_ROOM.record(3, 12, seed=1), strict=True):
        assert np.array_equal(trajectory, episode.states)


def test_a_goal_is_reached_below_its_radius() -> None:
    goal = np.array([50.0, 60.0])
    for radius, is_inside in ((two_room.GOAL_RADIUS, False), (two_room.GOAL_RADIUS - 0.01, True)):
        assert TWO_ROOM.reached(goal + np.array([radius, 0]), goal) is is_inside


@pytest.mark.parametrize("offset", [25, 100])
def test_pairs_lie_on_trajectories(offset: int) -> None:
    starts, goals = next(TWO_ROOM.pairs_on_trajectories(offset, evaluation_seed(4)))
    generator = torch.Generator().manual_seed(evaluation_seed(4))
    positions, _ = simulate_trajectories(256, 150, generator)
    assert 200 < len(starts) <= 256
    for start, goal in zip(starts[:20], goals[:20], strict=True):
        step, agent = np.argwhere((positions.numpy() == start).all(axis=-1))[0]
        assert np.array_equal(positions[step + offset, agent].numpy(), goal)


def test_doing_nothing_is_no_motion() -> None:
    assert TWO_ROOM.neutral_action.tolist() == [0, 0]
