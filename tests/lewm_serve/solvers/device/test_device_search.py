"""The search on the device learns what the solvers learn, alone and beside others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.device.search import (
    DEVICE_SOLVERS,
    DeviceSearch,
    Score,
    SearchShape,
    Step,
    elite_weights,
    path_weights,
    solver_schedule,
)
from lewm_serve.solvers.mppi import path_weights as solver_path_weights
from lewm_serve.solvers.solver import GaussianSolver, SearchSpace

HORIZON, BLOCK, DIM = 3, 2, 2
WIDTH = BLOCK * DIM
CPU = torch.device("cpu")


def space(start: float = 0.2, **limits: Any) -> SearchSpace:
    low, high = torch.full((WIDTH,), -1.5), torch.full((WIDTH,), 1.0)
    return SearchSpace(low, high, torch.full((HORIZON, WIDTH), start), DIM, **limits)


def settings(name: str, **changes: Any) -> SolverConfig:
    moderate: dict[str, Any] = {"samples": 24, "iterations": 4, "elites": 6, "horizon": HORIZON}
    return SolverConfig(name, **moderate | changes)


def bowl(
    latents: Tensor, past_actions: Tensor, goals: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates as latents; the cost is the squared distance of all blocks from the goal."""
    return candidates, (candidates - goals[:, None, None]).square().sum(dim=(2, 3))


def cost_of(candidates: Tensor) -> Tensor:
    """The costs (S,) of candidates (S, T, A) for a goal of 0.5."""
    goal = torch.full((1, WIDTH), 0.5)
    return bowl(goal, goal, goal, candidates.unsqueeze(0))[1][0]


class Searches:
    """Searches in one table, by hand."""

    def __init__(
        self, name: str, *, score: Score = bowl, limits_change: bool = False, capacity: int = 8
    ) -> None:
        shape = SearchShape(name, HORIZON, WIDTH, DIM, 1, WIDTH, limits_change)
        self.search = DeviceSearch(shape, score, CPU, capacity)
        self.schedules: dict[int, list[Step]] = {}

    def begin(
        self,
        row: int,
        chosen: SolverConfig,
        *,
        seed: int = 1,
        goal: float = 0.5,
        within: SearchSpace | None = None,
    ) -> None:
        self.search.begin(
            row,
            chosen,
            within or space(),
            seed,
            latents=torch.zeros(1, WIDTH),
            past_actions=torch.empty(0, WIDTH),
            goal=torch.full((WIDTH,), goal),
        )
        self.schedules[row] = [step._replace(row=row) for step in solver_schedule(chosen)]

    def iterate(self, rows: list[int], *, padding: int = 0) -> tuple[Tensor, Tensor]:
        """The next iteration of some plans. ``padding``: further plans and candidates."""
        steps = [self.schedules[row].pop(0) for row in rows]
        samples = max(step.candidates for step in steps) + padding
        table = torch.tensor([*steps, *[Step()] * padding], dtype=torch.int64)
        with torch.inference_mode():
            return self.search.iterate(table, samples)

    def finish(self, *rows: int) -> None:
        while any(self.schedules[row] for row in rows):
            self.iterate([row for row in rows if self.schedules[row]])

    def best(self, row: int) -> tuple[Tensor, float]:
        found = self.search.found(row)
        assert found is not None
        return found.best.actions, found.best.cost


