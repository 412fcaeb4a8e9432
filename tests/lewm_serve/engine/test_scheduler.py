"""The scheduler's turns under a clock that only work moves."""

from collections.abc import Callable

import pytest
import torch

from lewm_serve.engine.admission import STEP_LIMIT
from lewm_serve.engine.jobs import BATCH_ROWS, DeadlinePassed, PlanJob, PlanOutcome, PredictJob
from lewm_serve.engine.latency_model import LatencyModel, Shape
from lewm_serve.engine.scheduler import Scheduler
from tests.lewm_serve.engine.fakes import (
    WIDTH,
    FakeBackend,
    FakeClock,
    cem,
    encode,
    gradient,
    pace_of,
    plan,
    predict,
)

ITERATION_S = pace_of().estimate(8, Shape(2))


class House:
    """A scheduler, its clock, a backend and what that takes."""

    def __init__(self, knee: int = 0) -> None:
        self.clock = FakeClock()
        self.backend = FakeBackend(self.clock, gain=knee > 0)
        self.pace: LatencyModel = pace_of(knee, self.clock)
        self.batches: list[tuple[str, int]] = []
        self.scheduler = Scheduler(self.clock, lambda kind, rows: self.batches.append((kind, rows)))

    def run(self, turns: int = 1_000_000) -> None:
        """Take turns until nothing waits."""
        while turns and not self.scheduler.idle:
            self.scheduler.turn()
            turns -= 1


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def packing() -> House:
    return House(knee=256)


def test_waiting_encodes_run_as_one_batch_and_each_gets_its_own(house: House) -> None:
    jobs = [encode(house.backend, house.pace, value, count=value) for value in (1, 2, 3)]
    for job in jobs:
        house.scheduler.submit(job)
    house.run()
    for value, job in zip((1, 2, 3), jobs, strict=True):
        assert torch.equal(job.future.result(0), torch.full((value, 3), float(value)))
    assert house.batches == [("encode", 6)]


def test_an_encode_waits_for_one_step_at_most(house: House) -> None:
    job = plan(house.backend, house.pace, 1)
    house.scheduler.submit(job)
    house.run(turns=1)
    house.scheduler.submit(encode(house.backend, house.pace, 1))
    house.run()
    assert [kind for kind, _ in house.backend.log][:3] == ["rollout", "encode", "rollout"]


def test_a_few_frames_do_not_wait_for_very_many(house: House) -> None:
    many, few = (
        encode(house.backend, house.pace, 1, 10 * BATCH_ROWS),
        encode(house.backend, house.pace, 2, 2),
    )
    house.scheduler.submit(many)
    house.scheduler.submit(few)
    house.run(turns=1)
    assert few.future.done()
    assert not many.future.done()
    house.run()
    assert len(many.future.result(0)) == 10 * BATCH_ROWS
    assert max(rows for _, rows in house.batches) <= BATCH_ROWS


def test_one_bad_frame_of_a_batch_fails_alone(house: House) -> None:
    good, bad, other = (encode(house.backend, house.pace, value) for value in (1, 255, 2))
    for job in (good, bad, other):
        house.scheduler.submit(job)
    house.run()
    assert torch.equal(good.future.result(0), torch.ones(1, 3))
    assert torch.equal(other.future.result(0), torch.full((1, 3), 2.0))
    with pytest.raises(RuntimeError, match="white frame"):
        bad.future.result(0)


def test_a_cancelled_encode_is_not_run(house: House) -> None:
    job = encode(house.backend, house.pace, 1)
    house.scheduler.submit(job)
    job.future.cancel()
    house.run()
    assert house.backend.log == []


def test_priority_then_deadline_then_arrival(house: House) -> None:
    backend, pace = house.backend, house.pace
    for job in (
        plan(backend, pace, 1, arrival=0.1),
        plan(backend, pace, 2, arrival=0.0),
        plan(backend, pace, 3, arrival=0.2, deadline=5.0),
        plan(backend, pace, 4, arrival=0.3, priority=9),
        plan(backend, pace, 5, arrival=0.0, priority=0, deadline=2.0),
    ):
        house.scheduler.submit(job)
    house.run()
    assert list(dict.fromkeys(house.backend.rolled_out())) == [4, 3, 2, 1, 5]


