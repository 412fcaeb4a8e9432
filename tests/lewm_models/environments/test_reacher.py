"""Reacher moves as dm_control's, its frames determine the joint angles, and recordings repeat."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lewm_models.environments.environment import FloatArray
from lewm_models.environments.reacher import (
    REACHER,
    TOLERANCE,
    WRIST_LIMIT,
    ReacherSimulation,
    angle_differences,
)
from lewm_models.environments.reacher_frames import (
    FINGER_COLOUR,
    FOREARM_COLOUR,
    FRAME_SIZE,
    GROUND,
    HUB_COLOUR,
    PIXELS_PER_METRE,
    UPPER_ARM_COLOUR,
    render,
)
from lewm_models.environments.registry import find_environment
from lewm_models.preprocessing import resize

START = np.array([3.0, 1.2, 0.0, 0.0])
# What dm_control 1.0.50 gives from START, with every action for two of its steps: 10 × (0.7, -0.3),
# 15 × (-1, 1), which drives the wrist against its limit, and 5 × (0, 0).
DM_CONTROL_STATES = {
    10: (4.01023204, 0.48260829, 3.18858599, -1.69908393),
    25: (1.63682571, 2.89096133, -5.16743901, -0.185436),
    30: (1.41272814, 2.79478616, -0.10456539, -0.10078999),
}
DM_CONTROL_ACTIONS = [(0.7, -0.3)] * 10 + [(-1.0, 1.0)] * 15 + [(0.0, 0.0)] * 5


def run(simulation: ReacherSimulation, actions: object) -> FloatArray:
    """The states after each action."""
    states = []
    for action in np.asarray(actions, np.float64):
        simulation.step(action)
        states.append(simulation.state())
    return np.array(states)


def kinetic_energy(state: FloatArray) -> float:
    """The energy of both rods, in joules; masses and inertias are those of dm_control."""
    shoulder, wrist, shoulder_speed, wrist_speed = state
    parts = (
        (0.0418879, 6.33136e-5, 0.06, 0.0),
        (0.0356047, 3.91757e-5, 0.12, 0.05),
        (0.00418879, 1.67552e-7, 0.12, 0.12),
    )
    energy = 0.0
    for mass, inertia, along_upper, along_fore in parts:
        turn = shoulder_speed + (wrist_speed if along_fore else 0.0)
        x = -along_upper * math.sin(shoulder) * shoulder_speed
        x -= along_fore * math.sin(shoulder + wrist) * turn
        y = along_upper * math.cos(shoulder) * shoulder_speed
        y += along_fore * math.cos(shoulder + wrist) * turn
        energy += 0.5 * mass * (x * x + y * y) + 0.5 * inertia * turn**2
    return energy


def test_moves_as_in_dm_control() -> None:
    simulation = REACHER.simulation()
    simulation.reset(START)
    states = run(simulation, DM_CONTROL_ACTIONS)
    for count, expected in DM_CONTROL_STATES.items():
        np.testing.assert_allclose(states[count - 1], expected, atol=1e-6)


def test_friction_takes_energy_from_an_arm_without_torque() -> None:
    simulation = REACHER.simulation()
    simulation.reset(np.array([0.3, -1.0, 4.0, -3.0]))
    energies = [kinetic_energy(state) for state in run(simulation, np.zeros((50, 2)))]
    assert np.all(np.diff([kinetic_energy(np.array([0.3, -1.0, 4.0, -3.0])), *energies]) < 0)
    assert energies[-1] < 1e-7


def test_motors_cannot_give_more_energy_than_their_work() -> None:
    """The work is the torque, 0.05 N m for an action of 1, times the angle that the joint turns."""
    simulation = REACHER.simulation()
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    simulation.reset(np.zeros(4))
    work, before = 0.0, simulation.state()
    for action in actions:
        simulation.step(action)
        state = simulation.state()
        work += float(0.05 * action @ (state - before)[:2])
        assert kinetic_energy(state) < work + 1e-4
        before = state


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_wrist_stays_within_its_limit(side: float) -> None:
    simulation = REACHER.simulation()
    simulation.reset(np.zeros(4))
    wrist = run(simulation, np.full((100, 2), (0.0, side)))[:, 1]
    assert WRIST_LIMIT - 0.05 < np.abs(wrist).max() < WRIST_LIMIT + 0.15
    assert abs(wrist[-1]) == pytest.approx(WRIST_LIMIT, abs=0.1)  # the torque holds it there


def test_the_shoulder_has_no_limit() -> None:
    simulation = REACHER.simulation()
    simulation.reset(np.zeros(4))
    assert run(simulation, np.full((100, 2), (1.0, 0.0)))[-1, 0] > 2 * math.pi


def test_actions_are_clipped_to_the_bounds() -> None:
    at_bound, beyond = REACHER.simulation(), REACHER.simulation()
    for simulation in (at_bound, beyond):
        simulation.reset(START)
    np.testing.assert_array_equal(run(at_bound, [(1.0, -1.0)] * 5), run(beyond, [(7.0, -1.5)] * 5))


def test_a_reset_forgets_all_that_was_before() -> None:
    """Also what the solver keeps of the last contact with the wrist's limit."""
    fresh, used = REACHER.simulation(), REACHER.simulation()
    used.reset(np.zeros(4))
    run(used, [(0.5, 1.0)] * 60)
    state = np.array([-40.0, 2.79, 0.1, 0.7], np.float32)
    for simulation in (fresh, used):
        simulation.reset(state)
        np.testing.assert_array_equal(simulation.state(), state)
    np.testing.assert_array_equal(fresh.frame(), used.frame())
    np.testing.assert_array_equal(run(fresh, DM_CONTROL_ACTIONS), run(used, DM_CONTROL_ACTIONS))


