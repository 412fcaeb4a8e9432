"""The turns of the scheduler under a clock that only work advances."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lewm_models.card import ObjectiveName
from lewm_serve.engine.admission import DeadlinePassed
from lewm_serve.engine.batching import ENCODE_TURN_S, MAX_ENCODE_BATCH, encode_batch_size
from lewm_serve.engine.jobs import EncodeJob, PlanJob, PlanOutcome, PredictJob, Search
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.engine.queued_request import MAX_PART_STEPS, TURN_S, Client
from lewm_serve.engine.scheduler import (
    FOLLOW_UP_S,
    LONG_PART_S,
    MAX_RECORDED_BATCHES,
    RECENT_S,
    Batch,
    Scheduler,
)
from lewm_serve.engine.shared_numbers import RowTable
from tests.lewm_serve.engine.fakes import (
    FRAME_S,
    ROW_S,
    STEP_S,
    WIDTH,
    FakeBackend,
    FakeClock,
    encode_job,
    latency_model,
    plan_job,
    predict_job,
    queued_plan,
    search,
)

ITERATION_S = latency_model().rollout_s(8, RolloutShape(2))

SHORT_SEARCH = search()
"""Three iterations and the final mean: four roll-outs."""


class FakeEngine:
    """A scheduler, its clock, and a backend whose latencies are known."""

    def __init__(self, max_batched_rows: int = 0) -> None:
        self.clock = FakeClock()
        self.backend = FakeBackend(self.clock, batching_pays=max_batched_rows > 0)
        self.latency = latency_model(max_batched_rows, self.clock)
        self.scheduler = Scheduler(self.clock)

    def plan(self, tag: float, search: Search = SHORT_SEARCH, **settings: Any) -> PlanJob:
        """Submit a plan that the backend's calls name by ``tag``."""
        job = plan_job(self.backend, self.latency, tag, search, **settings)
        self.scheduler.submit(job)
        return job

    def encode(self, value: int, count: int = 1) -> EncodeJob:
        """Submit frames whose pixels all have one value."""
        job = encode_job(self.backend, self.latency, value, count)
        self.scheduler.submit(job)
        return job

    def run(self, turns: int = 1_000_000) -> None:
        """Take turns until no job waits."""
        while turns and not self.scheduler.idle:
            self.scheduler.run_turn()
            turns -= 1

    @property
    def batches(self) -> list[Batch]:
        return list(self.scheduler.batches)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def batching_engine() -> FakeEngine:
    return FakeEngine(max_batched_rows=256)


def test_waiting_frames_are_encoded_as_one_batch(engine: FakeEngine) -> None:
    jobs = [engine.encode(value, count=value) for value in (1, 1, 3)]
    engine.run()
    for value, job in zip((1, 1, 3), jobs, strict=True):
        assert torch.equal(job.future.result(0), torch.full((value, WIDTH), float(value)))
    assert engine.batches == [Batch("encode", 5)]


def test_frames_wait_for_one_step_at_most(engine: FakeEngine) -> None:
    engine.plan(1)
    engine.run(turns=1)
    engine.encode(1)
    engine.run()
    assert [kind for kind, _ in engine.backend.calls][:3] == ["rollout", "encode", "rollout"]


def test_a_few_frames_do_not_wait_for_very_many(engine: FakeEngine) -> None:
    many, few = engine.encode(1, 10 * MAX_ENCODE_BATCH), engine.encode(2, 2)
    engine.run(turns=1)
    assert few.future.done()
    assert not many.future.done()
    engine.run()
    assert len(many.future.result(0)) == 10 * MAX_ENCODE_BATCH
    assert max(batch.rows for batch in engine.batches) <= MAX_ENCODE_BATCH


