"""Plans whose searches stay on the device: by the scheduler, eagerly on a CPU."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_models.checkpoint import EMBEDDED_MODEL, load
from lewm_models.config import PRESETS
from lewm_models.distance.network import GoalDistance
from lewm_models.random_weights import random_model
from lewm_serve.backends import cuda_graph
from lewm_serve.backends.backend import DeviceRollouts
from lewm_serve.backends.folded import FoldedKernel
from lewm_serve.backends.rollout import RowThreads, SharedContextRollout
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.engine import device_jobs
from lewm_serve.engine.admission import DeadlinePassed
from lewm_serve.engine.device_jobs import (
    DEVICE_TURN_S,
    DevicePlanJob,
    GroupKey,
    SearchGroup,
    on_device,
    warm_up_searches,
)
from lewm_serve.engine.jobs import PlanJob, PlanOutcome, Search
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.engine.scheduler import Scheduler
from lewm_serve.objectives import Objective
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT, LatentObjective
from lewm_serve.objectives.states import StateObjective, StateReader
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.device.search import DEVICE_SOLVERS, SearchShape, Step
from lewm_serve.solvers.solver import SearchSpace
from tests.lewm_serve.engine.fakes import FakeClock

CPU = torch.device("cpu")
CONFIG = replace(PRESETS["edge"], encoder_depth=1, predictor_depth=1)
ITERATION_S = 0.002
"""The time of an iteration, as the latency model expects it and as the clock advances."""

CROWD_TOLERANCE = 1e-3
"""The largest difference between the actions of a plan alone and beside others. Its products are
rounded differently, and the search amplifies that; 1.4e-4 was measured."""


@pytest.fixture(scope="module")
def model_and_distance() -> tuple[Any, GoalDistance]:
    generator = torch.Generator().manual_seed(0)
    network = GoalDistance(torch.zeros(CONFIG.latent_dim), torch.ones(CONFIG.latent_dim), 16)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return random_model(CONFIG), network


class DeviceEngine:
    """A scheduler with a backend whose searches stay on the device: here the CPU."""

    def __init__(self, model: Any, network: GoalDistance, *, max_rows: int = 4096) -> None:
        self.clock = FakeClock()
        self.backend = TorchBackend(model, CPU, searches_on_device=True)
        assert self.backend.device_rollouts is not None
        roll_out = self.backend.device_rollouts.roll_out
        self.batches: list[tuple[int, int]] = []

        def timed(latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
            self.batches.append((candidates.shape[0], candidates.shape[1]))
            self.clock.advance(ITERATION_S)
            return roll_out(latents, past_actions, candidates)

        self.backend.device_rollouts.roll_out = timed
        self.distance = DistanceObjective(network, CPU)
        self.latency = LatencyModel(
            [(1, ITERATION_S / 5), (100_000, ITERATION_S / 5)], max_batched_rows=max_rows
        )
        self.scheduler = Scheduler(self.clock)

    def plan(
        self,
        seed: int = 1,
        *,
        name: str = "cem",
        objective: Objective = LATENT,
        context: int = 1,
        deadline: float = math.inf,
        submit: bool = True,
        space: Callable[[SearchSpace], SearchSpace] = lambda space: space,
        with_trace: bool = False,
        with_trajectory: bool = False,
        committed: int = 0,
        **settings: Any,
    ) -> PlanJob:
        moderate: dict[str, Any] = {"samples": 24, "iterations": 4, "elites": 6, "horizon": 5}
        chosen = SolverConfig(name, **moderate | settings)
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(context, CONFIG.latent_dim, generator=generator)
        past = torch.randn(context - 1, CONFIG.block_width, generator=generator)
        bound = torch.full((CONFIG.block_width,), 1.5)
        start = torch.zeros(chosen.horizon, CONFIG.block_width)
        queued = QueuedRequest(
            self.latency,
            self.clock.now,
            deadline=deadline,
            candidates_per_iteration=SOLVERS[name].candidates_per_ask(chosen),
            shape=RolloutShape(chosen.horizon, context + committed),
        )
        queued.expect(len(queued.candidates_per_iteration))
        job = PlanJob(
            backend=self.backend,
            queued=queued,
            latents=latents,
            past_actions=past,
            committed_actions=torch.zeros(committed, CONFIG.block_width) if committed else None,
            goal=torch.randn(CONFIG.latent_dim, generator=generator),
            search=Search(
                chosen,
                space(SearchSpace(-bound, bound, start, CONFIG.action_dim)),
                seed,
                objective=objective,
                distance=self.distance if isinstance(objective, DistanceObjective) else None,
            ),
            with_trace=with_trace,
            with_trajectory=with_trajectory,
        )
        if submit:
            self.scheduler.submit(job)
        return job

    def run(self, turns: int = 1_000_000) -> None:
        while turns and not self.scheduler.idle:
            self.scheduler.run_turn()
            turns -= 1

    def outcome(self, seed: int = 1, **settings: Any) -> PlanOutcome:
        """Plan alone."""
        job = self.plan(seed, **settings)
        self.run()
        outcome: PlanOutcome = job.future.result(0)
        return outcome


@pytest.fixture
def engine(model_and_distance: tuple[Any, GoalDistance]) -> DeviceEngine:
    return DeviceEngine(*model_and_distance)


@pytest.fixture
def other_engine(model_and_distance: tuple[Any, GoalDistance]) -> DeviceEngine:
    return DeviceEngine(*model_and_distance)


def reference_cost(engine: DeviceEngine, job: PlanJob, outcome: PlanOutcome) -> float:
    """What the actions of an answer cost by the backend's own roll-out."""
    assert outcome.actions is not None
    predicted = engine.backend.rollout(
        job.latents.unsqueeze(0), job.past_actions.unsqueeze(0), outcome.actions[None, None]
    )
    return float(job.search.objective(predicted, job.goal.unsqueeze(0)))


