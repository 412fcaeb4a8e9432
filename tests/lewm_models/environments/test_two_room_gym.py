"""Two-Room behind gymnasium: its own checker, the options, and the vectorised form's results."""

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


def test_gymnasium_accepts_it() -> None:
    env = gymnasium.make(ENV_ID, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_steps_are_those_of_the_vectorised_form(env: TwoRoomEnv) -> None:
    observation, info = env.reset(seed=3)
    start, goal = (torch.from_numpy(part.copy())[None] for part in np.split(observation, 2))
    rooms = VectorTwoRoom(start, goal)
    assert np.array_equal(info["goal_frame"], render(goal)[0].numpy())
    env.action_space.seed(0)
    for _ in range(30):
        action = env.action_space.sample()
        observation, _, terminated, truncated, info = env.step(action)
        reached = rooms.step(torch.from_numpy(action)[None])
        assert observation.tolist() == [*rooms.positions[0].tolist(), *goal[0].tolist()]
        assert observation in env.observation_space
        assert info["distance"] == rooms.distances()[0]
        assert (terminated, truncated) == (bool(reached[0]), False)
        frame = env.render()
        assert frame is not None
        assert np.array_equal(frame, rooms.frames()[0].numpy())


def test_an_episode_ends_strictly_within_the_radius(env: TwoRoomEnv) -> None:
    _, info = env.reset(options={"position": (50, 100), "goal": (76, 100)})
    assert info["distance"] == 26.0
    _, reward, terminated, *_ = env.step(RIGHT)
    assert (reward, terminated) == (0.0, False)
    _, reward, terminated, _, info = env.step(RIGHT)
    assert (info["distance"], reward, terminated) == (16.0, 0.0, False)
    _, reward, terminated, *_ = env.step(RIGHT)
    assert (reward, terminated) == (1.0, True)


def test_a_given_point_leaves_the_other_as_seeded(env: TwoRoomEnv) -> None:
    seeded, _ = env.reset(seed=5)
    placed, _ = env.reset(seed=5, options={"position": (60, 70)})
    aimed, _ = env.reset(seed=5, options={"goal": (160, 70)})
    assert placed.tolist() == [60, 70, *seeded[2:]]
    assert aimed.tolist() == [*seeded[:2], 160, 70]


def test_each_episode_of_a_seed_differs(env: TwoRoomEnv) -> None:
    first, _ = env.reset(seed=5)
    second, _ = env.reset()
    again, _ = env.reset(seed=5)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_what_a_caller_does_to_a_goal_frame_stays_with_the_caller(env: TwoRoomEnv) -> None:
    _, info = env.reset(seed=0)
    kept = info["goal_frame"].copy()
    info["goal_frame"][:] = 0
    *_, info = env.step(RIGHT)
    assert np.array_equal(info["goal_frame"], kept)


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


def test_it_must_be_reset_first(env: TwoRoomEnv) -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(RIGHT)


def test_it_draws_only_if_asked_to() -> None:
    env = TwoRoomEnv()
    env.reset(seed=0)
    assert env.render() is None