def test_frames_are_counted_when_their_encoding_starts(engine: FakeEngine) -> None:
    batch = encode_batch_size(engine.latency)
    assert batch * FRAME_S == pytest.approx(ENCODE_TURN_S)
    job = engine.encode(1, batch + 1)
    engine.run(turns=1)
    assert job.queued.frames_started == batch
    engine.run(turns=1)
    assert job.queued.frames_started == batch + 1


@pytest.mark.parametrize(
    ("frame_s", "frames"), [(0.0, 32), (1e-4, 32), (1e-3, 10), (3e-3, 4), (1.0, 4)]
)
def test_a_batch_of_frames_is_short(frame_s: float, frames: int) -> None:
    assert encode_batch_size(LatencyModel(encode_s=frame_s)) == frames


def test_frames_of_urgent_requests_come_first(engine: FakeEngine) -> None:
    many = engine.encode(1, 100)
    urgent = encode_job(engine.backend, engine.latency, 2, 3)
    urgent.queued.deadline = 1.0
    engine.scheduler.submit(urgent)
    engine.run(turns=1)
    assert urgent.future.done()
    assert not many.future.done()
    assert engine.backend.calls[0] == ("encode", (2, 2, 2))


def test_a_bad_frame_fails_alone(engine: FakeEngine) -> None:
    good, bad, other = (engine.encode(value) for value in (1, 255, 2))
    engine.run()
    assert torch.equal(good.future.result(0), torch.ones(1, WIDTH))
    assert torch.equal(other.future.result(0), torch.full((1, WIDTH), 2.0))
    with pytest.raises(RuntimeError, match="white frame"):
        bad.future.result(0)
    engine.backend.calls.clear()
    only = engine.encode(255)
    engine.run()
    assert engine.backend.calls == [("encode", (255,))]
    with pytest.raises(RuntimeError, match="white frame"):
        only.future.result(0)
    assert engine.scheduler.idle


def test_a_cancelled_encode_is_not_run(engine: FakeEngine) -> None:
    engine.encode(1).future.cancel()
    engine.run()
    assert engine.backend.calls == []


def test_deadlines_come_first_and_priorities_count_as_time(engine: FakeEngine) -> None:
    engine.plan(1, arrival=0.1)
    engine.plan(2, arrival=0.0)
    engine.plan(3, arrival=0.2, deadline=5.0)
    engine.plan(4, arrival=0.3, priority=9)
    engine.plan(5, arrival=0.0, priority=0, deadline=2.0)
    engine.run()
    assert list(dict.fromkeys(engine.backend.rolled_out())) == [3, 5, 4, 2, 1]


def test_a_plan_without_a_deadline_is_not_overtaken_for_ever(engine: FakeEngine) -> None:
    patient = engine.plan(-1, arrival=0.0)
    tag = 0
    while not patient.future.done():
        tag += 1
        now = engine.clock.now
        engine.plan(tag, arrival=now, deadline=now + 1)
        engine.run(turns=4)
        assert engine.clock.now < 20
    assert engine.clock.now > 8


def test_overdue_plans_take_a_tenth_of_the_time(engine: FakeEngine) -> None:
    """However many they are: plans with deadlines keep the rest."""
    for tag in range(100):
        engine.plan(-1 - tag, search(iterations=100), arrival=-20.0)
    end = 3.0
    tag = 0
    while engine.clock.now < end:
        tag += 1
        engine.plan(tag, arrival=engine.clock.now, deadline=engine.clock.now + 1)
        engine.run(turns=4)
    overdue = sum(tag < 0 for tag in engine.backend.rolled_out())
    assert overdue / len(engine.backend.rolled_out()) == pytest.approx(0.1, abs=0.02)


def test_clients_without_deadlines_take_turns(engine: FakeEngine) -> None:
    """A client with many long plans does not hold up one with a short plan."""
    hog, other = Client(engine.clock), Client(engine.clock)
    for tag in range(1, 11):
        engine.plan(tag, search(iterations=1000), client=hog)
    engine.run(turns=1)
    short = engine.plan(99, arrival=engine.clock.now, client=other)
    while not short.future.done():
        engine.run(turns=1)
    assert engine.clock.now < 1.5 * TURN_S
    assert set(engine.backend.rolled_out()) == {1, 99}