def test_simulations_in_several_threads_do_not_disturb_each_other() -> None:
    def states(seed: int) -> FloatArray:
        simulation = REACHER.simulation()
        simulation.reset(START)
        return run(simulation, np.random.default_rng(seed).uniform(-1, 1, (200, 2)))

    alone = [states(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(states, range(4))), alone)


@pytest.mark.parametrize(("shoulder", "wrist"), [(0.0, 0.0), (0.7, 1.1), (-2.0, -2.6), (3.1, 0.4)])
def test_frames_show_each_part_where_it_is(shoulder: float, wrist: float) -> None:
    [frame] = render(np.array([[shoulder, wrist]]))
    assert frame.shape == (FRAME_SIZE, FRAME_SIZE, 3)
    assert frame.dtype == np.uint8

    def pixel(along_upper: float, along_fore: float) -> tuple[int, ...]:
        x = along_upper * math.cos(shoulder) + along_fore * math.cos(shoulder + wrist)
        y = along_upper * math.sin(shoulder) + along_fore * math.sin(shoulder + wrist)
        middle = FRAME_SIZE / 2 - 0.5
        column = round(middle + x * PIXELS_PER_METRE)
        return tuple(frame[round(middle - y * PIXELS_PER_METRE), column].tolist())

    assert pixel(0.0, 0.0) == HUB_COLOUR
    assert pixel(0.05, 0.0) == UPPER_ARM_COLOUR
    assert pixel(0.12, 0.0) == pixel(0.12, 0.05) == FOREARM_COLOUR
    assert pixel(0.12, 0.12) == FINGER_COLOUR
    assert pixel(-0.03, 0.0) == pixel(0.12, 0.135) == GROUND


def test_the_whole_arm_is_in_the_frame_and_edges_are_smooth() -> None:
    frames = render(np.array([[angle, 0.0] for angle in np.linspace(-math.pi, math.pi, 9)]))
    border = np.concatenate([frames[:, [0, -1]], frames[:, :, [0, -1]].swapaxes(1, 2)], axis=1)
    assert (border == GROUND).all()
    # Areas of four rods and discs of radius 0.01 m, in pixels; parts that overlap count once.
    area = 2 * 0.01 * (0.12 + 0.1) + math.pi * 0.01**2 * 2
    shown = (frames != GROUND).any(axis=-1).sum(axis=(1, 2))
    assert shown == pytest.approx(area * PIXELS_PER_METRE**2, rel=0.2)
    covered = (np.abs(frames - np.array(GROUND, float)) > 0).any(axis=-1)
    levels = len(np.unique(frames[1][covered[1]], axis=0))
    assert levels > 20  # colours between the ground and the arm


