"""Push-T's physics, success test and frames.

`push_t_reference.npz` was made with gym-pusht 0.1.8 and pymunk 6.11.1: the block has stable-
worldmodel's size, starts have its order of angle and position, and each action's target is the
agent's position plus 100 times the action. Eight episodes have actions of the data policy; in four
a random agent shoves the block, also against walls.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lewm_models.environments import push_t
from lewm_models.environments.environment import Frame
from lewm_models.environments.push_t import PushTSimulation, block_distance, reached, render

REFERENCE = Path(__file__).with_name("push_t_reference.npz")

Array = NDArray[np.float64]

BLOCK = (256.0, 200.0, 0.0)
"""A pose in the middle of the table: the bar's outer edge is at y = 200."""


def state(agent: tuple[float, float], block: tuple[float, float, float] = BLOCK) -> Array:
    """A state at rest."""
    return np.array((*agent, *block, 0, 0, 0, 0, 0))


def simulated(start: Array, actions: Array) -> Array:
    """The states after each action, (steps, 10)."""
    simulation = PushTSimulation()
    simulation.reset(start)
    states = []
    for action in actions:
        simulation.step(action)
        states.append(simulation.state())
    return np.array(states)


def test_motion_is_that_of_gym_pusht() -> None:
    with np.load(REFERENCE) as reference:
        starts, actions, expected = (reference[name] for name in ("starts", "actions", "states"))
    moved = np.linalg.norm(expected[:, -1, 2:4] - starts[:, 2:4], axis=1)
    assert (moved > 20).sum() >= 10
    for i, start in enumerate(starts):
        np.testing.assert_allclose(simulated(start, actions[i]), expected[i], rtol=0, atol=1e-6)


def test_an_action_moves_the_agent_relative_to_where_it_is() -> None:
    for x, y in ((100.0, 420.0), (400.0, 450.0)):
        [after] = simulated(state((x, y)), np.array([[0.5, -1.0]]))
        # A critically damped motion with a time constant of 0.1 s covers 1 - 2/e of its way in
        # the first 0.1 s, and a little more in ten steps of 0.01 s.
        covered = 100 * (1 - 2 / math.e)
        assert after[0] - x == pytest.approx(0.5 * covered, rel=0.15)
        assert after[1] - y == pytest.approx(-covered, rel=0.15)
        assert after[2:5].tolist() == list(BLOCK)


def test_actions_are_clipped() -> None:
    start = state((100.0, 400.0))
    outside, at_bound = (simulated(start, np.array([[x, 0.3]])) for x in (7.0, 1.0))
    assert np.array_equal(outside, at_bound)


def test_a_push_through_the_centre_of_gravity_moves_the_block_straight() -> None:
    after = simulated(state((256.0, 180.0)), np.tile((0.0, 0.3), (10, 1)))[-1]
    assert after[3] > 240
    assert after[2] == pytest.approx(256, abs=1e-6)
    assert after[4] == pytest.approx(0, abs=1e-9)
    assert after[1] == pytest.approx(after[3] - push_t.AGENT_RADIUS, abs=1.5)


@pytest.mark.parametrize(("offset", "turn"), [(60.0, 1), (-60.0, -1)])
def test_a_push_beside_the_centre_of_gravity_turns_the_block(offset: float, turn: int) -> None:
    after = simulated(state((256.0 + offset, 180.0)), np.tile((0.0, 0.3), (4, 1)))[-1]
    assert turn * math.remainder(after[4], 2 * math.pi) > 0.1


def test_the_block_rests_as_soon_as_nothing_pushes_it() -> None:
    push = np.tile((0.0, 0.3), (6, 1))
    states = simulated(state((256.0, 180.0)), np.concatenate((push, -push)))
    assert states[5, 8] > 20
    assert np.abs(states[-1, 7:]).max() == 0
    assert np.array_equal(states[-1, 2:5], states[-3, 2:5])


def test_a_wall_holds_the_block() -> None:
    start = state((256.0, 315.0), (256.0, 340.0, 0.0))
    states = simulated(start, np.tile((0.0, 0.02), (32, 1)))
    # The agent, which nothing can stop, goes on into the block.
    assert states[-1, 1] - states[18, 1] > 10
    stem_ends = states[18:, 3] + 4 * push_t.BLOCK_UNIT
    assert np.abs(stem_ends - (push_t.WALL_HIGH - push_t.WALL_RADIUS)).max() < 1


def test_a_reset_is_exact_and_forgets_what_was_before() -> None:
    generator = np.random.default_rng(0)
    start = np.array((236.0, 185.0, *BLOCK[:2], 0.1, 30.0, 120.0, 5.0, 60.0, 0.4))
    actions = generator.uniform(-0.2, 0.4, (20, 2))
    simulation = PushTSimulation()
    runs = []
    for _ in range(2):
        simulation.reset(start)
        np.testing.assert_allclose(simulation.state(), start, rtol=0, atol=1e-12)
        states = []
        for action in actions:
            simulation.step(action)
            states.append(simulation.state())
        runs.append(states)
    assert np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], simulated(start, actions))
    assert abs(runs[0][-1][3] - start[3]) > 20


def test_a_recorded_state_continues_as_the_episode_did() -> None:
    # The contact solver remembers 0.01 s, and recordings have float32.
    with np.load(REFERENCE) as reference:
        actions, states = reference["actions"][:8], reference["states"][:8]
    for i, step in ((i, step) for i in range(8) for step in range(0, 30, 6)):
        after = simulated(states[i, step].astype(np.float32), actions[i, step + 1 : step + 26])
        assert np.abs(after[-1, :4] - states[i, step + 25, :4]).max() < 0.2


