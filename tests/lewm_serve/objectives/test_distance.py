"""The learned distance as the cost of a candidate."""

import pytest
import torch

from lewm_models.distance.network import GoalDistance
from lewm_serve.objectives import ROWS_PER_CALL, Objective
from lewm_serve.objectives.distance import DistanceObjective

DIM = 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> GoalDistance:
    torch.manual_seed(0)
    return GoalDistance(torch.randn(DIM), 1 + torch.rand(DIM), width=96)


@pytest.fixture(scope="module")
def objective(network: GoalDistance) -> DistanceObjective:
    return DistanceObjective(network, CPU)


def test_the_cost_is_the_mean_distance_on_the_way_from_each_plans_goal(
    network: GoalDistance, objective: Objective
) -> None:
    predicted, goals = torch.randn(3, 40, 5, DIM), torch.randn(3, DIM)
    costs = objective(predicted, goals)
    assert costs.shape == (3, 40)
    expected = network(predicted, goals[:, None, None]).mean(dim=-1)
    assert torch.allclose(costs, expected, atol=1e-5)
    assert torch.allclose(objective(predicted[1], goals[1]), expected[1], atol=1e-5)


def test_distances_are_those_of_single_latents(
    network: GoalDistance, objective: DistanceObjective
) -> None:
    latents, goal = torch.randn(1, 2, DIM), torch.randn(DIM)
    expected = [float(network(latent, goal).detach()) for latent in latents[0]]
    assert objective.blocks(latents, goal)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_parts_and_threads_do_not_change_a_bit(objective: Objective) -> None:
    predicted, goal = torch.randn(3 * ROWS_PER_CALL + 5, 2, DIM), torch.randn(DIM)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = objective(predicted, goal)
        torch.set_num_threads(1)
        for size in (ROWS_PER_CALL, 2 * ROWS_PER_CALL):
            parts = [objective(part, goal) for part in predicted.split(size)]  # type: ignore[no-untyped-call]
            assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(before)


def test_it_can_be_differentiated(objective: Objective) -> None:
    predicted = torch.randn(4, 3, DIM, requires_grad=True)
    goal = torch.randn(DIM)
    costs = objective(predicted, goal)
    (gradient,) = torch.autograd.grad(costs.sum(), predicted)
    assert gradient.any(dim=-1).all()  # every latent on the way counts
    step = 1e-2 * gradient / gradient.norm()
    change = objective((predicted + step).detach(), goal) - costs.detach()
    assert float(change.sum()) == pytest.approx(float((gradient * step).sum()), rel=0.1)
