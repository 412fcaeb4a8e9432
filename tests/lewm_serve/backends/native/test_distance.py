"""The learned distance in bfloat16, against the same network in PyTorch."""

import ctypes

import pytest
import torch
from torch import Tensor

from lewm_models.distance.network import GoalDistance
from lewm_serve.backends.native.backend import NativeDistance
from lewm_serve.backends.native.build import NativeUnavailable
from lewm_serve.backends.native.library import load_library

SIZES = {"blocks of 32": (64, 256), "odd": (24, 40), "one": (1, 1)}
"""Widths of the latents and of the hidden layers."""

TOLERANCE = 0.01
"""How far distances of about one block may be off."""


@pytest.fixture(scope="module")
def code() -> ctypes.CDLL:
    try:
        return load_library()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module", params=SIZES)
def network(request: pytest.FixtureRequest) -> GoalDistance:
    latent_dim, width = SIZES[request.param]
    torch.manual_seed(0)
    network = GoalDistance(5 * torch.randn(latent_dim), 0.01 + torch.rand(latent_dim), width)
    with torch.no_grad():
        network.output.bias.fill_(0.5)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["tiles", "dot products"])
def native(
    request: pytest.FixtureRequest, code: ctypes.CDLL, network: GoalDistance
) -> NativeDistance:
    if request.param == "tiles" and not code.tiles_available():
        pytest.skip("the processor has no tile registers")
    return NativeDistance(network, code, use_tiles=request.param == "tiles")


def usual(network: GoalDistance, *shape: int) -> Tensor:
    """Latents (*shape, D) as the network expects them."""
    generator = torch.Generator().manual_seed(len(shape))
    standardised = torch.randn(*shape, network.latent_dim, generator=generator)
    return standardised * network.std + network.mean


def test_distances_are_close_to_the_network(network: GoalDistance, native: NativeDistance) -> None:
    latents, goals = usual(network, 3, 37, 5), usual(network, 3)
    expected = network(latents, goals[:, None, None])
    blocks = native.blocks(latents, goals)
    assert blocks.shape == expected.shape == (3, 37, 5)
    assert float(expected.std()) > TOLERANCE or network.latent_dim == 1
    assert float((blocks - expected).abs().max()) < TOLERANCE
    assert torch.equal(native(latents, goals), blocks.mean(dim=-1))
    assert torch.equal(native.blocks(latents[1], goals[1]), blocks[1])


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33, 64])
def test_a_distance_does_not_depend_on_other_rows(
    network: GoalDistance, native: NativeDistance, rows: int
) -> None:
    latents, goal = usual(network, 64, 1), usual(network)
    assert torch.equal(native.blocks(latents[-rows:], goal), native.blocks(latents, goal)[-rows:])


def test_latents_may_lie_in_memory_in_any_order(
    network: GoalDistance, native: NativeDistance
) -> None:
    latents, goals = usual(network, 9, 4), usual(network, 2)
    by_step = latents.transpose(0, 1).contiguous().transpose(0, 1)
    padded = torch.cat([latents, latents], dim=-1)[..., : network.latent_dim]
    for other in (by_step, padded):
        assert torch.equal(native.blocks(other, goals[1]), native.blocks(latents, goals[1]))


def test_numbers_that_are_not_finite_stay_visible(
    network: GoalDistance, native: NativeDistance
) -> None:
    latents, goal = usual(network, 3, 2), usual(network)
    latents[1, 0, -1] = torch.nan
    costs = native(latents, goal)
    assert costs.isfinite().tolist() == [True, False, True]


def test_far_latents_have_finite_distances(network: GoalDistance, native: NativeDistance) -> None:
    latents, goal = usual(network, 3, 2), usual(network)
    for factor in (1e4, -1e4):
        assert native.blocks(factor * latents, goal).isfinite().all()
        assert (native.blocks(factor * latents, goal) >= 0).all()


def test_gradients_are_those_of_the_network(network: GoalDistance, native: NativeDistance) -> None:
    latents, goal = usual(network, 4, 3).requires_grad_(), usual(network)
    (gradients,) = torch.autograd.grad(native(latents, goal).sum(), latents)
    (expected,) = torch.autograd.grad(network(latents, goal).mean(dim=-1).sum(), latents)
    assert torch.allclose(gradients, expected, rtol=1e-4, atol=1e-6)
