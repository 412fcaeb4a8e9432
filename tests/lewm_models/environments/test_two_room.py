"""Two-Room against results of the public environment.

`two_room_reference.npz` was made with the public code (`stable_worldmodel`, Two-Room and its expert
policy). It holds frames of agents at corners, at edges, in the door and in the wall; moves from
random points, along the wall, around the door and exactly on the thresholds; and the policy's
actions without noise.
"""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lewm_models.environments.two_room import (
    DOOR_BOTTOM,
    DOOR_TOP,
    RENDER_CHUNK,
    WALL_LEFT,
    WALL_RIGHT,
    VectorTwoRoom,
    move,
    render,
    same_room,
    sample_goals,
    sample_positions,
)

REFERENCE = Path(__file__).with_name("two_room_reference.npz")


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(REFERENCE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_frames_equal_the_public_ones_in_every_pixel(reference: dict[str, Tensor]) -> None:
    positions, expected = reference["frame_positions"], reference["frames"].double()
    frames = render(positions).double()
    # Levels are truncated. A level that is nearly an integer may become that integer or the one
    # below, because processors round the exponential differently.
    exact = exact_red_levels(positions)
    near_integer = (exact - exact.round()).abs() < 1e-4
    assert torch.equal(frames[..., 1:], expected[..., 1:])
    assert torch.equal(frames[..., 0][~near_integer], expected[..., 0][~near_integer])
    assert (frames - expected).abs().max() <= 1
    assert (frames != expected).double().mean() < 1e-4


def exact_red_levels(positions: Tensor) -> Tensor:
    """The red levels (N, 224, 224) before truncation, float64."""
    # A dot only lowers the green levels, so the larger one of two frames is the background.
    background = render(torch.tensor([[40.0, 40.0], [180.0, 180.0]]))[..., 1].amax(dim=0).double()
    pixels = torch.arange(224, dtype=torch.float64)
    columns, rows = ((pixels - positions[:, axis, None].double()).square() for axis in (0, 1))
    alpha = torch.exp(-(rows[:, :, None] + columns[:, None, :]) / (2 * 7**2))
    alpha /= alpha.amax(dim=(1, 2), keepdim=True)
    return 255 * alpha + (1 - alpha) * background


def test_a_frame_does_not_depend_on_its_batch() -> None:
    positions = sample_positions(2 * RENDER_CHUNK + 3, seeded())
    frames = render(positions)
    for index in (0, RENDER_CHUNK - 1, RENDER_CHUNK, len(positions) - 1):
        assert torch.equal(frames[index], render(positions[index : index + 1])[0])


def test_no_agents_give_no_frames() -> None:
    assert render(torch.empty(0, 2)).shape == (0, 224, 224, 3)


@pytest.mark.parametrize("point", [(-0.1, 50.0), (50.0, 223.5), (math.nan, 50.0)])
def test_a_point_outside_the_image_is_not_drawn(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="within"):
        render(torch.tensor([point]))


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(1, 3), torch.zeros(1, 2).double()])
def test_points_of_another_shape_or_type_are_refused(wrong: Tensor) -> None:
    points = torch.full((1, 2), 60.0)
    with pytest.raises(ValueError, match="float32"):
        render(wrong)
    with pytest.raises(ValueError, match="float32"):
        move(points, wrong)
    with pytest.raises(ValueError, match="float32"):
        VectorTwoRoom(wrong, points)


def test_one_action_or_goal_for_several_agents_is_refused() -> None:
    with pytest.raises(ValueError, match="3 positions but 1 actions"):
        move(torch.full((3, 2), 60.0), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="3 positions but 1 goals"):
        VectorTwoRoom(torch.full((3, 2), 60.0), torch.zeros(1, 2))


def test_moves_equal_the_public_ones(reference: dict[str, Tensor]) -> None:
    moved = move(reference["move_positions"], reference["move_actions"])
    assert torch.equal(moved, reference["move_results"])


action_components = st.floats(-1.5, 1.5, width=32)


@given(
    x=st.floats(75.0, 149.0, width=32).filter(lambda x: not WALL_LEFT <= x <= WALL_RIGHT),
    y=st.floats(14.0, 209.0, width=32),
    actions=st.lists(st.tuples(action_components, action_components), min_size=1, max_size=20),
)
def test_no_move_crosses_the_wall_outside_the_door(
    x: float, y: float, actions: list[tuple[float, float]]
) -> None:
    position = torch.tensor([[x, y]])
    for action in actions:
        before, position = position, move(position, torch.tensor([action]))
        x, y = position[0].tolist()
        at_door = DOOR_TOP <= y <= DOOR_BOTTOM
        assert at_door or not WALL_LEFT < x < WALL_RIGHT
        assert same_room(before, position)[0] or DOOR_TOP <= before[0, 1] <= DOOR_BOTTOM
        assert same_room(before, position)[0] or at_door


@pytest.mark.parametrize(
    ("sample", "low", "high"), [(sample_positions, 14, 209), (sample_goals, 21, 203)]
)
def test_samples_are_uniform_in_both_rooms_and_not_in_the_wall(
    sample: Callable[[int, torch.Generator], Tensor], low: float, high: float
) -> None:
    x, y = sample(100_000, seeded()).unbind(-1)
    for lowest, highest, values in (
        (low, 100, x[x < 112]),
        (124, high, x[x > 112]),
        (low, high, y),
    ):
        assert lowest <= values.min() < lowest + 0.1
        assert highest - 0.1 < values.max() <= highest
        assert values.mean() == pytest.approx((lowest + highest) / 2, abs=0.5)
    assert not ((x >= 100) & (x <= 124)).any()
    width = (100 - low) + (high - 124)
    assert (x < 112).float().mean() == pytest.approx((100 - low) / width, abs=0.01)
    assert y[x < 112].std() == pytest.approx((high - low) / math.sqrt(12), rel=0.01)


def test_an_agent_can_be_at_any_sampled_goal() -> None:
    goals = sample_goals(10_000, seeded())
    assert torch.equal(move(goals, torch.zeros_like(goals)), goals)


def test_a_goal_is_reached_at_less_than_the_radius() -> None:
    start = torch.tensor([[50.0, 100.0]]).repeat(3, 1)
    goals = torch.tensor([[71.0, 100.0], [70.9, 100.0], [50.0, 116.0]])
    environment = VectorTwoRoom(start, goals)
    reached = environment.step(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert environment.distances()[0] == environment.distances()[2] == 16.0
    assert reached.tolist() == [False, True, False]


def test_positions_and_goals_are_copied_and_drawn_as_agents() -> None:
    positions, goals = sample_positions(4, seeded(1)), sample_goals(4, seeded(2))
    environment = VectorTwoRoom(positions, goals)
    frames, goal_frames = render(positions), render(goals)
    positions.zero_()
    goals.zero_()
    assert torch.equal(environment.frames(), frames)
    assert torch.equal(environment.goal_frames(), goal_frames)


def test_the_vectorised_environment_does_not_need_gymnasium() -> None:
    script = (
        "import sys; sys.modules['gymnasium'] = None;"
        "import lewm_models.environments.two_room, lewm_models.environments.two_room_policy"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)