def test_a_plan_without_a_deadline_is_not_overtaken_for_ever(house: House) -> None:
    patient = plan(house.backend, house.pace, -1, arrival=0.0)
    house.scheduler.submit(patient)
    tag = 0
    while not patient.future.done():
        tag += 1
        now = house.clock.now
        urgent = plan(house.backend, house.pace, tag, arrival=now, deadline=now + 1)
        house.scheduler.submit(urgent)
        house.run(turns=4)
        assert house.clock.now < 20
    assert house.clock.now > 8


def test_a_far_deadline_counts_as_none(house: House) -> None:
    far = plan(house.backend, house.pace, 1, arrival=0.0, deadline=1e6)
    none = plan(house.backend, house.pace, 2, arrival=0.1)
    house.scheduler.submit(none)
    house.scheduler.submit(far)
    house.run()
    assert list(dict.fromkeys(house.backend.rolled_out())) == [1, 2]


def test_a_more_urgent_plan_preempts_at_the_next_iteration(house: House) -> None:
    house.scheduler.submit(plan(house.backend, house.pace, 1))
    house.run(turns=1)
    house.scheduler.submit(plan(house.backend, house.pace, 2, priority=9))
    house.run()
    assert house.backend.rolled_out() == [1, 2, 2, 2, 2, 1, 1, 1]


def test_a_large_iteration_lets_a_more_urgent_plan_through(house: House) -> None:
    chunk = STEP_LIMIT // 2
    house.scheduler.submit(plan(house.backend, house.pace, 1, cem(samples=3 * chunk, iterations=1)))
    house.run(turns=1)
    house.scheduler.submit(plan(house.backend, house.pace, 2, priority=9))
    house.run()
    assert house.backend.rolled_out() == [1, 2, 2, 2, 2, 1, 1, 1]


def test_a_plan_stops_at_its_deadline_with_its_best(house: House) -> None:
    deadline = 5.5 * ITERATION_S
    job = plan(house.backend, house.pace, 1, cem(iterations=100), deadline=deadline)
    house.scheduler.submit(job)
    house.run()
    outcome: PlanOutcome = job.future.result(0)
    assert (outcome.status, outcome.iterations) == ("deadline", 5)
    assert outcome.cost < torch.inf
    assert house.clock.now <= deadline


def test_a_waiting_plan_is_answered_before_a_step_that_would_outlast_its_deadline(
    house: House,
) -> None:
    job = plan(house.backend, house.pace, 1, cem(iterations=100), deadline=3.5 * ITERATION_S)
    answered: list[float] = []
    job.future.add_done_callback(lambda _: answered.append(house.clock.now))
    house.scheduler.submit(job)
    house.run(turns=2)
    house.scheduler.submit(
        plan(house.backend, house.pace, 2, cem(samples=500), arrival=house.clock.now, priority=9)
    )
    house.run()
    assert job.future.result(0).iterations == 2
    assert answered[0] <= job.ticket.deadline


def test_a_plan_that_cannot_be_in_time_is_not_begun(house: House) -> None:
    job = plan(house.backend, house.pace, 1, deadline=0.5 * ITERATION_S)
    house.scheduler.submit(job)
    house.run()
    with pytest.raises(DeadlinePassed):
        job.future.result(0)
    assert house.backend.log == []


def test_time_for_the_trajectory_is_kept(house: House) -> None:
    deadline = 3 * ITERATION_S + 0.001
    job = plan(house.backend, house.pace, 1, cem(iterations=100), deadline=deadline)
    job.with_trajectory = True
    house.scheduler.submit(job)
    house.run()
    assert job.future.result(0).trajectory.shape == (2, 3)
    assert house.clock.now <= deadline


def test_a_cancelled_plan_costs_no_further_iteration(house: House) -> None:
    job = plan(house.backend, house.pace, 1)
    house.scheduler.submit(job)
    house.run(turns=1)
    assert job.future.cancel()
    house.scheduler.submit(plan(house.backend, house.pace, 2))
    house.run()
    assert house.backend.rolled_out().count(1) == 1


