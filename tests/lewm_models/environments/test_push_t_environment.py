"""Push-T as an environment: its data policy and what it records."""

import hashlib
import subprocess
import sys

import numpy as np

from lewm_models.environments import push_t
from lewm_models.environments.environment import evaluation_seed
from lewm_models.environments.push_t_environment import GOAL_REACH, PUSH_T, draw_state
from lewm_models.environments.push_t_expert import is_clear
from lewm_models.environments.registry import find_environment


def test_push_t_is_found_by_its_name() -> None:
    assert find_environment("push-t") is PUSH_T
    assert (PUSH_T.action_dim, PUSH_T.state_dim) == (2, 10)


def test_episodes_are_what_the_simulation_does() -> None:
    [episode] = PUSH_T.record(1, 40, seed=3)
    simulation = PUSH_T.simulation()
    simulation.reset(episode.states[0])
    for step, action in enumerate(episode.actions):
        assert np.abs(simulation.state() - episode.states[step])[:4].max() < 0.01
        assert np.array_equal(push_t.render(episode.states[step]), episode.frames[step])
        simulation.step(action)
    assert np.abs(episode.actions).max() <= 1
    simulation.close()


def test_all_frames_or_some_of_them() -> None:
    complete, sparse = (list(PUSH_T.record(2, 12, seed=1, frame_every=every)) for every in (1, 5))
    for episode, part in zip(complete, sparse, strict=True):
        assert episode.frames.shape == (13, 96, 96, 3)
        assert np.array_equal(part.frames, episode.frames[::5])
        assert np.array_equal(part.states, episode.states)
        assert np.array_equal(part.actions, episode.actions)
        assert episode.states.dtype == episode.actions.dtype == np.float32


def test_an_episode_depends_on_the_seed_and_its_number_alone() -> None:
    few, many = (list(PUSH_T.record(count, 20, seed=1, frame_every=20)) for count in (2, 3))
    for episode, again in zip(few, many, strict=False):
        assert np.array_equal(episode.states, again.states)
    other = PUSH_T.trajectories(3, 20, seed=2)
    trajectories = PUSH_T.trajectories(3, 20, seed=1)
    assert np.array_equal(trajectories, [episode.states for episode in many])
    starts = np.concatenate((trajectories[:, 0], other[:, 0]))
    assert len(np.unique(starts, axis=0)) == 6


def test_another_process_records_the_same() -> None:
    program = """if True:
        import hashlib
        from lewm_models.environments.push_t_environment import PUSH_T
        print(hashlib.sha256(PUSH_T.trajectories(2, 60, seed=9).tobytes()).hexdigest())
    """
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    expected = hashlib.sha256(PUSH_T.trajectories(2, 60, seed=9).tobytes()).hexdigest()
    assert output.strip() == expected


def test_the_data_move_as_much_as_the_fields() -> None:
    episodes = list(PUSH_T.record(24, 150, seed=0, frame_every=150))
    actions = np.stack([episode.actions for episode in episodes])
    states = np.stack([episode.states for episode in episodes])
    # The field's data: 0.20 and 0.20 of actions, 75 and 74 pixels a second of velocities.
    assert np.abs(actions.std(axis=(0, 1)) - 0.20).max() < 0.03
    assert np.abs(states[..., 5:7].std(axis=(0, 1)) - 75).max() < 12
    moved = np.linalg.norm(states[:, 25:, 2:4] - states[:, :-25, 2:4], axis=-1)
    assert (moved > 20).mean() > 0.4
    agents = states[..., :2]
    assert agents.min() > -20
    assert agents.max() < push_t.TABLE_SIZE + 20


def test_starts_and_goals_of_the_protocols() -> None:
    starts, goals = next(PUSH_T.pairs_on_trajectories(25, evaluation_seed(4)))
    assert 25 < len(starts) <= PUSH_T.trajectories_per_draw
    for start, goal in zip(starts, goals, strict=True):
        assert not PUSH_T.reached(start, goal)
        assert PUSH_T.reached(goal, goal)


def test_random_states_are_clear_and_cover_the_table() -> None:
    generator = np.random.default_rng(0)
    states = np.array([draw_state(generator) for _ in range(300)])
    assert all(is_clear(state) for state in states)
    assert (states[:, 5:] == 0).all()
    assert (np.histogram(states[:, 4], bins=6, range=(0, 2 * np.pi))[0] > 25).all()
    assert (states[:, :2].min(axis=0) < 60).all()
    assert (states[:, :2].max(axis=0) > 450).all()
    goals = np.array([draw_state(generator, GOAL_REACH) for _ in range(100)])
    unit = np.stack((-np.sin(goals[:, 4]), np.cos(goals[:, 4])), axis=1)
    centers = goals[:, 2:4] + push_t.CENTER_OF_GRAVITY * unit
    assert np.abs(centers - push_t.TABLE_SIZE / 2).max() <= GOAL_REACH
