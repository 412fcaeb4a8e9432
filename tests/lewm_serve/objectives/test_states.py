"""Goals by states and regions as the cost of a candidate."""

from dataclasses import replace

import pytest
import torch

from lewm_models.probe.network import StateProbe
from lewm_serve.objectives import ROWS_PER_CALL, Objective
from lewm_serve.objectives.latent import LATENT
from lewm_serve.objectives.regions import Region
from lewm_serve.objectives.states import (
    StateGoal,
    StateObjective,
    StatePath,
    StateReader,
)

DIM = 24
NO_GOAL = torch.empty(0)
GOAL = StateGoal((0, 2), (15.0, -170.0))
EVERYWHERE = Region((0,), (0.0,), (1e6,), is_disc=False, weight=2.0, margins=(0.0,))


@pytest.fixture(scope="module")
def reader() -> StateReader:
    torch.manual_seed(0)
    probe = StateProbe(
        torch.randn(DIM),
        1 + torch.rand(DIM),
        state_mean=torch.tensor([10.0, 20.0, 0.0]),
        state_std=torch.tensor([2.0, 3.0, 50.0]),
        periods=torch.tensor([0.0, 0.0, 360.0]),
        width=96,
    )
    return StateReader(probe, torch.device("cpu"))


def test_the_cost_is_the_squared_error_of_named_states_at_the_end_and_on_the_way(
    reader: StateReader,
) -> None:
    predicted = torch.randn(40, 5, DIM)
    values = reader.probe(predicted)
    angle = torch.deg2rad(torch.tensor(-170.0))
    target = torch.stack([torch.tensor(2.5), 2**0.5 * angle.sin(), 2**0.5 * angle.cos()])
    errors = (values[..., [0, 2, 3]] - target).square().sum(dim=-1)
    expected = errors[:, -1] + errors.mean(dim=-1)
    costs = StateObjective(reader, GOAL)(predicted, NO_GOAL)
    assert torch.allclose(costs, expected, atol=1e-4)
    turned = replace(GOAL, values=(15.0, 190.0))
    assert torch.allclose(StateObjective(reader, turned)(predicted, NO_GOAL), costs, atol=1e-4)
    several = StateObjective(reader, GOAL)(torch.stack([predicted, predicted]), NO_GOAL)
    assert torch.equal(several, torch.stack([costs, costs]))


@pytest.mark.parametrize("base", [None, LATENT])
def test_regions_cost_their_weight_in_every_step_inside(
    reader: StateReader, base: Objective | None
) -> None:
    predicted, goal = torch.randn(7, 5, DIM), torch.randn(DIM)
    objective = StateObjective(reader, GOAL if base is None else None, base).starting_at(goal)
    without = objective(predicted, goal)
    added = replace(objective, regions=(EVERYWHERE,))(predicted, goal) - without
    unit = 1.0 if base is None else float(reader.probe.latent_std.square().sum())
    assert (added > 5 * 2 * unit * 0.99).all()
    assert (added < 5 * 2 * 2 * unit * 1.01).all()
    nowhere = replace(EVERYWHERE, centre=(3e6,))
    assert torch.equal(replace(objective, regions=(nowhere,))(predicted, goal), without)


def test_the_path_of_a_plan_lists_the_steps_inside(reader: StateReader) -> None:
    start, predicted = torch.randn(DIM), torch.randn(4, DIM)
    objective = StateObjective(reader, GOAL).starting_at(start)
    states = reader.in_units(torch.cat([start[None], predicted]))
    assert objective.path(predicted) == StatePath(
        tuple(states[0].tolist()), tuple(states[-1].tolist()), ()
    )
    around = replace(EVERYWHERE, centre=(float(states[2, 0]),), sizes=(1e-4,))
    violations = replace(objective, regions=(around, EVERYWHERE)).path(predicted).violations
    assert violations == (0, 1, 2, 3)
    assert {1, 2} <= set(replace(objective, regions=(around,)).path(predicted).violations)


def test_parts_and_threads_do_not_change_a_bit(reader: StateReader) -> None:
    predicted, goal = torch.randn(3 * ROWS_PER_CALL + 5, 2, DIM), torch.randn(DIM)
    disc = Region((0, 1), (10.0, 20.0), (1.0,), is_disc=True, weight=2.0, margins=(0.1,))
    objective = StateObjective(reader, GOAL, regions=(disc,)).starting_at(goal)
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


def test_it_can_be_differentiated(reader: StateReader) -> None:
    predicted = torch.randn(4, 3, DIM, requires_grad=True)
    disc = Region((0, 1), (10.0, 20.0), (50.0,), is_disc=True, weight=2.0, margins=(0.1,))
    objective = StateObjective(reader, GOAL, regions=(disc,)).starting_at(torch.randn(DIM))
    costs = objective(predicted, NO_GOAL)
    (gradient,) = torch.autograd.grad(costs.sum(), predicted)
    assert gradient.any(dim=-1).all()  # every latent on the way counts
    step = 1e-2 * gradient / gradient.norm()
    change = objective((predicted + step).detach(), NO_GOAL) - costs.detach()
    assert float(change.sum()) == pytest.approx(float((gradient * step).sum()), rel=0.1)


def test_its_name_says_what_its_time_depends_on(reader: StateReader) -> None:
    objective = StateObjective(reader, GOAL)
    assert objective.name == "state"
    assert replace(objective, regions=(EVERYWHERE,)).name == "state, avoid"
    assert StateObjective(reader, base=LATENT, regions=(EVERYWHERE,)).name == "latent, avoid"
