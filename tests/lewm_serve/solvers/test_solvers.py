"""What holds for every solver."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lewm_serve.solvers import SOLVERS
from tests.lewm_serve.solvers.searches import (
    HIGH,
    LOW,
    Cost,
    new,
    ripples,
    run,
    search,
    to_point,
    two_valleys,
)

every = pytest.mark.parametrize("name", SOLVERS)


@every
@pytest.mark.parametrize("cost", [to_point(0.7), two_valleys, ripples])
def test_it_finds_the_optimum(name: str, cost: Cost) -> None:
    best = search(name, cost).best
    assert best is not None
    assert best.cost == pytest.approx(0, abs=5e-3)


@every
def test_an_optimum_outside_the_bounds_is_met_at_the_bound(name: str) -> None:
    best = search(name, to_point(5)).best
    assert best is not None
    assert torch.allclose(best.actions, HIGH.expand(3, 2), atol=1e-3)


@every
@settings(max_examples=40)
@given(
    samples=st.integers(1, 40),
    elites=st.integers(1, 40),
    iterations=st.integers(1, 6),
    horizon=st.integers(1, 4),
    target=st.floats(-3, 3),
    deviation=st.floats(0.01, 100),
    hole=st.sampled_from([0.0, math.nan, math.inf]),
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
    hole: float,
    seed: int,
) -> None:
    def cost(candidates: Tensor) -> Tensor:
        """A bowl, but no number where the first component is above the target."""
        bowl = to_point(target)(candidates)
        return torch.where(candidates[:, 0, 0] > target, bowl + hole, bowl)

    solver = new(
        name,
        seed,
        samples=samples,
        elites=min(elites, samples),
        iterations=iterations,
        horizon=horizon,
        deviation=deviation,
    )
    bests: list[float] = []
    asked: list[int] = []
    for candidates in run(solver, cost):
        asked.append(len(candidates))
        assert candidates.shape[1:] == (horizon, 2)
        assert ((candidates >= LOW) & (candidates <= HIGH)).all()
        assert solver.best is not None
        bests.append(solver.best.cost)
    assert solver.best is not None
    assert bests == sorted(bests, reverse=True)
    assert asked == solver.workload()
    assert (solver.iterations, solver.candidates) == (iterations, sum(asked))
    exact = float(cost(solver.best.actions[None]).nan_to_num(nan=math.inf, posinf=math.inf))
    assert solver.best.cost == pytest.approx(exact, rel=1e-5)


@every
def test_the_seed_fixes_the_search_whatever_else_draws_numbers(name: str) -> None:
    def asked(seed: int) -> Tensor:
        asked = []
        for candidates in run(new(name, seed, iterations=3), two_valleys):
            torch.rand(3)
            asked.append(candidates)
        return torch.cat(asked)

    assert torch.equal(asked(7), asked(7))
    assert not torch.equal(asked(7), asked(7 + 2**32))


@every
@pytest.mark.parametrize("samples", [1, 8])
def test_the_warm_start_is_scored_in_the_first_iteration(name: str, samples: int) -> None:
    solver = new(name, start=0.4, samples=samples, elites=1)
    assert any(torch.equal(candidate, torch.full((3, 2), 0.4)) for candidate in solver.ask())


@every
def test_one_sample_is_enough(name: str) -> None:
    solver = search(name, to_point(0.7), samples=1, elites=1, iterations=200, horizon=1)
    assert solver.best is not None
    start = float(to_point(0.7)(torch.zeros(1, 1, 2)))
    # CEM and MPPI always score their mean; where that is all they score, they stay at the start.
    assert solver.best.cost <= (start if name in ("cem", "mppi") else start / 4)


@every
def test_it_converges_only_when_asked_to(name: str) -> None:
    for cost in (to_point(0.2), to_point(5)):
        patient = search(name, cost)
        assert (patient.iterations, patient.converged) == (30, False)
        eager = search(name, cost, tolerance=0.05)
        assert eager.converged
        assert eager.iterations < 30
        assert eager.best is not None
        assert patient.best is not None
        assert torch.allclose(eager.best.actions, patient.best.actions, atol=0.1)


@every
def test_costs_that_are_no_numbers_lose(name: str) -> None:
    def broken(candidates: Tensor) -> Tensor:
        odd = torch.arange(len(candidates)) % 2 == 1
        return to_point(0.5)(candidates).where(~odd, torch.nan)

    best = search(name, broken).best
    assert best is not None
    assert best.cost < 0.01


@every
def test_it_survives_an_iteration_without_a_number(name: str) -> None:
    solver = new(name, tolerance=0.05)
    candidates = solver.ask()
    nothing = torch.full_like(candidates, torch.nan)
    solver.tell(candidates, nothing[:, 0, 0], nothing)
    assert not solver.converged
    for _ in run(solver, to_point(0.5)):
        pass
    assert solver.best is not None
    assert solver.best.cost < 0.1


@every
def test_costs_that_are_all_alike_do_no_harm(name: str) -> None:
    solver = search(name, lambda candidates: 0 * candidates.sum(dim=(1, 2)) + 3)
    assert solver.best is not None
    assert solver.best.cost == 3
    assert solver.best.actions.isfinite().all()


@every
def test_the_unit_of_the_cost_does_not_matter(name: str) -> None:
    # A power of two scales floating-point numbers exactly.
    plain = search(name, to_point(0.3), iterations=4)
    scaled = search(name, lambda candidates: 2**20 * to_point(0.3)(candidates), iterations=4)
    assert plain.best is not None
    assert scaled.best is not None
    assert torch.allclose(plain.best.actions, scaled.best.actions, atol=1e-5)


@every
def test_it_says_what_it_runs_with(name: str) -> None:
    resolved = new(name, tolerance=0.5).resolved()
    assert resolved["name"] == name
    assert resolved["tolerance"] == 0.5
    assert set(resolved) == {"name", "samples", "iterations", "horizon", "tolerance"} | set(
        SOLVERS[name].own
    )


TUNED = {
    "elites": 3,
    "momentum": 0.5,
    "deviation": 0.5,
    "noise_exponent": 1.0,
    "temperature": 1.0,
    "learning_rate": 0.01,
}


@pytest.mark.parametrize(
    ("name", "setting"), [(name, own) for name, kind in SOLVERS.items() for own in kind.own]
)
def test_every_setting_of_its_own_matters(name: str, setting: str) -> None:
    def asked(**settings: Any) -> list[Tensor]:
        return list(run(new(name, iterations=2, horizon=5, **settings), two_valleys))

    default, changed = asked(), asked(**{setting: TUNED[setting]})
    assert any(
        not torch.equal(first, second) for first, second in zip(default, changed, strict=True)
    )
