"""The network of a distance and its file."""

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from lewm_models.distance.network import GoalDistance, PlanProposal

DIM = 6


@pytest.fixture
def network() -> GoalDistance:
    torch.manual_seed(0)
    return GoalDistance(torch.arange(DIM) / 2, 1 + torch.arange(DIM), width=10)


def test_distances_are_not_negative_and_goals_are_shared_by_candidates(
    network: GoalDistance,
) -> None:
    latents, goals = 5 * torch.randn(3, 7, DIM), 5 * torch.randn(3, DIM)
    distances = network(latents, goals.unsqueeze(1))
    assert distances.shape == (3, 7)
    assert (distances >= 0).all()
    repeated = network(latents.flatten(0, 1), goals.repeat_interleave(7, dim=0))
    assert torch.allclose(distances.flatten(), repeated, atol=1e-6)


def test_the_scale_of_latents_does_not_matter(network: GoalDistance) -> None:
    scaled = GoalDistance(100 * network.mean, 100 * network.std, width=10)
    for part, other in zip(scaled.parameters(), network.parameters(), strict=True):
        part.data = other.data
    latents, goals = torch.randn(4, DIM), torch.randn(4, DIM)
    distances, expected = scaled(100 * latents, 100 * goals), network(latents, goals)
    assert torch.allclose(distances, expected, atol=1e-5)


def test_a_written_distance_is_read_back_without_gradients(network: GoalDistance) -> None:
    read = GoalDistance.from_bytes(network.to_bytes(), DIM)
    latents, goals = torch.randn(4, DIM), torch.randn(4, DIM)
    assert torch.equal(read(latents, goals), network(latents, goals))
    assert not any(parameter.requires_grad for parameter in read.parameters())
    assert read.to_bytes() == network.to_bytes()


def test_proposed_actions_are_inside_the_bounds_and_kept_in_the_file(
    network: GoalDistance,
) -> None:
    low, high = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 4.0, 2.5])
    assert network.propose(torch.zeros(DIM), torch.zeros(DIM)) is None
    network.proposal = PlanProposal(DIM, low, high, horizon=4, width=7)
    read = GoalDistance.from_bytes(network.to_bytes(), DIM)
    latents, goals = 20 * torch.randn(5, DIM), 20 * torch.randn(5, DIM)
    actions, expected = read.propose(latents, goals), network.propose(latents, goals)
    assert actions is not None
    assert expected is not None
    assert torch.equal(actions, expected)
    assert actions.shape == (5, 4, 3)
    assert ((actions >= low) & (actions <= high)).all()
    swapped = load(network.to_bytes()) | {"proposal.low": high, "proposal.high": low}
    with pytest.raises(ValueError, match=r"proposal\.low: expected numbers below proposal\.high"):
        GoalDistance.from_bytes(save(swapped), DIM)


def without(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without("hidden.bias", t), "expected the tensors"),
        (lambda t: t | {"more": torch.zeros(1)}, "expected the tensors"),
        (lambda t: t | {"mean": torch.zeros(DIM + 1)}, "mean: expected float32 of shape"),
        (lambda t: t | {"std": t["std"].double()}, "std: expected float32 .* got torch.float64"),
        (lambda t: t | {"std": torch.zeros(DIM)}, "std: expected deviations above 0"),
        (lambda t: t | {"output.bias": torch.full((1,), torch.nan)}, "output.bias: .*not finite"),
        (lambda t: t | {"hidden.bias": torch.zeros(1 << 15)}, "hidden.bias: expected 1 to 16384"),
        (lambda t: t | {"hidden.bias": torch.zeros(())}, "latent|goal|hidden"),
    ],
)
def test_other_tensors_are_refused_by_name(
    network: GoalDistance, change: object, message: str
) -> None:
    assert callable(change)
    content = save(change(load(network.to_bytes())))
    with pytest.raises(ValueError, match=message):
        GoalDistance.from_bytes(content, DIM)


def test_a_damaged_file_and_latents_of_another_width_are_refused(network: GoalDistance) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        GoalDistance.from_bytes(network.to_bytes()[:50], DIM)
    with pytest.raises(ValueError, match=r"expected float32 of shape \(10, 7\)"):
        GoalDistance.from_bytes(network.to_bytes(), DIM + 1)
