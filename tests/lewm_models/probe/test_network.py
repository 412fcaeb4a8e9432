"""The network of a probe and its file."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from lewm_models.probe.network import StateProbe, StateSpace

DIM = 6
SPACE = StateSpace.of(("x", "angle", "heading", "y"), {"angle": 2 * math.pi, "heading": 360})


@pytest.fixture
def probe() -> StateProbe:
    torch.manual_seed(0)
    return StateProbe(
        torch.arange(DIM) / 2,
        1 + torch.arange(DIM),
        state_mean=torch.tensor([10.0, 0.0, 0.0, -5.0]),
        state_std=torch.tensor([2.0, 1.0, 1.0, 0.5]),
        periods=torch.tensor(SPACE.periods),
        width=10,
    )


def test_states_with_and_without_a_period_come_back(probe: StateProbe) -> None:
    states = torch.tensor([[12.0, 3.0, -170.0, -5.5], [8.0, -3.0, 10.0, -4.0]])
    values = probe.standardise(states)
    assert values.shape == (2, 6)
    assert torch.allclose(probe.in_units(values), states, atol=1e-4)
    turned = states + torch.tensor([0.0, 2 * math.pi, 360.0, 0.0])
    assert torch.allclose(probe.standardise(turned), values, atol=1e-5)
    assert torch.allclose(values[:, 0], torch.tensor([1.0, -1.0]))


def test_latents_of_any_shape_are_read_with_gradients(probe: StateProbe) -> None:
    latents = torch.randn(3, 4, DIM, requires_grad=True)
    assert probe(latents).shape == probe.by_linear_map(latents).shape == (3, 4, 6)
    probe(latents).square().sum().backward()
    assert latents.grad is not None
    assert bool((latents.grad != 0).any())


def test_a_written_probe_is_read_back_without_gradients(probe: StateProbe) -> None:
    read = StateProbe.from_bytes(probe.to_bytes(), DIM, 4)
    latents = torch.randn(4, DIM)
    assert torch.equal(read(latents), probe(latents))
    assert torch.equal(read.by_linear_map(latents), probe.by_linear_map(latents))
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert read.to_bytes() == probe.to_bytes()


def without(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without("hidden.bias", t), "hidden.bias: expected a vector of floats"),
        (lambda t: without("first.bias", t), "expected the tensors"),
        (lambda t: t | {"more": torch.zeros(1)}, "expected the tensors"),
        (lambda t: t | {"latent_mean": torch.zeros(DIM + 1)}, "latent_mean: expected float32 of"),
        (lambda t: t | {"state_std": torch.zeros(4)}, "state_std: expected deviations above 0"),
        (lambda t: t | {"periods": -t["periods"]}, "expected|periods"),
        (lambda t: t | {"periods": torch.zeros(5)}, "periods: expected 4 states, got 5"),
        (lambda t: t | {"output.bias": torch.full((6,), torch.nan)}, "output.bias: .*not finite"),
        (lambda t: t | {"hidden.bias": torch.zeros(1 << 15)}, "hidden.bias: expected 1 to 16384"),
    ],
)
def test_other_tensors_are_refused_by_name(probe: StateProbe, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=message):
        StateProbe.from_bytes(save(change(load(probe.to_bytes()))), DIM, 4)


def test_a_damaged_file_and_latents_of_another_width_are_refused(probe: StateProbe) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        StateProbe.from_bytes(probe.to_bytes()[:50], DIM, 4)
    with pytest.raises(ValueError, match=r"expected float32 of shape \(10, 7\)"):
        StateProbe.from_bytes(probe.to_bytes(), DIM + 1, 4)


def test_differences_of_angles_are_the_shortest() -> None:
    differences = SPACE.differences([[1.0, 3.0, 179.0, 0.0]], [[2.0, -3.0, -179.0, 5.0]])
    assert differences == pytest.approx(np.array([[-1.0, 6 - 2 * math.pi, -2.0, -5.0]]))


@pytest.mark.parametrize(
    ("periods", "message"),
    [
        ({"z": 1.0}, "--period: expected one of x, y, got 'z'"),
        ({"x": 0.0}, "--period: x: expected a number above 0, got 0"),
        ({"x": math.inf}, "--period: x: expected a number above 0, got inf"),
    ],
)
def test_a_wrong_period_is_named(periods: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StateSpace.of(("x", "y"), periods)