def test_a_small_frame_determines_the_angles() -> None:
    """Of all poses on a grid, the frame of a pose at 64 px is most like that of a neighbour."""
    step = 2 * math.pi / 48
    shoulders = np.arange(48) * step
    wrists = np.arange(-math.pi + step, math.pi, step)
    wrists = wrists[np.abs(wrists) <= WRIST_LIMIT]
    grid = np.stack(np.meshgrid(shoulders, wrists, indexing="ij"), axis=-1).reshape(-1, 2)
    poses = np.random.default_rng(1).uniform(-1, 1, (60, 2)) * (math.pi, WRIST_LIMIT - step)

    def small(angles: NDArray[np.float64]) -> NDArray[np.float32]:
        frames = resize(torch.from_numpy(render(angles)), 64).numpy()
        return frames.reshape(len(angles), -1).astype(np.float32)

    known = small(grid)
    squares = (known * known).sum(axis=1)
    nearest = grid[np.argmin(squares - 2 * small(poses) @ known.T, axis=1)]
    assert np.abs(angle_differences(nearest, poses)).max() < 2 * step


def test_half_the_tolerance_changes_a_small_frame() -> None:
    for turn in ((TOLERANCE / 2, 0.0), (0.0, TOLERANCE / 2)):
        frames = resize(
            torch.from_numpy(render(np.array([(0.4, 1.0), np.add((0.4, 1.0), turn)]))), 64
        )
        assert (frames[0].int() - frames[1].int()).abs().max() > 8


@pytest.mark.parametrize("joint", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_goal_is_reached_within_the_tolerance_of_each_joint(joint: int, sign: int) -> None:
    goal = np.array([0.3, -0.5, 1.0, -2.0])
    near, far = goal.copy(), goal.copy()
    near[joint] += sign * (TOLERANCE - 1e-6)
    far[joint] += sign * (TOLERANCE + 1e-6)
    assert REACHER.reached(near, goal)
    assert not REACHER.reached(far, goal)


def test_full_turns_and_velocities_do_not_count() -> None:
    goal = np.array([math.pi - 0.01, 0.2, 0.0, 0.0])
    assert REACHER.reached(np.array([0.02 - math.pi, 0.2, 5.0, -5.0]), goal)
    assert REACHER.reached(np.array([0.02 + 5 * math.pi, 0.2, 0.0, 0.0]), goal)
    assert not REACHER.reached(np.array([0.06 - math.pi, 0.2, 0.0, 0.0]), goal)
    # The two ends of the wrist's range are 40° apart, and never count as the same.
    assert not REACHER.reached(
        np.array([0.0, WRIST_LIMIT, 0, 0]), np.array([0.0, -WRIST_LIMIT, 0, 0])
    )


def test_recordings_repeat_and_hold_what_the_simulation_does() -> None:
    first, again = (list(REACHER.record(3, 20, seed=5, frame_every=5)) for _ in range(2))
    simulation = REACHER.simulation()
    for episode, repeated in zip(first, again, strict=True):
        for name in ("frames", "actions", "states"):
            np.testing.assert_array_equal(getattr(episode, name), getattr(repeated, name))
        assert episode.frames.shape == (5, FRAME_SIZE, FRAME_SIZE, 3)
        assert episode.actions.dtype == episode.states.dtype == np.float32
        simulation.reset(episode.states[0])
        assert not episode.states[0, 2:].any()
        for step, action in enumerate(episode.actions):
            simulation.step(action)
            np.testing.assert_array_equal(
                simulation.state().astype(np.float32), episode.states[step + 1]
            )
        np.testing.assert_array_equal(render(episode.states[::5, :2]), episode.frames)


def test_an_episode_depends_on_its_seed_and_number_only() -> None:
    [few, more] = (REACHER.trajectories(count, 10, seed=8) for count in (3, 300))
    np.testing.assert_array_equal(more[:3], few)
    recorded = [episode.states for episode in REACHER.record(3, 10, seed=8, frame_every=10)]
    np.testing.assert_array_equal(recorded, few)
    assert not np.isin(REACHER.trajectories(3, 10, seed=9)[:, 0], few[:, 0, :2]).all()
    assert len(np.unique(more[:, 0, 0])) == 300


def test_the_data_policy_covers_all_poses_and_torques() -> None:
    episodes = list(REACHER.record(200, 50, seed=0, frame_every=50))
    states = np.concatenate([episode.states for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    turns = np.histogram(states[:, 0] % (2 * math.pi), bins=8, range=(0, 2 * math.pi))[0]
    bends = np.histogram(states[:, 1], bins=8, range=(-WRIST_LIMIT, WRIST_LIMIT))[0]
    for counts in (turns, bends):
        assert counts.min() > 0.6 * counts.mean()
    np.testing.assert_allclose(actions.std(axis=0), 1 / math.sqrt(3), rtol=0.02)
    assert np.abs(actions).max() <= 1


def test_it_is_found_by_its_name() -> None:
    assert find_environment("reacher") is REACHER
