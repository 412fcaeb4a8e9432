"""Two-Room with an occluder: what the camera sees, and how often the agent is hidden."""

import numpy as np

from lewm_models.environments.registry import find_environment
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.environments.two_room_occluded import (
    OCCLUDED_TWO_ROOM,
    OCCLUDER_BOTTOM,
    OCCLUDER_GREY,
    OCCLUDER_TOP,
    hides,
)

BAR = slice(OCCLUDER_TOP, OCCLUDER_BOTTOM + 1)


def test_the_bar_covers_the_frames_of_two_room_and_changes_nothing_else() -> None:
    occluded, plain = (
        list(environment.record(3, 20, seed=1, frame_every=5))
        for environment in (OCCLUDED_TWO_ROOM, TWO_ROOM)
    )
    for episode, expected in zip(occluded, plain, strict=True):
        assert np.array_equal(episode.states, expected.states)
        assert np.array_equal(episode.actions, expected.actions)
        assert (episode.frames[:, BAR] == OCCLUDER_GREY).all()
        outside = np.delete(np.arange(224), BAR)
        shown = ~hides(episode.states[::5])
        assert np.array_equal(episode.frames[shown][:, outside], expected.frames[shown][:, outside])


def test_a_simulation_shows_what_is_recorded() -> None:
    [episode] = OCCLUDED_TWO_ROOM.record(1, 5, seed=3)
    simulation = OCCLUDED_TWO_ROOM.simulation()
    simulation.reset(episode.states[0])
    for step, action in enumerate(episode.actions):
        assert np.array_equal(simulation.frame(), episode.frames[step])
        simulation.step(action)


def test_the_agent_is_hidden_in_a_third_of_the_frames() -> None:
    states = OCCLUDED_TWO_ROOM.trajectories(1500, 100, seed=0)
    assert abs(hides(states).mean() - 1 / 3) < 0.02


def test_no_pixel_shows_a_hidden_agent() -> None:
    simulation = OCCLUDED_TWO_ROOM.simulation()
    frames = []
    for state in ([60.0, 99.0], [60.0, 161.0], [160.0, 130.0]):
        assert hides(np.array(state))
        simulation.reset(np.array(state))
        frames.append(simulation.frame())
    assert all(np.array_equal(frame, frames[0]) for frame in frames)
    simulation.reset(np.array([60.0, OCCLUDER_TOP - 5.0]))
    assert not hides(np.array([60.0, OCCLUDER_TOP - 5.0]))
    assert np.abs(simulation.frame().astype(int) - frames[0]).max() > 128


def test_it_is_found_by_its_factory() -> None:
    name = "lewm_models.environments.two_room_occluded:OCCLUDED_TWO_ROOM"
    assert find_environment(name) is OCCLUDED_TWO_ROOM