def test_a_goal_is_reached_within_distance_and_angle() -> None:
    goal = state((100.0, 100.0), (300.0, 300.0, 0.1))
    # 10 pixels in each of the four coordinates are 20 in all.
    for distance, is_within in ((9.99, True), (10.0, False)):
        assert reached(goal + np.array([distance] * 4 + [0] * 6), goal) is is_within
    for angle, is_within in ((math.pi / 9 - 0.01, True), (math.pi / 9 + 0.01, False)):
        for direction in (-1, 1):
            turned = goal + np.array([0, 0, 0, 0, direction * angle, 0, 0, 0, 0, 0])
            assert reached(turned, goal) is is_within
            turned[4] += 2 * math.pi
            assert reached(turned, goal) is is_within
    assert reached(goal + np.array([0] * 5 + [500] * 5), goal)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda simulation: simulation.reset(np.zeros(5)), "state must be 10 finite numbers"),
        (lambda simulation: simulation.reset(np.full(10, np.nan)), "state must be 10 finite"),
        (lambda simulation: simulation.step(np.zeros(3)), "action must be 2 finite numbers"),
        (lambda simulation: simulation.step(np.array([0, np.inf])), "action must be 2 finite"),
    ],
)
def test_impossible_states_and_actions_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(PushTSimulation())  # type: ignore[operator]


def test_without_the_simulator_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pymunk", None)
    with pytest.raises(ValueError, match=r"pymunk is needed .* pip install 'lewm-serve\[env"):
        PushTSimulation()


def pixel(image: Frame, x: float, y: float) -> list[int]:
    """The colour at a point of the table."""
    scale = push_t.FRAME_SIZE / push_t.TABLE_SIZE
    colour: list[int] = image[int(y * scale), int(x * scale)].tolist()
    return colour


def test_a_frame_shows_table_walls_block_and_agent() -> None:
    image = render(state((100.0, 400.0)))
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert pixel(image, 256, 450) == [255, 255, 255]
    assert pixel(image, 100, 400) == [78, 126, 255]
    # In the bar's two halves and at the stem's end, but not beside the stem.
    for x, y in ((190, 220), (322, 220), (256, 350)):
        assert pixel(image, x, y) == [143, 163, 184]
    for x, y in ((190, 300), (322, 300)):
        assert pixel(image, x, y) == [255, 255, 255]
    for x, y in ((5, 256), (506, 256), (256, 5), (256, 506)):
        wall = pixel(image, x, y)
        assert 211 <= wall[0] < 255
        assert wall[0] == wall[1] == wall[2]


@given(st.floats(150, 360), st.floats(150, 360), st.floats(0, 2 * math.pi))
def test_the_block_covers_its_area_wherever_it_is(x: float, y: float, angle: float) -> None:
    image = render(state((30.0, 30.0), (x, y, angle))).astype(int)
    image[:10, :10] = 255  # the agent
    is_block = (image[..., 2] - image[..., 0] > 17)[2:-2, 2:-2]
    center = np.array([x, y]) + 60 * np.array([-math.sin(angle), math.cos(angle)])
    corner = 80 * abs(math.cos(angle)) + 60 * abs(math.sin(angle))
    if (np.abs(center - 256) + corner + 60 < 240).all():
        pixel_area = (push_t.TABLE_SIZE / push_t.FRAME_SIZE) ** 2
        assert is_block.sum() * pixel_area == pytest.approx(7 * push_t.BLOCK_UNIT**2, rel=0.08)


def test_a_turned_scene_is_a_turned_frame() -> None:
    first = render(state((150.0, 300.0), (230.0, 210.0, 0.7)))
    # A quarter turn clockwise around the table's middle: (x, y) becomes (-y, x).
    turned = render(state((212.0, 150.0), (302.0, 230.0, 0.7 + math.pi / 2)))
    inner = np.s_[3:-3, 3:-3]
    difference = np.rot90(first, -1)[inner].astype(int) - turned[inner]
    assert np.abs(difference).max() <= 1


def test_a_scene_moved_by_a_pixel_is_a_moved_frame() -> None:
    pixel_size = push_t.TABLE_SIZE / push_t.FRAME_SIZE
    first = render(state((150.0, 300.0), (230.0, 210.0, 2.0)))
    moved = render(state((150.0 + pixel_size, 300.0), (230.0 + pixel_size, 210.0, 2.0)))
    assert np.abs(first[3:-3, 3:-4].astype(int) - moved[3:-3, 4:-3]).max() <= 1


def test_what_is_beside_the_table_is_not_drawn() -> None:
    gone = (-900.0, -900.0, 0.0)
    image = render(state((1000.0, -60.0), gone))
    assert np.array_equal(image, render(state((-500.0, 256.0), gone)))
    assert (image[5:-5, 5:-5] == 255).all()


def test_a_frame_does_not_change_the_simulation() -> None:
    start, actions = state((230.0, 180.0)), np.tile((0.05, 0.3), (8, 1))
    simulation = PushTSimulation()
    simulation.reset(start)
    for action in actions:
        simulation.step(action)
        assert np.array_equal(simulation.frame(), render(simulation.state()))
    assert np.array_equal(simulation.state(), simulated(start, actions)[-1])


def test_distances_from_the_block() -> None:
    points = np.array([(0, -10), (0, 20), (90, 20), (50, 60), (30, 100), (0, 170), (0, 100)], float)
    assert block_distance(points).tolist() == [10, -20, 10, 20, 10, 10, -20]