@pytest.mark.parametrize("independent", [True, False])
def test_plans_without_a_deadline_have_short_parts_beside_urgent_plans(
    engine: FakeEngine, independent: bool
) -> None:
    engine.backend.rows_are_independent = independent
    whole = MAX_PART_STEPS // 2
    engine.plan(1, search(samples=whole, iterations=3))
    engine.run(turns=1)
    assert engine.backend.shapes == [(1, whole)]
    engine.plan(2, arrival=engine.clock.now, deadline=engine.clock.now + 1)
    engine.run(turns=5)
    assert engine.backend.shapes[5:] == [(1, whole // 4 if independent else whole)]
    engine.clock.advance(RECENT_S)
    engine.run()
    assert engine.backend.shapes[-2] == (1, whole)  # the last roll-out is that of the mean


def test_a_short_part_is_not_longer_than_an_ordinary_one(engine: FakeEngine) -> None:
    horizon = MAX_PART_STEPS // 8
    engine.plan(1, search(samples=16, iterations=1, horizon=horizon))
    engine.plan(2, deadline=engine.clock.now + 1)
    engine.run()
    assert max(samples for _, samples in engine.backend.shapes) == 8


def test_after_a_long_part_best_effort_work_pauses_beside_urgent_plans(engine: FakeEngine) -> None:
    """Otherwise nearly every urgent plan would come during such a part."""
    part_s = 10 * LONG_PART_S
    engine.backend.noise = [part_s / engine.backend.rollout_s(4, 2)]
    engine.plan(1, search(samples=4, iterations=100, horizon=2))
    engine.run(turns=1)
    assert engine.scheduler.pause_s() <= 0  # no urgent plan came yet
    urgent = engine.plan(2, SHORT_SEARCH, arrival=engine.clock.now, deadline=engine.clock.now + 10)
    while not urgent.future.done():
        assert engine.scheduler.pause_s() <= 0
        engine.run(turns=1)
    engine.run(turns=1)
    assert engine.scheduler.pause_s() == pytest.approx(part_s, rel=0.01)
    engine.plan(3, SHORT_SEARCH, arrival=engine.clock.now, deadline=engine.clock.now + 10)
    assert engine.scheduler.pause_s() <= 0  # urgent work does not wait


def test_frames_of_several_requests_are_encoded_with_their_own_states(engine: FakeEngine) -> None:
    jobs = [
        encode_job(engine.backend, engine.latency, value, count)
        for value, count in ((1, 2), (2, 1))
    ]
    jobs[0].states, jobs[1].states = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])
    for job in jobs:
        engine.scheduler.submit(job)
    engine.run()
    (states,) = engine.backend.states
    assert states is not None
    assert states.tolist() == [[1.0], [2.0], [3.0]]


def test_best_effort_work_waits_for_the_search_of_encoded_frames(engine: FakeEngine) -> None:
    """Otherwise the search would have to wait for a part of another plan."""
    queued = queued_plan(engine.latency, SHORT_SEARCH, deadline=1.0, frames_to_encode=1)
    assert engine.scheduler.pause_s() <= 0
    frames = torch.zeros(1, 2, 2, WIDTH, dtype=torch.uint8)
    queued.expect(4)
    engine.scheduler.submit(EncodeJob(engine.backend, frames, queued))
    engine.run(turns=1)
    assert 0 < engine.scheduler.pause_s() <= FOLLOW_UP_S
    job = plan_job(engine.backend, engine.latency, 1, SHORT_SEARCH)
    job.queued = queued
    engine.scheduler.submit(job)
    assert engine.scheduler.pause_s() == 0
    engine.run()