@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize(("name", "context"), [("cem", 1), ("icem", 3), ("mppi", 2)])
def test_the_answer_is_what_was_scored(
    engine: DeviceEngine, name: str, context: int, by_distance: bool
) -> None:
    objective = engine.distance if by_distance else LATENT
    job = engine.plan(name=name, context=context, objective=objective)
    assert not isinstance(job, DevicePlanJob)  # the scheduler replaces it
    engine.run()
    outcome = job.future.result(0)
    settings = job.search.solver_settings
    assert outcome.status == "completed"
    assert outcome.iterations == settings.iterations
    assert outcome.scored_candidates == sum(SOLVERS[name].candidates_per_ask(settings))
    assert outcome.cost == pytest.approx(reference_cost(engine, job, outcome), rel=1e-4)
    assert (outcome.surprise is None) == (context == 1)
    assert outcome.actions is not None
    assert float(outcome.actions.abs().max()) <= 1.5
    if by_distance:
        assert outcome.distances is not None
        start = engine.distance.blocks(job.latents[None, -1:], job.goal)
        assert outcome.distances.start == pytest.approx(float(start), rel=1e-4)


def test_distances_need_no_further_rollout(
    engine: DeviceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*inputs: Tensor) -> Tensor:
        raise AssertionError("a roll-out on the host")

    monkeypatch.setattr(engine.backend, "rollout", refuse)
    assert engine.outcome(objective=engine.distance).distances is not None


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_a_plan_is_the_same_alone_and_in_a_crowd(
    engine: DeviceEngine, other_engine: DeviceEngine, name: str
) -> None:
    """Others have other settings, come in the middle, and leave earlier."""
    alone = [engine.outcome(seed, name=name, samples=20 + seed) for seed in range(5)]
    jobs = [other_engine.plan(0, name=name, samples=20)]
    for seed in range(1, 5):
        other_engine.run(turns=1)
        jobs.append(other_engine.plan(seed, name=name, samples=20 + seed))
    other_engine.run()
    assert max(plans for plans, _ in other_engine.batches) > 1
    for job, expected in zip(jobs, alone, strict=True):
        outcome = job.future.result(0)
        assert outcome.iterations == expected.iterations
        torch.testing.assert_close(outcome.actions, expected.actions, atol=CROWD_TOLERANCE, rtol=0)
        assert outcome.cost == pytest.approx(expected.cost, rel=1e-4)


def test_a_seed_fixes_a_plan(engine: DeviceEngine) -> None:
    first, second, other = (engine.outcome(1), engine.outcome(1), engine.outcome(2))
    assert first.actions is not None
    assert second.actions is not None
    assert torch.equal(first.actions, second.actions)
    assert not torch.equal(first.actions, other.actions)  # type: ignore[arg-type]


