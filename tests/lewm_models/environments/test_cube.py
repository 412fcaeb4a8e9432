"""Cube: OGBench's world with exact resets, fast frames, the oracle's data and the success test."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from lewm_models.environments.cube import CUBE, CUBE_POSITION, FRAME_SIZE, TOLERANCE, CubeSimulation
from lewm_models.environments.environment import INSTALL_COMMAND, RecordedEpisode
from lewm_models.environments.registry import find_environment

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="a dependency of ogbench has no wheels"
)

EPISODES, STEPS, FRAME_EVERY, SEED = 2, 60, 20, 5


@pytest.fixture(scope="module")
def episodes() -> list[RecordedEpisode]:
    return list(CUBE.record(EPISODES, STEPS, SEED, FRAME_EVERY))


@pytest.fixture(scope="module")
def simulation() -> CubeSimulation:
    return CUBE.simulation()


def cube_pixels(frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a frame (H, W, 3) shows the cube, which alone is red: (H, W)."""
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    is_red: NDArray[np.bool_] = red > 60 + np.maximum(green, blue)
    return is_red


def test_a_reset_gives_exactly_the_state_and_what_follows(
    simulation: CubeSimulation, episodes: list[RecordedEpisode]
) -> None:
    for episode in (*episodes, *episodes):
        simulation.reset(episode.states[0])
        np.testing.assert_array_equal(simulation.state(), episode.states[0])
        np.testing.assert_array_equal(simulation.frame(), episode.frames[0])
        for action in episode.actions[:10]:
            simulation.step(action)
        np.testing.assert_allclose(simulation.state(), episode.states[10], atol=1e-3)


def test_the_oracle_moves_the_cube(episodes: list[RecordedEpisode]) -> None:
    for episode in episodes:
        cube = episode.states[:, CUBE_POSITION]
        assert cube[0, 2] == pytest.approx(0.02, abs=0.01)  # half of its side
        assert cube[:, 2].max() > 0.1
        assert np.abs(episode.actions).max() <= 1
        assert len(np.unique(episode.actions[:, 0])) > STEPS // 2  # there is noise


def test_recordings_repeat(episodes: list[RecordedEpisode]) -> None:
    [again] = CUBE.record(1, STEPS, SEED, FRAME_EVERY)
    for name in ("frames", "actions", "states"):
        np.testing.assert_array_equal(getattr(again, name), getattr(episodes[0], name))
    assert again.frames.shape == (STEPS // FRAME_EVERY + 1, FRAME_SIZE, FRAME_SIZE, 3)
    states = CUBE.trajectories(EPISODES, STEPS, SEED)
    np.testing.assert_array_equal(states, [episode.states for episode in episodes])
    assert not np.array_equal(episodes[0].states[0], episodes[1].states[0])


def test_frames_show_the_cube_where_it_is(
    simulation: CubeSimulation, episodes: list[RecordedEpisode]
) -> None:
    """The camera looks at the robot: y grows to the right, and x downwards, towards the camera."""

    def place(x: float, y: float) -> NDArray[np.float64]:
        state = episodes[0].states[0].astype(np.float64)
        state[CUBE_POSITION] = x, y, 0.02
        simulation.reset(state)
        pixels = np.argwhere(cube_pixels(simulation.frame()))
        assert 50 < len(pixels) < 1500
        middle: NDArray[np.float64] = pixels.mean(axis=0)
        return middle

    row, column = place(0.45, 0.0)
    assert place(0.45, 0.1)[1] > column + 20
    assert place(0.52, 0.0)[0] > row + 10
    assert column == pytest.approx(FRAME_SIZE / 2, abs=12)


def test_the_gripper_goes_where_actions_say(
    simulation: CubeSimulation, episodes: list[RecordedEpisode]
) -> None:
    def gripper() -> NDArray[np.float64]:
        return np.array(simulation.info["proprio/effector_pos"])

    for axis in range(3):
        action = np.zeros(5)
        simulation.reset(episodes[0].states[0])
        simulation.step(action)
        begin = gripper()
        action[axis] = -0.5
        for _ in range(4):
            simulation.step(action)
        moved = gripper() - begin
        assert moved[axis] < -0.03
        assert np.abs(np.delete(moved, axis)).max() < 0.02


def test_frames_of_several_threads_do_not_mix(episodes: list[RecordedEpisode]) -> None:
    def frames(episode: RecordedEpisode) -> NDArray[np.uint8]:
        simulation = CUBE.simulation()
        try:
            pictures = []
            for state in episode.states[::FRAME_EVERY]:
                simulation.reset(state)
                pictures.append(simulation.frame())
            return np.stack(pictures)
        finally:
            simulation.close()

    alone = [frames(episode) for episode in episodes]
    with ThreadPoolExecutor(2) as pool:
        for drawn, expected in zip(pool.map(frames, episodes), alone, strict=True):
            np.testing.assert_array_equal(drawn, expected)


def test_a_goal_is_reached_within_four_centimetres() -> None:
    goal = np.random.default_rng(0).normal(size=CUBE.state_dim)
    for direction in np.concatenate([np.eye(3), -np.eye(3), np.full((1, 3), 3**-0.5)]):
        near, far = np.zeros(CUBE.state_dim), np.zeros(CUBE.state_dim)
        near[CUBE_POSITION] = goal[CUBE_POSITION] + direction * (TOLERANCE - 1e-6)
        far[CUBE_POSITION] = goal[CUBE_POSITION] + direction * (TOLERANCE + 1e-6)
        assert CUBE.reached(near, goal)  # whatever the robot does
        assert not CUBE.reached(far, goal)


def test_it_is_found_by_its_name_and_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_environment("cube") is CUBE
    monkeypatch.setitem(sys.modules, "ogbench.manipspace.envs.cube_env", None)
    with pytest.raises(ValueError, match=r"--env cube: ogbench.*is needed") as failed:
        CUBE.simulation()
    assert INSTALL_COMMAND in str(failed.value)


def test_without_opengl_there_are_states_and_a_clear_error_for_frames() -> None:
    """In a process of its own, since OpenGL is chosen once."""
    program = (
        "from lewm_models.environments.cube import CUBE\n"
        "simulation = CUBE.simulation()\n"
        "simulation.step([0.1] * 5)\n"
        "assert len(simulation.state()) == CUBE.state_dim\n"
        "try:\n"
        "    simulation.frame()\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "MUJOCO_GL": "disabled"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"--env cube: frames need OpenGL \(.+\); .* libegl1", done.stdout)