def test_the_search_may_come_with_another_object_for_the_same_request(engine: FakeEngine) -> None:
    """Each message makes its own, with an engine in a process of its own."""
    table = RowTable(1)
    queued = queued_plan(engine.latency, SHORT_SEARCH, deadline=1.0, frames_to_encode=1)
    numbers, queued.row = list(queued.row.numbers), table.take()
    for index, number in enumerate(numbers):
        queued.row.numbers[index] = number
    queued.expect(4)
    frames = torch.zeros(1, 2, 2, WIDTH, dtype=torch.uint8)
    engine.scheduler.submit(EncodeJob(engine.backend, frames, queued))
    engine.run(turns=1)
    assert engine.scheduler.pause_s() > 0
    job = plan_job(engine.backend, engine.latency, 1, SHORT_SEARCH)
    job.queued = copy(queued)
    assert job.queued is not queued
    engine.scheduler.submit(job)
    job.future.cancel()  # so that no time passes
    engine.run()
    assert engine.scheduler.pause_s() <= 0


def test_a_search_that_does_not_follow_is_not_waited_for_long(engine: FakeEngine) -> None:
    queued = queued_plan(engine.latency, SHORT_SEARCH, deadline=1.0, frames_to_encode=1)
    queued.expect(4)
    frames = torch.zeros(1, 2, 2, WIDTH, dtype=torch.uint8)
    engine.scheduler.submit(EncodeJob(engine.backend, frames, queued))
    engine.run(turns=1)
    engine.clock.advance(FOLLOW_UP_S)
    assert engine.scheduler.pause_s() <= 0


def test_the_engine_is_free_when_work_has_ended(engine: FakeEngine) -> None:
    """However long it was expected to take. Otherwise admission would count work that is over."""
    engine.backend.noise = [0.01]
    engine.plan(1)
    engine.run(turns=1)
    assert engine.scheduler.free_at == engine.clock.now
    engine.latency._frame_s = 1000.0
    engine.encode(1)
    engine.run()
    assert engine.scheduler.free_at == engine.clock.now


def test_priorities_count_as_seconds_of_waiting(engine: FakeEngine) -> None:
    """A stream of higher priorities delays a plan, but not for ever."""
    low = engine.plan(-1, arrival=0.0, priority=0)
    tag = 0
    while not low.future.done():
        tag += 1
        engine.plan(tag, arrival=engine.clock.now, priority=9)
        engine.run(turns=4)
        assert engine.clock.now < 10
    assert engine.clock.now > 8.5


def test_a_late_deadline_counts_like_none(engine: FakeEngine) -> None:
    engine.plan(2, arrival=0.1)
    engine.plan(1, arrival=0.0, deadline=1e6)
    engine.run()
    assert list(dict.fromkeys(engine.backend.rolled_out())) == [1, 2]


def test_a_more_urgent_plan_overtakes_at_the_next_iteration(engine: FakeEngine) -> None:
    engine.plan(1)
    engine.run(turns=1)
    engine.plan(2, priority=9)
    engine.run()
    assert engine.backend.rolled_out() == [1, 2, 2, 2, 2, 1, 1, 1]


def test_a_more_urgent_plan_overtakes_within_a_large_iteration(engine: FakeEngine) -> None:
    part = MAX_PART_STEPS // 2
    engine.plan(1, search(samples=3 * part, iterations=1))
    engine.run(turns=1)
    engine.plan(2, priority=9)
    engine.run()
    assert engine.backend.rolled_out() == [1, 2, 2, 2, 2, 1, 1, 1]


def test_a_plan_stops_at_its_deadline_with_its_best(engine: FakeEngine) -> None:
    deadline = 5.5 * ITERATION_S
    job = engine.plan(1, search(iterations=100), deadline=deadline)
    engine.run()
    outcome: PlanOutcome = job.future.result(0)
    assert (outcome.status, outcome.iterations) == ("deadline", 5)
    assert outcome.cost is not None
    assert outcome.cost < torch.inf
    assert engine.clock.now <= deadline