@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_an_iteration_reads_no_tensor(
    model_and_distance: tuple[Any, GoalDistance], name: str, context: int, by_distance: bool
) -> None:
    """A CUDA graph can record it: it runs on tensors that have shapes and no content."""
    model, network = model_and_distance
    device = torch.device("meta")
    kernel = FoldedKernel(model, device, torch.bfloat16)
    rollouts = DeviceRollouts(SharedContextRollout(kernel, RowThreads(1)), device)
    shape = SearchShape(
        solver=name,
        horizon=5,
        block_width=CONFIG.block_width,
        action_dim=CONFIG.action_dim,
        context=context,
        latent_dim=CONFIG.latent_dim,
        limits_change=True,
    )
    objective = DistanceObjective(network, device) if by_distance else LATENT
    group = SearchGroup(GroupKey(shape, objective), rollouts)
    candidates, costs = group.iterate([[Step()], [Step()]], 24)
    assert candidates.shape == (2, 24, 5, CONFIG.block_width)
    assert costs.shape == (2, 24)
    assert {candidates.device.type, costs.device.type} == {"meta"}


class ReplayedOnCPU:
    """What a CUDA graph does, on a CPU: a replay calls the function on the same inputs again."""

    recorded = 0

    def __init__(self, function: Callable[[], Any], device: torch.device, pool: Any) -> None:
        self.replay = function
        ReplayedOnCPU.recorded += 1
        for _ in range(cuda_graph.WARM_UP_CALLS + 1):
            function()


@pytest.fixture
def recorded_engine(engine: DeviceEngine, monkeypatch: pytest.MonkeyPatch) -> DeviceEngine:
    """An engine that records iterations as on a GPU."""
    monkeypatch.setattr(cuda_graph, "_Recording", ReplayedOnCPU)
    monkeypatch.setattr(ReplayedOnCPU, "recorded", 0)
    assert engine.backend.device_rollouts is not None
    engine.backend.device_rollouts.graph_pool = "pool"
    return engine


@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_recorded_iterations_are_the_same(
    recorded_engine: DeviceEngine, other_engine: DeviceEngine, name: str
) -> None:
    for _ in range(2):
        outcomes = []
        for engine in (recorded_engine, other_engine):
            jobs = [engine.plan(seed, name=name, with_trace=seed == 0) for seed in range(3)]
            engine.run()
            outcomes.append([job.future.result(0) for job in jobs])
        for recorded, expected in zip(*outcomes, strict=True):
            assert torch.equal(recorded.actions, expected.actions)
            assert recorded.cost == expected.cost
        shapes = ReplayedOnCPU.recorded
    assert 0 < shapes == ReplayedOnCPU.recorded  # the second time, nothing is recorded any more


def test_growing_tables_are_recorded_anew(
    recorded_engine: DeviceEngine, other_engine: DeviceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_jobs, "FIRST_CAPACITY", 2)
    jobs = [recorded_engine.plan(0, iterations=9)]
    recorded_engine.run(turns=1)
    before = ReplayedOnCPU.recorded
    jobs.append(recorded_engine.plan(1, iterations=9))
    recorded_engine.run()
    # That of two plans, that of a final mean, and once more that of one plan.
    assert ReplayedOnCPU.recorded == before + 3
    for seed, job in enumerate(jobs):
        expected = other_engine.outcome(seed, iterations=9)
        torch.testing.assert_close(
            job.future.result(0).actions, expected.actions, atol=CROWD_TOLERANCE, rtol=0
        )


def test_no_plan_of_the_usual_search_waits_for_a_recording(recorded_engine: DeviceEngine) -> None:
    solver = SolverConfig("icem", samples=24, iterations=4, elites=6, horizon=5)
    backend = recorded_engine.backend
    warm_up_searches(backend, CONFIG, solver, LATENT, max_rows=100)
    before = ReplayedOnCPU.recorded
    jobs = [recorded_engine.plan(seed, name="icem", context=3) for seed in range(3)]
    recorded_engine.run()
    jobs.append(recorded_engine.plan(name="icem"))
    recorded_engine.run()
    assert all(job.future.result(0).status == "completed" for job in jobs)
    assert ReplayedOnCPU.recorded == before > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", DEVICE_SOLVERS)
def test_plans_of_a_gpu_are_those_of_the_cpu(
    model_and_distance: tuple[Any, GoalDistance], engine: DeviceEngine, name: str
) -> None:
    on_gpu = DeviceEngine(*model_and_distance)
    on_gpu.backend = TorchBackend(model_and_distance[0], torch.device("cuda"))
    for seed in range(3):
        expected, outcome = engine.outcome(seed, name=name), on_gpu.outcome(seed, name=name)
        torch.testing.assert_close(outcome.actions, expected.actions, atol=0.01, rtol=0)
        assert outcome.cost == pytest.approx(expected.cost, rel=0.01)


def test_few_shapes_occur(engine: DeviceEngine) -> None:
    for seed in range(5):
        engine.plan(seed, name="icem", samples=96, elites=6, iterations=6)
    engine.run()
    assert {plans for plans, _ in engine.batches} == {6}
    # Two iterations of a turn have the padding of the first.
    assert [samples for _, samples in engine.batches] == [96, 96, 64, 64, 48, 48]