@pytest.mark.parametrize("changes", [{}, {"elites": 1}, {"iterations": 1}, {"momentum": 0.3}])
@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_it_learns_what_the_solver_learns(name: str, changes: dict[str, Any]) -> None:
    """The solver is told the same candidates and costs."""
    searches, chosen = Searches(name), settings(name, **changes)
    searches.begin(1, chosen)
    solver = SOLVERS[name](chosen, space(), seed=1)
    assert isinstance(solver, GaussianSolver)
    while not solver.done:
        count = searches.schedules[1][0].candidates
        candidates, costs = searches.iterate([1], padding=2)
        assert costs[0, count:].isinf().all()
        solver.tell(candidates[0, :count], costs[0, :count])
        progress = searches.search.progress(1)
        torch.testing.assert_close(progress.mean[0], solver.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(progress.std[0], solver.std, atol=1e-5, rtol=1e-5)
        assert solver.best is not None
        actions, cost = searches.best(1)
        assert torch.equal(actions, solver.best.actions)
        assert cost == solver.best.cost
    assert not searches.schedules[1]


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_the_first_candidates_have_the_deviation_and_the_mean(name: str) -> None:
    searches = Searches(name)
    far = torch.full((WIDTH,), 100.0)
    wide = SearchSpace(-far, far, torch.full((HORIZON, WIDTH), 0.2), DIM)
    searches.begin(1, settings(name, samples=4000, deviation=0.5), within=wide)
    candidates, _ = searches.iterate([1])
    assert torch.equal(candidates[0, 0], wide.start)
    assert float((candidates - 0.2).square().mean().sqrt()) == pytest.approx(0.5, abs=0.02)
    # The sequences of CEM's white noise differ in strength, those of coloured noise do not.
    sequences = (candidates[0, 1:] - 0.2).reshape(-1, HORIZON * BLOCK, DIM)
    strengths = sequences.square().mean(dim=1)
    assert float(strengths.std()) == pytest.approx(0.14 if name == "cem" else 0, abs=0.01)


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_plans_of_unequal_progress_and_settings_share_an_iteration(name: str) -> None:
    """Alone or beside others, with any padding, a plan gets the same actions."""
    many, few = settings(name), settings(name, samples=14, elites=3, iterations=3, momentum=0.0)
    plans = {1: (many, 11, 0.5), 2: (few, 12, -0.3), 3: (many, 13, 0.9)}
    alone, crowd = Searches(name), Searches(name)
    for row, (chosen, seed, goal) in plans.items():
        alone.begin(row, chosen, seed=seed, goal=goal)
        alone.finish(row)
    crowd.begin(1, many, seed=11, goal=0.5)
    crowd.iterate([1], padding=3)
    crowd.begin(2, few, seed=12, goal=-0.3)
    crowd.iterate([2, 1], padding=1)
    crowd.begin(3, many, seed=13, goal=0.9)
    crowd.finish(1, 2, 3)
    for row in plans:
        actions, cost = crowd.best(row)
        expected, expected_cost = alone.best(row)
        torch.testing.assert_close(actions, expected, atol=1e-5, rtol=0)
        assert cost == pytest.approx(expected_cost, abs=1e-5)


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_a_seed_fixes_the_plan(name: str) -> None:
    bests = []
    for seed in (3, 3, 4):
        searches = Searches(name)
        searches.begin(1, settings(name), seed=seed)
        searches.finish(1)
        bests.append(searches.best(1)[0])
    assert torch.equal(bests[0], bests[1])
    assert not torch.equal(bests[0], bests[2])


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_costs_are_as_low_as_those_of_the_solver(name: str) -> None:
    """By distribution: the mean cost of many seeds, of both."""
    searches, chosen = Searches(name, capacity=41), settings(name)
    costs = []
    for seed in range(40):
        searches.begin(1 + seed, chosen, seed=seed)
        solver = SOLVERS[name](chosen, space(), seed)
        while not solver.done:
            candidates = solver.ask()
            solver.tell(candidates, cost_of(candidates))
        assert solver.best is not None
        costs.append(solver.best.cost)
    searches.finish(*searches.schedules)
    device_costs = torch.tensor([searches.best(row)[1] for row in searches.schedules])
    host_costs = torch.tensor(costs)
    error = math.hypot(device_costs.std(), host_costs.std()) / math.sqrt(40)
    assert abs(float(device_costs.mean() - host_costs.mean())) < 4 * error
    assert float(device_costs.max()) < 3 * float(host_costs.max())


@pytest.mark.parametrize("previous", [None, torch.tensor([0.9, -0.9])])
def test_changes_are_limited_as_by_the_search_space(previous: Tensor | None) -> None:
    searches = Searches("cem", limits_change=True)
    limited = space(max_change=torch.tensor([0.1, 0.3]), previous_action=previous)
    searches.begin(1, settings("cem"), within=limited)
    searches.begin(2, settings("cem"), within=space())
    candidates, _ = searches.iterate([1, 2])
    torch.testing.assert_close(candidates[0], limited.clip(candidates[0]), atol=1e-6, rtol=0)
    changes = candidates.reshape(2, -1, HORIZON * BLOCK, DIM).diff(dim=2).abs()
    assert float((changes[0].amax(dim=(0, 1)) - torch.tensor([0.1, 0.3])).max()) < 1e-6
    assert float(changes[1].max()) > 1  # the other plan has no limit
    if previous is not None:
        first = candidates[0, :, 0, :DIM]
        assert float(((first - previous).abs() - torch.tensor([0.1, 0.3])).max()) < 1e-6


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_costs_that_are_not_numbers_count_as_the_worst(name: str) -> None:
    def sometimes_broken(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        predicted, costs = bowl(*inputs)
        costs[:, ::3], costs[:, 1::3] = math.nan, math.inf
        return predicted, costs

    searches = Searches(name, score=sometimes_broken)
    searches.begin(1, settings(name, elites=3))
    searches.iterate([1])
    actions, cost = searches.best(1)
    assert cost == float(cost_of(actions[None]))
    assert searches.search.progress(1).mean.isfinite().all()


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_costs_of_which_none_is_a_number_give_some_plan(name: str) -> None:
    def broken(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        predicted, costs = bowl(*inputs)
        return predicted, torch.full_like(costs, math.nan)

    searches = Searches(name, score=broken)
    searches.begin(1, settings(name, elites=3))
    searches.iterate([1])
    actions, cost = searches.best(1)
    assert cost == math.inf
    assert torch.equal(actions, space().start)  # candidate 0, the first of the worst
    assert searches.search.progress(1).mean.isfinite().all()


def test_nothing_is_found_before_the_first_iteration() -> None:
    searches = Searches("cem")
    searches.begin(1, settings("cem"))
    assert searches.search.found(1) is None


def test_tables_grow_and_rows_are_used_again() -> None:
    searches = Searches("icem", capacity=2)
    searches.begin(1, settings("icem"), seed=3)
    searches.iterate([1])
    searches.search.grow()
    assert searches.search.capacity == 4
    searches.finish(1)
    expected = searches.best(1)
    searches.begin(1, settings("icem"), seed=3)
    assert searches.search.found(1) is None
    searches.finish(1)
    assert torch.equal(searches.best(1)[0], expected[0])


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_the_spread_falls_to_the_tolerance(name: str) -> None:
    searches = Searches(name)
    searches.begin(1, settings(name, samples=200, elites=10, iterations=15))
    searches.iterate([1])
    first = searches.search.found(1)
    searches.finish(1)
    last = searches.search.found(1)
    assert first is not None
    assert last is not None
    assert last.spread < 0.2 * first.spread < math.inf


def test_elite_weights_of_unequal_plans() -> None:
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    weights = elite_weights(order, torch.tensor([1.0, 2.0]), graded=False)
    assert weights.tolist() == [[0, 0, 1], [0, 0.5, 0.5]]


def test_path_weights_are_those_of_the_solver() -> None:
    costs = torch.tensor([[5.0, 6.5, 7.0, 30.0], [3.0, 3.0, 3.0, 3.0]])
    weights = path_weights(costs, torch.tensor([0.3, 1.0]))
    for row, temperature in enumerate((0.3, 1.0)):
        expected = solver_path_weights(costs[row], temperature)
        torch.testing.assert_close(weights[row], expected)


def test_the_schedule_follows_the_solver() -> None:
    cem = solver_schedule(settings("cem", iterations=2))
    assert [(step.candidates, step.with_mean, step.learns) for step in cem] == [
        (24, True, True),
        (24, True, True),
        (1, True, False),
    ]
    icem = solver_schedule(replace(settings("icem"), iterations=3))
    assert [step.with_mean for step in icem] == [True, False, True]
    assert all(step.learns for step in icem)
    assert [step.candidates for step in icem] == SOLVERS["icem"].candidates_per_ask(
        replace(settings("icem"), iterations=3)
    )
