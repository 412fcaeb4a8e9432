"""What a candidate costs."""

import torch

from lewm_serve.objectives import Objective
from lewm_serve.objectives.latent import LATENT

OBJECTIVE: Objective = LATENT


def test_the_cost_is_the_squared_distance_of_the_last_latent_from_the_goal() -> None:
    predicted = torch.tensor([[[9.0, 9.0], [1.0, 2.0]], [[9.0, 9.0], [4.0, 6.0]]])
    goal = torch.tensor([1.0, 2.0])
    assert OBJECTIVE(predicted, goal).tolist() == [0.0, 25.0]


def test_each_plan_has_its_own_goal() -> None:
    predicted = torch.zeros(3, 4, 5, 2)
    goals = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    assert OBJECTIVE(predicted, goals).tolist() == [[0.0] * 4, [1.0] * 4, [25.0] * 4]


def test_candidates_do_not_influence_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(6, 3, 8, generator=generator)
    goal = torch.randn(8, generator=generator)
    costs = OBJECTIVE(predicted, goal)
    assert torch.equal(costs[2:4], OBJECTIVE(predicted[2:4], goal))


def test_it_can_be_differentiated() -> None:
    predicted = torch.ones(2, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(OBJECTIVE(predicted, torch.zeros(4)).sum(), predicted)
    assert gradient[:, -1].tolist() == [[2.0] * 4] * 2
    assert not gradient[:, :-1].any()