def test_padding_is_not_needed_for_plans_with_the_same_number_of_candidates(
    engine: DeviceEngine,
) -> None:
    for seed in range(2):
        engine.plan(seed, samples=300, iterations=2)
    engine.run()
    assert engine.batches == [(2, 300), (2, 300), (2, 1)]


def test_iterations_run_together_for_a_short_time(engine: DeviceEngine) -> None:
    together = int(DEVICE_TURN_S / ITERATION_S)
    assert together == 2
    job = engine.plan(iterations=6)
    engine.run(turns=1)
    assert job.queued.completed_iterations == together
    joining = engine.plan(2, iterations=6)
    engine.run(turns=1)
    assert joining.queued.completed_iterations == together
    assert engine.batches == [(1, 24)] * together + [(2, 24)] * together


def test_a_deadline_ends_a_search_between_two_iterations(engine: DeviceEngine) -> None:
    job = engine.plan(iterations=30, deadline=7.5 * ITERATION_S)
    engine.run()
    outcome = job.future.result(0)
    assert outcome.status == "deadline"
    assert outcome.iterations == 7
    assert engine.clock.now <= 7.5 * ITERATION_S
    assert outcome.cost == pytest.approx(reference_cost(engine, job, outcome), rel=1e-4)


def test_a_deadline_before_the_first_iteration(engine: DeviceEngine) -> None:
    job = engine.plan(deadline=0.5 * ITERATION_S)
    engine.run()
    with pytest.raises(DeadlinePassed):
        job.future.result(0)


def test_no_plan_waits_for_the_iterations_of_another(engine: DeviceEngine) -> None:
    """A plan that ends earlier is answered before the others go on."""
    long = engine.plan(1, name="mppi", iterations=30)
    short = engine.plan(2, name="mppi", iterations=1)
    engine.run(turns=1)
    assert short.future.result(0).status == "completed"
    assert long.queued.completed_iterations == 1
    assert engine.batches == [(2, 24)]


def test_the_search_stops_when_its_spread_is_within_the_tolerance(engine: DeviceEngine) -> None:
    for name in DEVICE_SOLVERS:
        outcome = engine.outcome(name=name, tolerance=1.0, iterations=30)
        assert outcome.status == "converged"
        assert outcome.iterations < 30
        # CEM scores its final mean after the last iteration.
        final = 1 if name == "cem" else 0
        counts = SOLVERS[name].candidates_per_ask(SolverConfig(name, 24, 30, 6))
        assert outcome.scored_candidates == sum(counts[: outcome.iterations]) + final


def test_a_traced_search_is_the_same_and_shows_its_iterations(engine: DeviceEngine) -> None:
    for name in DEVICE_SOLVERS:
        plain = engine.outcome(name=name)
        traced = engine.outcome(name=name, with_trace=True)
        assert torch.equal(plain.actions, traced.actions)  # type: ignore[arg-type]
        assert traced.trace is not None
        counts = SOLVERS[name].candidates_per_ask(SolverConfig(name, 24, 4, 6))
        assert [part.scored for part in traced.trace.iterations] == counts
        lowest = min(float(part.costs[0]) for part in traced.trace.iterations)
        assert lowest == traced.cost
        for part in traced.trace.iterations:
            assert bool((part.costs.diff() >= 0).all())


def test_the_trajectory_is_that_of_the_actions(engine: DeviceEngine) -> None:
    job = engine.plan(with_trajectory=True, context=2)
    engine.run()
    outcome = job.future.result(0)
    predicted = engine.backend.rollout(
        job.latents[None], job.past_actions[None], outcome.actions[None, None]
    )
    torch.testing.assert_close(outcome.trajectory, predicted[0, 0], atol=1e-4, rtol=0)


def test_committed_actions_come_before_the_search(engine: DeviceEngine) -> None:
    outcomes = [engine.outcome(committed=committed) for committed in (0, 1, 2)]
    assert len({outcome.cost for outcome in outcomes}) == 3
    assert all(outcome.status == "completed" for outcome in outcomes)


def test_changes_of_actions_are_limited(engine: DeviceEngine) -> None:
    limit = torch.full((CONFIG.action_dim,), 0.2)
    outcome = engine.outcome(space=lambda space: replace(space, max_change=limit))
    assert outcome.actions is not None
    steps = outcome.actions.reshape(-1, CONFIG.action_dim)
    assert float(steps.diff(dim=0).abs().max()) <= 0.2 + 1e-6