def test_a_plan_is_answered_before_a_step_of_others_that_outlasts_its_deadline(
    engine: FakeEngine,
) -> None:
    job = engine.plan(1, search(iterations=100), deadline=3.5 * ITERATION_S)
    answered: list[float] = []
    job.future.add_done_callback(lambda _: answered.append(engine.clock.now))
    engine.run(turns=2)
    now = engine.clock.now
    engine.plan(2, search(samples=500), arrival=now, deadline=now + 1, priority=9)
    engine.run()
    assert job.future.result(0).iterations == 2
    assert answered[0] <= job.queued.deadline


def test_a_plan_without_time_for_an_iteration_is_not_started(engine: FakeEngine) -> None:
    job = engine.plan(1, deadline=0.5 * ITERATION_S)
    engine.run()
    with pytest.raises(DeadlinePassed):
        job.future.result(0)
    assert engine.backend.calls == []


def test_time_is_left_for_the_trajectory(engine: FakeEngine) -> None:
    deadline = 3 * ITERATION_S + 0.001
    job = engine.plan(1, search(iterations=100), deadline=deadline)
    job.with_trajectory = True
    engine.run()
    assert job.future.result(0).trajectory.shape == (2, WIDTH)
    assert engine.clock.now <= deadline


def test_a_cancelled_plan_costs_no_further_iteration(engine: FakeEngine) -> None:
    job = engine.plan(1)
    engine.run(turns=1)
    assert job.future.cancel()
    engine.plan(2)
    engine.run()
    assert engine.backend.rolled_out().count(1) == 1


def test_a_failing_plan_fails_alone(engine: FakeEngine) -> None:
    failing, good = engine.plan(1), engine.plan(2)
    failing.goal = torch.zeros(4)
    engine.run()
    with pytest.raises(RuntimeError):
        failing.future.result(0)
    assert good.future.result(0).status == "completed"


def test_a_prediction_without_time_is_not_started(engine: FakeEngine) -> None:
    job = predict_job(engine.backend, engine.latency, 1, torch.rand(4, 2, WIDTH))
    job.queued.deadline = 1e-6
    engine.scheduler.submit(job)
    engine.run()
    with pytest.raises(DeadlinePassed):
        job.future.result(0)
    assert engine.backend.calls == []


def test_a_finished_prediction_keeps_its_guarantee(engine: FakeEngine) -> None:
    """It counts as one iteration, in part as long as it is rolled out in parts."""
    job = predict_job(engine.backend, engine.latency, 1, torch.rand(MAX_PART_STEPS, 2, WIDTH))
    engine.scheduler.submit(job)
    engine.run(turns=1)
    assert (job.queued.started_iterations, job.queued.completed_iterations) == (0.5, 0)
    engine.run()
    assert (job.queued.started_iterations, job.queued.completed_iterations) == (1, 1)


def test_a_prediction_is_one_rollout(engine: FakeEngine) -> None:
    candidates = torch.rand(4, 2, WIDTH)
    job = predict_job(engine.backend, engine.latency, 1, candidates)
    engine.scheduler.submit(job)
    engine.run()
    assert torch.equal(job.future.result(0).latents, candidates)
    assert engine.batches == [Batch("rollout", 4)]


def test_a_large_prediction_is_rolled_out_in_parts(engine: FakeEngine) -> None:
    rows = MAX_PART_STEPS // 2
    candidates = torch.rand(2 * rows + 1, 2, WIDTH)
    job = predict_job(engine.backend, engine.latency, 1, candidates)
    engine.scheduler.submit(job)
    engine.run()
    assert torch.equal(job.future.result(0).latents, candidates)
    assert engine.batches == [Batch("rollout", rows), Batch("rollout", rows), Batch("rollout", 1)]


