"""The trace of a search: what it keeps, and that the search is the same with it."""

import torch

from lewm_models.card import SolverConfig
from lewm_serve.engine import trace
from lewm_serve.engine.jobs import PlanJob, PlanOutcome
from lewm_serve.engine.trace import TraceRecorder
from tests.lewm_serve.engine.fakes import (
    WIDTH,
    FakeBackend,
    FakeClock,
    latency_model,
    queued_plan,
    search,
)


def outcome_of(solver: str, *, with_trace: bool, iterations: int = 3) -> PlanOutcome:
    """The outcome of a small search, run to its end by a clock that the work advances."""
    clock, latency = FakeClock(), latency_model()
    wanted = search(solver, iterations=iterations)
    job = PlanJob(
        FakeBackend(clock),
        queued_plan(latency, wanted),
        latents=torch.ones(1, WIDTH),
        past_actions=torch.empty(0, WIDTH),
        goal=torch.zeros(WIDTH),
        search=wanted,
        with_trace=with_trace,
    )
    while not job.finished:
        assert job.next_candidates_in_time(clock.now)
        job.start_part(clock.now)
        job.run_part()
    return job.result(clock.now)


def test_a_search_is_the_same_with_a_trace() -> None:
    for solver in ("cem", "icem", "mppi", "random", "gradient"):
        plain, traced = (outcome_of(solver, with_trace=value) for value in (False, True))
        assert plain.trace is None
        assert traced.trace is not None
        assert plain.actions is not None
        assert traced.actions is not None
        assert torch.equal(plain.actions, traced.actions)
        assert plain.cost == traced.cost


def test_a_trace_has_each_iteration_with_its_best_candidates_first() -> None:
    outcome = outcome_of("cem", with_trace=True)
    assert outcome.trace is not None
    parts = outcome.trace.iterations
    assert [part.scored for part in parts] == [8, 8, 8, 1]  # the last one is the final mean
    assert [part.is_final_mean for part in parts] == [False, False, False, True]
    assert [part.elites for part in parts] == [2, 2, 2, 1]
    assert [part.candidates.shape for part in parts] == [(8, 2, WIDTH)] * 3 + [(1, 2, WIDTH)]
    for part in parts:
        assert torch.equal(part.costs, part.costs.sort().values)
        # With the fake backend, a candidate's last latent is its last action.
        assert torch.allclose(part.costs, part.candidates[:, -1].square().sum(dim=-1))
    assert min(float(part.costs[0]) for part in parts) == outcome.cost
    ends = [part.ended_s for part in parts]
    assert ends == sorted(ends)
    assert ends[0] > 0
    assert abs(ends[-1] - outcome.solve_s) < 1e-9


def test_solvers_without_elites_have_one_best_candidate() -> None:
    outcome = outcome_of("mppi", with_trace=True)
    assert outcome.trace is not None
    assert [part.elites for part in outcome.trace.iterations] == [1, 1, 1]
    assert not any(part.is_final_mean for part in outcome.trace.iterations)


def test_a_long_search_keeps_fewer_candidates_of_each_iteration() -> None:
    settings = SolverConfig("cem", samples=1000, iterations=200, horizon=50)
    recorder = TraceRecorder(settings, counts_elites=True)
    candidates = torch.randn(1000, 50, 10)
    for _ in range(200):
        recorder.begin(0.0)
        recorder.end(candidates, candidates[:, 0, 0])
    made = recorder.finish(
        0.0, 1.0, iterations=200, latents=torch.zeros(1, 4), past_actions=torch.zeros(0, 10)
    )
    kept = [len(part.candidates) for part in made.iterations]
    assert kept == [trace.MIN_KEPT] * 200
    assert made.size_in_bytes < 4 * (200 * trace.MIN_KEPT * (50 * 10 + 1) + 100)
    assert made.iterations[0].costs[0] == candidates[:, 0, 0].min()
    assert made.iterations[0].costs[-1] == candidates[:, 0, 0].max()
