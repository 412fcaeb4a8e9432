"""Two-Room as a gymnasium environment: gymnasium's checker, the options, and the motion."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from lewm_models.environments.two_room import VectorTwoRoom, render
from lewm_models.environments.two_room_gym import ENV_ID, TwoRoomEnv

RIGHT = np.array([1.0, 0.0], np.float32)


@pytest.fixture
def env() -> Iterator[TwoRoomEnv]:
    env = TwoRoomEnv(render_mode="rgb_array")
    yield env
    env.close()


@pytest.mark.parametrize("env_id", [ENV_ID, f"{TwoRoomEnv.__module__}:{ENV_ID}"])
def test_gymnasium_s_checker_accepts_the_environment(env_id: str) -> None:
    env = gymnasium.make(env_id, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_steps_are_those_of_the_vectorised_environment(env: TwoRoomEnv) -> None:
    observation, info = env.reset(seed=3)
    start, goal = (torch.from_numpy(part.copy())[None] for part in np.split(observation, 2))
    vectorised = VectorTwoRoom(start, goal)
    assert np.array_equal(info["goal_frame"], render(goal)[0].numpy())
    env.action_space.seed(0)
    for _ in range(30):
        action = env.action_space.sample()
        observation, _, terminated, truncated, info = env.step(action)
        reached = vectorised.step(torch.from_numpy(action)[None])
        assert observation.tolist() == [*vectorised.positions[0].tolist(), *goal[0].tolist()]
        assert observation in env.observation_space
        assert info["distance"] == vectorised.distances()[0]
        assert (terminated, truncated) == (bool(reached[0]), False)
        frame = env.render()
        assert frame is not None
        assert np.array_equal(frame, vectorised.frames()[0].numpy())


def test_an_episode_ends_at_less_than_the_radius(env: TwoRoomEnv) -> None:
    _, info = env.reset(options={"position": (50, 100), "goal": (76, 100)})
    assert info["distance"] == 26.0
    _, reward, terminated, *_ = env.step(RIGHT)
    assert (reward, terminated) == (0.0, False)
    _, reward, terminated, _, info = env.step(RIGHT)
    assert (info["distance"], reward, terminated) == (16.0, 0.0, False)
    _, reward, terminated, *_ = env.step(RIGHT)
    assert (reward, terminated) == (1.0, True)


def test_a_given_point_does_not_change_the_other_one(env: TwoRoomEnv) -> None:
    both_random, _ = env.reset(seed=5)
    position_given, _ = env.reset(seed=5, options={"position": (60, 70)})
    goal_given, _ = env.reset(seed=5, options={"goal": (160, 70)})
    assert position_given.tolist() == [60, 70, *both_random[2:]]
    assert goal_given.tolist() == [*both_random[:2], 160, 70]


def test_a_seed_gives_a_sequence_of_different_episodes(env: TwoRoomEnv) -> None:
    first, _ = env.reset(seed=5)
    second, _ = env.reset()
    again, _ = env.reset(seed=5)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_a_caller_may_change_a_goal_frame(env: TwoRoomEnv) -> None:
    _, info = env.reset(seed=0)
    goal_frame = info["goal_frame"].copy()
    info["goal_frame"][:] = 0
    *_, info = env.step(RIGHT)
    assert np.array_equal(info["goal_frame"], goal_frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": (60, 60)}, "target"),
        ({"position": (60, 230)}, "position"),
        ({"goal": (60, 60, 60)}, "goal"),
        ({"goal": (float("nan"), 60)}, "goal"),
    ],
)
def test_wrong_options_are_named(env: TwoRoomEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


def test_a_wrong_render_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="human"):
        TwoRoomEnv(render_mode="human")  # type: ignore[arg-type]


def test_a_step_before_the_first_reset_is_refused(env: TwoRoomEnv) -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(RIGHT)


def test_without_a_render_mode_nothing_is_drawn() -> None:
    env = TwoRoomEnv()
    env.reset(seed=0)
    assert env.render() is None