def test_a_failing_plan_fails_alone(house: House) -> None:
    job, good = plan(house.backend, house.pace, 1), plan(house.backend, house.pace, 2)
    job.goal = torch.zeros(4)
    house.scheduler.submit(job)
    house.scheduler.submit(good)
    house.run()
    with pytest.raises(RuntimeError):
        job.future.result(0)
    assert good.future.result(0).status == "completed"


def test_a_prediction_is_one_roll_out(house: House) -> None:
    candidates = torch.rand(4, 2, 3)
    job = predict(house.backend, house.pace, 1, candidates)
    house.scheduler.submit(job)
    house.run()
    assert torch.equal(job.future.result(0).latents, candidates)


def test_a_gradient_plan_asks_for_gradients_in_parts_and_alone(packing: House) -> None:
    samples = STEP_LIMIT // 2 + 10
    solver = gradient(samples, iterations=30)
    job = plan(packing.backend, packing.pace, 1, solver)
    packing.scheduler.submit(job)
    packing.scheduler.submit(plan(packing.backend, packing.pace, 2))
    packing.run()
    outcome = job.future.result(0)
    assert outcome.cost == pytest.approx(0, abs=1e-3)
    assert (outcome.iterations, outcome.candidates) == (30, 30 * samples)
    asked = [count for kind, counts in packing.backend.log for count in counts if kind != "rollout"]
    assert asked == 30 * [samples - 10, 10]
    assert set(packing.backend.rolled_out()) == {2}


def test_without_a_knee_plans_follow_one_another(house: House) -> None:
    for tag in (1, 2):
        house.scheduler.submit(plan(house.backend, house.pace, tag, arrival=tag))
    house.run()
    assert house.backend.rolled_out() == [1] * 4 + [2] * 4


def test_below_the_knee_plans_share_roll_outs(packing: House) -> None:
    jobs = [plan(packing.backend, packing.pace, tag, arrival=tag) for tag in (1, 2, 3)]
    for job in jobs:
        packing.scheduler.submit(job)
    packing.run()
    assert len(packing.backend.log) == 4
    assert set(packing.backend.log) == {("rollout", (1, 2, 3))}
    assert packing.batches[0] == ("rollout", 24)


def test_a_packed_roll_out_ends_at_the_knee_by_urgency(packing: House) -> None:
    for tag in (1, 2, 3):
        job = plan(packing.backend, packing.pace, tag, cem(samples=100), arrival=-tag)
        packing.scheduler.submit(job)
    packing.run(turns=1)
    assert packing.backend.log == [("rollout", (3, 2))]
    assert packing.backend.shapes == [(2, 128)]


def test_packing_changes_no_answer(house: House, packing: House) -> None:
    sizes = {1: 8, 2: 11, 3: 5, 4: 30, 5: 8}

    def outcomes(where: House) -> list[PlanOutcome]:
        jobs = [
            plan(where.backend, where.pace, tag, cem(samples=samples, seed=tag))
            for tag, samples in sizes.items()
        ]
        for job in jobs:
            where.scheduler.submit(job)
        where.run()
        return [job.future.result(0) for job in jobs]

    for alone, packed in zip(outcomes(house), outcomes(packing), strict=True):
        assert torch.equal(alone.actions, packed.actions)
        assert (alone.cost, alone.candidates) == (packed.cost, packed.candidates)
    assert len(packing.backend.log) < len(house.backend.log)


def test_other_shapes_and_unwilling_jobs_are_not_packed(packing: House) -> None:
    lead, longer = (
        plan(packing.backend, packing.pace, 1, arrival=-1),
        plan(packing.backend, packing.pace, 2, cem(horizon=3)),
    )
    unwilling = plan(packing.backend, packing.pace, 3)
    unwilling.packs = False
    for job in (lead, longer, unwilling):
        packing.scheduler.submit(job)
    packing.run(turns=1)
    assert packing.backend.log == [("rollout", (1,))]