def test_what_is_no_tensor_program_is_searched_on_the_host(engine: DeviceEngine) -> None:
    probe = load(EMBEDDED_MODEL).probe
    assert probe is not None
    states = StateObjective(StateReader(probe, CPU))
    for changes in (
        {"name": "random"},
        {"name": "gradient"},
        {"objective": states},
        {"samples": 4096, "horizon": 17},
    ):
        job = engine.plan(submit=False, **changes)
        assert on_device(job) is job
    assert isinstance(on_device(engine.plan(submit=False)), DevicePlanJob)
    assert engine.outcome(name="random").status == "completed"
    assert engine.outcome(name="gradient", samples=2, iterations=1).status == "completed"


def test_searches_on_the_host_and_on_the_device_do_not_share_iterations(
    engine: DeviceEngine,
) -> None:
    jobs = [engine.plan(1), engine.plan(2, name="random"), engine.plan(3, name="mppi")]
    jobs.append(engine.plan(4, objective=engine.distance))
    engine.run()
    assert all(job.future.result(0).status == "completed" for job in jobs)
    assert {plans for plans, _ in engine.batches} == {1}


def test_plans_from_another_process_share_iterations(engine: DeviceEngine) -> None:
    """Each has a latent objective of its own."""
    for seed in range(2):
        engine.plan(seed, objective=LatentObjective())
    engine.run()
    assert {plans for plans, _ in engine.batches} == {2}


def test_only_the_plan_that_fails_gets_the_error(
    engine: DeviceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = engine.plan(1), engine.plan(2)
    rollouts = engine.backend.device_rollouts
    assert rollouts is not None
    roll_out, marked = rollouts.roll_out, bad.latents[0, 0]

    def failing(latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        if bool((latents[:, 0, 0] == marked).any()):
            raise RuntimeError("failing plan")
        return roll_out(latents, past_actions, candidates)

    rollouts.roll_out = failing
    engine.run()
    assert good.future.result(0).status == "completed"
    with pytest.raises(RuntimeError, match="failing plan"):
        bad.future.result(0)


def test_rows_of_plans_that_are_gone_are_used_again(engine: DeviceEngine) -> None:
    engine.outcome(1)
    rollouts = engine.backend.device_rollouts
    assert rollouts is not None
    (group,) = rollouts.searches.values()
    gc.collect()
    assert not group.in_use
    cancelled = engine.plan(2, iterations=9)
    engine.run(turns=1)
    assert group.in_use
    cancelled.future.cancel()
    engine.run()
    del cancelled
    gc.collect()
    assert not group.in_use


def test_more_plans_than_rows(engine: DeviceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [engine.outcome(seed) for seed in range(5)]
    rollouts = engine.backend.device_rollouts
    assert rollouts is not None
    rollouts.searches.clear()
    monkeypatch.setattr(device_jobs, "FIRST_CAPACITY", 2)
    jobs = [engine.plan(seed) for seed in range(5)]
    engine.run()
    for job, alone in zip(jobs, expected, strict=True):
        torch.testing.assert_close(
            job.future.result(0).actions, alone.actions, atol=CROWD_TOLERANCE, rtol=0
        )


def test_tables_are_few_and_end_with_their_backend(
    engine: DeviceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_jobs, "MAX_GROUPS", 2)
    rollouts = engine.backend.device_rollouts
    assert rollouts is not None
    for horizon in (1, 2, 1, 3):
        engine.outcome(horizon=horizon, iterations=1)
    assert [key.shape.horizon for key in rollouts.searches] == [1, 3]


def test_searches_find_plans_as_good_as_those_of_the_host(
    model_and_distance: tuple[Any, GoalDistance],
) -> None:
    """By distribution: the mean of the costs of 16 seeds, for each solver and objective."""
    model, network = model_and_distance
    for name, by_distance in itertools.product(DEVICE_SOLVERS, (False, True)):
        device, host = DeviceEngine(model, network), DeviceEngine(model, network)
        host.backend = TorchBackend(model, CPU)
        costs = []
        for engine in (device, host):
            engine.latency.max_batched_rows = 4096 if engine is device else 0
            jobs = [
                engine.plan(seed, name=name, objective=engine.distance if by_distance else LATENT)
                for seed in range(16)
            ]
            engine.run()
            costs.append(torch.tensor([job.future.result(0).cost for job in jobs]))
        # The same starts and goals: the differences of pairs.
        differences = costs[0] - costs[1]
        error = float(differences.std()) / math.sqrt(len(differences))
        assert abs(float(differences.mean())) < 4 * error + 1e-6
        assert not torch.equal(*costs)
