"""Ways through regions of states, compared with many points on each way."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lewm_serve.objectives.regions import BULGE_SHARE, Region

BOX = Region((0, 2), (5.0, -1.0), (2.0, 3.0), is_disc=False, weight=1.0, margins=(0.5, 0.25))
DISC = Region((0, 2), (5.0, -1.0), (2.5,), is_disc=True, weight=1.0, margins=(0.5,))
NO_PERIODS = torch.zeros(3)
SPREADS = torch.tensor([1.0, 1.0, 4.0])


def point_depths(region: Region, points: Tensor) -> Tensor:
    """How deep points (…, 3) are inside a region: 1 at the centre, 0 at the border."""
    away = points[..., list(region.indexes)] - torch.tensor(region.centre)
    sizes = torch.tensor(region.sizes)
    return 1 - (away.norm(dim=-1) / sizes[0] if region.is_disc else (away.abs() / sizes).amax(-1))


def ways(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random starts and ends around the regions."""
    generator = torch.Generator().manual_seed(seed)
    starts, ends = (
        torch.tensor([5.0, 0.0, -1.0]) + 4 * torch.randn(count, 3, generator=generator)
        for _ in range(2)
    )
    return starts, ends


@pytest.mark.parametrize("region", [BOX, DISC])
def test_a_way_enters_a_region_if_any_of_its_points_is_inside(region: Region) -> None:
    starts, ends = ways(4000)
    shares = torch.linspace(0, 1, 1001)[:, None, None]
    deepest = point_depths(region, starts + shares * (ends - starts)).amax(dim=0)
    depths = region.depths(starts, ends, periods=NO_PERIODS)
    is_clear = deepest.abs() > 1e-2  # of the others, the points may miss a corner
    assert torch.equal((depths > 0)[is_clear], (deepest > 0)[is_clear])
    assert 500 < int((depths > 0).sum()) < 3500
    entered = depths > 0
    assert (depths[entered] <= deepest[entered] + 1e-2).all()
    if region.is_disc:
        assert torch.allclose(depths[entered], deepest[entered], atol=1e-3)


@pytest.mark.parametrize("region", [BOX, DISC])
def test_a_way_without_movement_is_a_point(region: Region) -> None:
    points = ways(500)[0]
    depths = region.depths(points, points, periods=NO_PERIODS)
    expected = point_depths(region, points)
    assert torch.allclose(depths, expected, atol=1e-5)


def test_a_thin_wall_between_two_states_is_found() -> None:
    wall = replace(BOX, indexes=(0,), centre=(5.0,), sizes=(1e-3,), margins=(0.0,))
    depths = wall.depths(torch.tensor([0.0, 0, 0]), torch.tensor([10.0, 0, 0]), periods=NO_PERIODS)
    assert float(depths) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("region", [BOX, DISC])
def test_margins_grow_with_the_length_of_a_step(region: Region) -> None:
    """A way along the border of a region."""
    half = region.sizes[0]
    for length, enters in ((0.2, True), (2.0, True)):
        near = 5.0 + half + region.margins[0] + 0.9 * BULGE_SHARE * length
        far = 5.0 + half + region.margins[0] + 1.1 * BULGE_SHARE * length
        scale = 1.0 if region.is_disc else float(SPREADS[2])
        for x, expected in ((near, enters), (far, False)):
            start = torch.tensor([x, 0.0, -1.0 - scale * length / 2])
            end = torch.tensor([x, 0.0, -1.0 + scale * length / 2])
            depth = region.depths(start, end, periods=NO_PERIODS, spreads=SPREADS)
            assert bool(depth > 0) == expected
            assert not region.depths(start, end, periods=NO_PERIODS) > 0


@pytest.mark.parametrize("is_disc", [False, True])
def test_angles_turn_around(is_disc: bool) -> None:
    region = Region((1,), (180.0,), (10.0,), is_disc, weight=1.0, margins=(0.0,))
    periods = torch.tensor([0.0, 360.0, 0.0])

    def enters(first: float, second: float) -> bool:
        start, end = (torch.tensor([0.0, angle, 0.0]) for angle in (first, second))
        return bool(region.depths(start, end, periods=periods) > 0)

    assert enters(-175, -175)
    assert enters(185 - 720, 185)
    assert enters(160, -160)  # the short way leads through 180
    assert not enters(100, -60)  # it leads through 20
    assert not enters(20, -20)


@pytest.mark.parametrize("region", [BOX, DISC])
def test_gradients_lead_out_of_a_region(region: Region) -> None:
    starts, ends = ways(200)
    ends.requires_grad_()
    depths = region.depths(starts, ends, periods=NO_PERIODS, spreads=SPREADS)
    inside = depths > 0.1
    (gradient,) = torch.autograd.grad(depths[inside].sum(), ends)
    assert gradient.isfinite().all()
    step = 1e-3 * gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    further = region.depths(starts, ends - step, periods=NO_PERIODS, spreads=SPREADS)
    has_effect = inside & gradient.any(dim=-1)  # at some ways, the start is deepest
    assert has_effect.sum() > 20
    lower = further[has_effect] < depths[has_effect]
    assert lower.float().mean() > (0.95 if region.is_disc else 0.8)  # a box has corners
