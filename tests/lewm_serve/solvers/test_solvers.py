"""What every solver guarantees."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import COMMON_SETTINGS
from tests.lewm_serve.solvers.toy_searches import (
    HIGH,
    LOW,
    Cost,
    bowl,
    new_solver,
    ripples,
    run,
    search,
    two_valleys,
)

every_solver = pytest.mark.parametrize("name", SOLVERS)


@every_solver
@pytest.mark.parametrize("cost", [bowl(0.7), two_valleys, ripples])
def test_it_finds_the_optimum(name: str, cost: Cost) -> None:
    best = search(name, cost).best
    assert best is not None
    assert best.cost == pytest.approx(0, abs=5e-3)


@every_solver
def test_an_optimum_outside_the_bounds_gives_actions_at_the_bound(name: str) -> None:
    best = search(name, bowl(5)).best
    assert best is not None
    assert torch.allclose(best.actions, HIGH.expand(3, 2), atol=1e-3)


@every_solver
@settings(max_examples=40)
@given(
    samples=st.integers(1, 40),
    elites=st.integers(1, 40),
    iterations=st.integers(1, 6),
    horizon=st.integers(1, 4),
    target=st.floats(-3, 3),
    deviation=st.floats(0.01, 100),
    penalty=st.sampled_from([0.0, math.nan, math.inf]),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_best_never_gets_worse_and_stays_in_bounds(
    name: str,
    samples: int,
    elites: int,
    iterations: int,
    horizon: int,
    target: float,
    deviation: float,
    penalty: float,
    seed: int,
) -> None:
    def cost(candidates: Tensor) -> Tensor:
        """A bowl that is not finite where the first component is above the target."""
        costs = bowl(target)(candidates)
        return torch.where(candidates[:, 0, 0] > target, costs + penalty, costs)

    solver = new_solver(
        name,
        seed,
        samples=samples,
        elites=min(elites, samples),
        iterations=iterations,
        horizon=horizon,
        deviation=deviation,
    )
    best_costs: list[float] = []
    sizes: list[int] = []
    for candidates in run(solver, cost):
        sizes.append(len(candidates))
        assert candidates.shape[1:] == (horizon, 2)
        assert ((candidates >= LOW) & (candidates <= HIGH)).all()
        assert solver.best is not None
        best_costs.append(solver.best.cost)
    assert solver.best is not None
    assert best_costs == sorted(best_costs, reverse=True)
    assert sizes == solver.candidates_per_ask(solver.settings)
    assert (solver.iterations, solver.scored_candidates) == (iterations, sum(sizes))
    exact = float(cost(solver.best.actions[None]).nan_to_num(nan=math.inf, posinf=math.inf))
    assert solver.best.cost == pytest.approx(exact, rel=1e-5)


@every_solver
@pytest.mark.parametrize(
    ("samples", "iterations", "elites"), [(96, 6, 10), (300, 30, 30), (1, 1, 1)]
)
def test_the_candidates_of_each_ask_are_known_in_advance(
    name: str, samples: int, iterations: int, elites: int
) -> None:
    solver = new_solver(name, samples=samples, iterations=iterations, elites=elites)
    expected = SOLVERS[name].candidates_per_ask(solver.settings)
    assert [len(candidates) for candidates in run(solver, bowl(0.2))] == expected


@every_solver
def test_the_seed_fixes_the_search_whatever_else_draws_random_numbers(name: str) -> None:
    def all_candidates(seed: int) -> Tensor:
        candidates = []
        for asked in run(new_solver(name, seed, iterations=3), two_valleys):
            torch.rand(3)
            candidates.append(asked)
        return torch.cat(candidates)

    assert torch.equal(all_candidates(7), all_candidates(7))
    assert not torch.equal(all_candidates(7), all_candidates(7 + 2**32))


@every_solver
@pytest.mark.parametrize("samples", [1, 8])
def test_the_start_is_a_candidate_of_the_first_iteration(name: str, samples: int) -> None:
    solver = new_solver(name, start=0.4, samples=samples, elites=1)
    assert torch.equal(solver.ask()[0], torch.full((3, 2), 0.4))


@every_solver
def test_one_sample_is_enough(name: str) -> None:
    solver = search(name, bowl(0.7), samples=1, elites=1, iterations=200, horizon=1)
    assert solver.best is not None
    start_cost = float(bowl(0.7)(torch.zeros(1, 1, 2)))
    # CEM and MPPI always score their mean. If they score nothing else, they stay at the start.
    assert solver.best.cost <= (start_cost if name in ("cem", "mppi") else start_cost / 4)


@every_solver
def test_a_search_converges_only_with_a_tolerance(name: str) -> None:
    for cost in (bowl(0.2), bowl(5)):
        patient = search(name, cost)
        assert (patient.iterations, patient.converged) == (30, False)
        tolerant = search(name, cost, tolerance=0.05)
        assert tolerant.converged
        assert tolerant.iterations < 30
        assert tolerant.best is not None
        assert patient.best is not None
        assert torch.allclose(tolerant.best.actions, patient.best.actions, atol=0.1)


@every_solver
def test_candidates_whose_cost_is_nan_are_never_the_best(name: str) -> None:
    def nan_for_every_second(candidates: Tensor) -> Tensor:
        is_odd = torch.arange(len(candidates)) % 2 == 1
        return bowl(0.5)(candidates).where(~is_odd, torch.nan)

    best = search(name, nan_for_every_second).best
    assert best is not None
    assert best.cost < 0.01


@every_solver
def test_an_iteration_without_a_finite_cost_does_not_end_the_search(name: str) -> None:
    solver = new_solver(name, tolerance=0.05)
    candidates = solver.ask()
    nan = torch.full_like(candidates, torch.nan)
    solver.tell(candidates, nan[:, 0, 0], nan)
    assert not solver.converged
    for _ in run(solver, bowl(0.5)):
        pass
    assert solver.best is not None
    assert solver.best.cost < 0.1


@every_solver
def test_equal_costs_give_finite_actions(name: str) -> None:
    solver = search(name, lambda candidates: 0 * candidates.sum(dim=(1, 2)) + 3)
    assert solver.best is not None
    assert solver.best.cost == 3
    assert solver.best.actions.isfinite().all()


@every_solver
def test_the_unit_of_the_cost_does_not_matter(name: str) -> None:
    # A power of two scales floating-point numbers exactly.
    plain = search(name, bowl(0.3), iterations=4)
    scaled = search(name, lambda candidates: 2**20 * bowl(0.3)(candidates), iterations=4)
    assert plain.best is not None
    assert scaled.best is not None
    assert torch.allclose(plain.best.actions, scaled.best.actions, atol=1e-5)


@every_solver
def test_resolved_settings_hold_what_the_solver_uses(name: str) -> None:
    settings = SolverConfig(name, tolerance=0.5, deviation=0.25)
    solver_type = SOLVERS[name]
    resolved = solver_type.all_settings(settings)
    assert resolved.keys() == {*COMMON_SETTINGS, *solver_type.own_settings}
    assert (resolved["name"], resolved["tolerance"]) == (name, 0.5)
    assert resolved["deviation"] == 0.25
    for setting in solver_type.own_settings.keys() - {"deviation", "elites"}:
        assert resolved[setting] == solver_type.own_settings[setting]


OTHER_SETTINGS = {
    "elites": 3,
    "momentum": 0.5,
    "deviation": 0.5,
    "noise_exponent": 1.0,
    "temperature": 1.0,
    "learning_rate": 0.01,
}
"""Values that differ from the defaults of all solvers."""


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, setting) for name, kind in SOLVERS.items() for setting in kind.own_settings],
)
def test_every_own_setting_matters(name: str, setting: str) -> None:
    def candidates(**settings: Any) -> list[Tensor]:
        return list(run(new_solver(name, iterations=2, horizon=5, **settings), two_valleys))

    default, changed = candidates(), candidates(**{setting: OTHER_SETTINGS[setting]})
    assert any(
        not torch.equal(first, second) for first, second in zip(default, changed, strict=True)
    )