def test_a_plan_by_gradients_runs_in_parts_and_alone(batching_engine: FakeEngine) -> None:
    samples = MAX_PART_STEPS // 2 + 10
    job = batching_engine.plan(1, search("gradient", samples=samples, iterations=30))
    batching_engine.plan(2)
    batching_engine.run()
    outcome = job.future.result(0)
    assert outcome.cost == pytest.approx(0, abs=1e-3)
    assert (outcome.iterations, outcome.scored_candidates) == (30, 30 * samples)
    calls = batching_engine.backend.calls
    assert [counts for kind, counts in calls if kind == "gradients"] == [
        (samples - 10,),
        (10,),
    ] * 30
    assert set(batching_engine.backend.rolled_out()) == {2}


def test_where_batching_does_not_pay_plans_run_one_after_another(engine: FakeEngine) -> None:
    for tag in (1, 2):
        engine.plan(tag, arrival=tag)
    engine.run()
    assert engine.backend.rolled_out() == [1] * 4 + [2] * 4


def test_where_batching_pays_plans_share_rollouts(batching_engine: FakeEngine) -> None:
    for tag in (1, 2, 3):
        batching_engine.plan(tag, arrival=tag)
    batching_engine.run()
    assert batching_engine.backend.calls == [("rollout", (1, 2, 3))] * 4
    assert batching_engine.batches[0] == Batch("rollout", 24)


def test_a_batch_takes_the_most_urgent_plans_that_fit(batching_engine: FakeEngine) -> None:
    for tag in (1, 2, 3):
        batching_engine.plan(tag, search(samples=100), arrival=-tag)
    batching_engine.run(turns=1)
    assert batching_engine.backend.calls == [("rollout", (3, 2))]
    assert batching_engine.backend.shapes == [(2, 128)]


def test_batching_changes_no_answer(engine: FakeEngine, batching_engine: FakeEngine) -> None:
    samples_by_tag = {1: 8, 2: 11, 3: 5, 4: 30, 5: 8}

    def outcomes(one: FakeEngine) -> list[PlanOutcome]:
        jobs = [
            one.plan(tag, search(samples=samples, seed=tag))
            for tag, samples in samples_by_tag.items()
        ]
        one.run()
        return [job.future.result(0) for job in jobs]

    for alone, batched in zip(outcomes(engine), outcomes(batching_engine), strict=True):
        assert alone.actions is not None
        assert batched.actions is not None
        assert torch.equal(alone.actions, batched.actions)
        assert (alone.cost, alone.scored_candidates) == (batched.cost, batched.scored_candidates)
    assert len(batching_engine.backend.calls) < len(engine.backend.calls)


def test_other_shapes_and_jobs_that_must_run_alone_are_not_batched(
    batching_engine: FakeEngine,
) -> None:
    batching_engine.plan(1, arrival=-1)
    batching_engine.plan(2, search(horizon=3))
    batching_engine.plan(3).can_be_batched = False
    batching_engine.run(turns=1)
    assert batching_engine.backend.calls == [("rollout", (1,))]


@pytest.mark.parametrize("failing_tag", [1.0, 2.0, 3.0])
def test_a_failing_plan_of_a_batch_fails_alone(
    batching_engine: FakeEngine, failing_tag: float
) -> None:
    batching_engine.backend.failing_tags = frozenset({failing_tag})
    jobs = {tag: batching_engine.plan(tag) for tag in (1.0, 2.0, 3.0)}
    batching_engine.run()
    for tag, job in jobs.items():
        if tag == failing_tag:
            with pytest.raises(RuntimeError, match="failing plan"):
                job.future.result(0)
        else:
            assert job.future.result(0).status == "completed"


def test_a_plan_of_a_batch_whose_costs_fail_fails_alone(batching_engine: FakeEngine) -> None:
    failing, good = batching_engine.plan(1), batching_engine.plan(2)
    failing.goal = torch.zeros(WIDTH + 1)
    batching_engine.run()
    assert batching_engine.backend.shapes[0] == (2, 8)
    with pytest.raises(RuntimeError):
        failing.future.result(0)
    assert good.future.result(0).status == "completed"