@pytest.mark.parametrize("poisoned", [1.0, 2.0, 3.0])
def test_a_failing_plan_fails_alone_in_a_packed_roll_out(packing: House, poisoned: float) -> None:
    jobs = {tag: plan(packing.backend, packing.pace, tag) for tag in (1.0, 2.0, 3.0)}
    packing.backend.poison = frozenset({poisoned})
    for job in jobs.values():
        packing.scheduler.submit(job)
    packing.run()
    for tag, job in jobs.items():
        if tag == poisoned:
            with pytest.raises(RuntimeError, match="poisoned"):
                job.future.result(0)
        else:
            assert job.future.result(0).status == "completed"


def test_packing_makes_nobody_late(packing: House) -> None:
    """A roll-out of more rows takes longer; a plan with just enough time runs alone."""
    packing.pace = pace_of()
    packing.pace.knee = 256
    packing.backend.gain = False
    solver = cem(samples=64)
    need_s = plan(packing.backend, packing.pace, 0, solver).ticket.solve_s()
    tight = plan(packing.backend, packing.pace, 1, solver, deadline=1.2 * need_s)
    other = plan(packing.backend, packing.pace, 2, cem(samples=64))
    packing.scheduler.submit(tight)
    packing.scheduler.submit(other)
    packing.run()
    assert tight.future.result(0).status == "completed"
    assert packing.backend.rolled_out()[:4] == [1] * 4


def test_the_counts_for_operators(house: House) -> None:
    jobs = [plan(house.backend, house.pace, tag, arrival=tag) for tag in (1, 2)]
    for job in jobs:
        house.scheduler.submit(job)
    house.scheduler.submit(encode(house.backend, house.pace, 1))
    assert house.scheduler.active(PlanJob) == 0
    house.run(turns=1)
    assert house.scheduler.active(PlanJob) == 1
    assert [job.ticket.begun for job in jobs] == [True, False]
    assert house.batches == [("encode", 1), ("rollout", 8)]


def test_outcomes_tell_what_the_newest_frame_should_have_been(house: House) -> None:
    alone = plan(house.backend, house.pace, 1)
    candidates = torch.zeros(1, 1, WIDTH)
    latents, past = torch.ones(2, WIDTH), torch.full((1, WIDTH), 0.25)
    searching = PlanJob(house.backend, alone.ticket, cem(), latents, past, torch.zeros(WIDTH))
    predicting = PredictJob(house.backend, alone.ticket, latents, past, candidates)
    for job in (alone, searching, predicting):
        house.scheduler.submit(job)
    house.run()
    assert alone.future.result(0).expected is None
    for job in (searching, predicting):
        assert torch.equal(job.future.result(0).expected, past[0])


def guarded(house: House, latents: torch.Tensor, guard: Callable[[torch.Tensor], None]) -> PlanJob:
    """A plan whose guard is told what the newest of latents (2, WIDTH) should have been."""
    past, goal = torch.full((1, WIDTH), 0.25), torch.zeros(WIDTH)
    held = plan(house.backend, house.pace, 1).ticket
    return PlanJob(house.backend, held, cem(), latents, past, goal, guard=guard)


def test_a_guard_is_told_once_and_before_the_first_iteration(house: House) -> None:
    told: list[torch.Tensor] = []
    job = guarded(house, torch.ones(2, WIDTH), told.append)
    house.scheduler.submit(job)
    house.run()
    assert len(told) == 1
    assert torch.equal(told[0], torch.full((WIDTH,), 0.25))
    assert job.future.result(0).status == "completed"


def test_what_a_guard_raises_ends_its_plan_alone_and_lets_frames_through(house: House) -> None:
    class Anomaly(Exception):
        pass

    def refuse(_expected: torch.Tensor) -> None:
        # While one plan is judged, another robot's frame comes.
        house.scheduler.submit(encode(house.backend, house.pace, 7))
        raise Anomaly

    refused = [guarded(house, torch.ones(2, WIDTH), refuse) for _ in range(2)]
    usual = plan(house.backend, house.pace, 2)
    for job in (*refused, usual):
        house.scheduler.submit(job)
    house.run()
    for job in refused:
        with pytest.raises(Anomaly):
            job.future.result(0)
    assert usual.future.result(0).status == "completed"
    # A frame waits for one judgement, not for all of them.
    assert [kind for kind, _ in house.batches][:3] == ["encode", "encode", "rollout"]