def test_a_plan_that_fails_before_it_joins_a_batch_fails_alone(
    batching_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, failing, other = (batching_engine.plan(tag, arrival=tag) for tag in (1, 2, 3))

    def fail(now: float) -> bool:
        raise RuntimeError("no candidates")

    monkeypatch.setattr(failing, "next_candidates_in_time", fail)
    batching_engine.run()
    with pytest.raises(RuntimeError, match="no candidates"):
        failing.future.result(0)
    assert batching_engine.backend.calls == [("rollout", (1, 3))] * 4
    for job in (good, other):
        assert job.future.result(0).status == "completed"


def test_batching_makes_no_plan_late(batching_engine: FakeEngine) -> None:
    """A batch of more rows takes longer, so a plan with just enough time runs alone."""
    batching_engine.latency = latency_model()
    batching_engine.latency.max_batched_rows = 256
    batching_engine.backend.batching_pays = False
    wide = search(samples=64)
    needed_s = queued_plan(batching_engine.latency, wide).snapshot().search_s()
    tight = batching_engine.plan(1, wide, deadline=1.2 * needed_s)
    batching_engine.plan(2, wide)
    batching_engine.run()
    assert tight.future.result(0).status == "completed"
    assert batching_engine.backend.rolled_out()[:4] == [1] * 4


def test_started_jobs_and_batches_are_counted(engine: FakeEngine) -> None:
    jobs = [engine.plan(tag, arrival=tag) for tag in (1, 2)]
    engine.encode(1)
    assert engine.scheduler.started_plans == 0
    engine.run(turns=1)
    assert engine.scheduler.started_plans == 1
    assert [job.queued.started for job in jobs] == [True, False]
    assert engine.batches == [Batch("encode", 1), Batch("rollout", 8)]


def test_the_latency_model_learns_from_every_run(engine: FakeEngine) -> None:
    """It expects five times too much for a roll-out, and half too much for a frame."""
    engine.latency = LatencyModel([(1, STEP_S)], encode_s=1.5 * FRAME_S, clock=engine.clock)
    for _ in range(50):
        engine.plan(1, search(samples=10, iterations=1))
        engine.encode(1, count=2)
        engine.run()
    assert engine.latency.encode_s(2) == pytest.approx(2 * FRAME_S, rel=1e-3)
    rollout_s = engine.latency.rollout_s(10, RolloutShape(2))
    assert rollout_s == pytest.approx(2 * (STEP_S + 10 * ROW_S), rel=0.2)


def test_batches_that_nobody_counts_are_bounded(engine: FakeEngine) -> None:
    for count in range(MAX_RECORDED_BATCHES + 10):
        engine.encode(1, count=1 + count % 2)
        engine.run()
    assert len(engine.batches) == MAX_RECORDED_BATCHES


HISTORY = torch.ones(2, WIDTH)
"""Two context latents."""

PAST_ACTIONS = torch.full((1, WIDTH), 0.25)
"""The action block between them, which is also the backend's one-step prediction."""

SURPRISE = 0.75 * WIDTH**0.5
"""The distance between the newest latent and its one-step prediction."""


def plan_with_history(
    engine: FakeEngine, *, newest: float = 1.0, max_surprise: float | None = None
) -> PlanJob:
    """Submit a plan with two context frames. The newest latent has one value in all components."""
    latents = torch.stack([HISTORY[0], torch.full((WIDTH,), newest)])
    job = PlanJob(
        backend=engine.backend,
        queued=queued_plan(engine.latency, SHORT_SEARCH),
        latents=latents,
        past_actions=PAST_ACTIONS,
        goal=torch.zeros(WIDTH),
        search=SHORT_SEARCH,
        max_surprise=max_surprise,
    )
    engine.scheduler.submit(job)
    return job


def test_the_surprise_is_the_distance_from_the_one_step_prediction(engine: FakeEngine) -> None:
    without_history = engine.plan(1)
    planning = plan_with_history(engine)
    predicting = PredictJob(
        backend=engine.backend,
        queued=queued_plan(engine.latency, SHORT_SEARCH),
        latents=HISTORY,
        past_actions=PAST_ACTIONS,
        candidates=torch.zeros(1, 1, WIDTH),
    )
    engine.scheduler.submit(predicting)
    engine.run()
    assert without_history.future.result(0).surprise is None
    for job in (planning, predicting):
        assert job.future.result(0).surprise == pytest.approx(SURPRISE)


@pytest.mark.parametrize("max_surprise", [None, 1.001 * SURPRISE])
def test_a_surprise_within_its_limit_does_not_stop_a_search(
    engine: FakeEngine, max_surprise: float | None
) -> None:
    job = plan_with_history(engine, max_surprise=max_surprise)
    engine.run()
    assert job.future.result(0).status == "completed"


@pytest.mark.parametrize("newest", [1.0, torch.nan])
def test_a_surprise_above_its_limit_ends_the_search_before_it_starts(
    engine: FakeEngine, newest: float
) -> None:
    anomalous = plan_with_history(engine, newest=newest, max_surprise=0.999 * SURPRISE)
    usual = engine.plan(2)
    engine.run()
    outcome = anomalous.future.result(0)
    assert (outcome.status, outcome.iterations, outcome.scored_candidates) == ("anomalous", 0, 0)
    assert (outcome.actions, outcome.cost, outcome.trajectory) == (None, None, None)
    assert outcome.surprise == pytest.approx(SURPRISE if newest == 1.0 else newest, nan_ok=True)
    assert usual.future.result(0).status == "completed"
    assert set(engine.backend.rolled_out()) == {2}


@pytest.mark.parametrize("fails", [False, True], ids=["anomalous", "failing"])
def test_frames_wait_for_one_one_step_prediction_at_most(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    predict_newest = engine.backend.predict_newest

    def predict_while_a_frame_arrives(latents: Tensor, past_actions: Tensor) -> Tensor:
        engine.encode(7)
        if fails:
            raise RuntimeError("no prediction")
        return predict_newest(latents, past_actions)

    monkeypatch.setattr(engine.backend, "predict_newest", predict_while_a_frame_arrives)
    ending = [plan_with_history(engine, max_surprise=0.0) for _ in range(2)]
    usual = engine.plan(2)
    engine.run()
    for job in ending:
        if fails:
            with pytest.raises(RuntimeError, match="no prediction"):
                job.future.result(0)
        else:
            assert job.future.result(0).status == "anomalous"
    assert usual.future.result(0).status == "completed"
    assert [batch.kind for batch in engine.batches][:3] == ["encode", "encode", "rollout"]


def test_one_frame_has_no_surprise_that_could_stop_a_search(engine: FakeEngine) -> None:
    job = engine.plan(1)
    job.max_surprise = 0.0
    engine.run()
    assert job.future.result(0).status == "completed"


def test_plans_of_different_objectives_share_a_roll_out(batching_engine: FakeEngine) -> None:
    class LargestLatent:
        """Costs that have nothing to do with the goal."""

        name: ObjectiveName = "distance"

        def __call__(self, predicted: Tensor, goals: Tensor) -> Tensor:
            return -predicted[..., -1, :].sum(dim=-1)

    ordinary = search()
    other = replace(ordinary, objective=LargestLatent())
    to_zero, to_largest = batching_engine.plan(1, ordinary), batching_engine.plan(2, other)
    batching_engine.run()
    assert batching_engine.backend.shapes[0][0] == 2
    near, far = (job.future.result(0) for job in (to_zero, to_largest))
    assert near.actions[-1].abs().max() < 0.5
    assert far.actions[-1].min() > 0.5
    assert far.cost == pytest.approx(-float(far.actions[-1].sum()))
