"""Who may come in, at moments in the life of a queue whose pace is known."""

import math
from contextlib import suppress

import pytest

from lewm_serve.engine.admission import BROKEN, MARGIN, Admission, QueuedRequest, QueueTooLong
from lewm_serve.engine.jobs import DeadlinePassed
from lewm_serve.engine.latency_model import Shape
from tests.lewm_serve.engine.fakes import FRAME_S, FakeClock, cem, pace_of, ticket

PACE = pace_of()
PLAN = cem(iterations=10)
"""Ten iterations and the closing mean."""

ITERATION_S = PACE.estimate(8, Shape(2))
WHOLE_S = ticket(PACE, PLAN).solve_s()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def admission(clock: FakeClock) -> Admission:
    return Admission(limit=10, clock=clock)


def refusal(admission: Admission, refused: QueuedRequest) -> QueueTooLong:
    """How a ticket is refused; it is not inside then."""
    before = len(admission)
    with pytest.raises(QueueTooLong) as caught:
        admission.admit(refused)
    assert len(admission) == before
    assert caught.value.retry_after_s > 0
    return caught.value


def test_an_idle_server_admits_whatever_fits(admission: Admission) -> None:
    for deadline in (1.001 * ITERATION_S, 3.5 * ITERATION_S, WHOLE_S, math.inf):
        one = ticket(PACE, PLAN, deadline=deadline)
        admission.admit(one)
        admission.leave(one)


@pytest.mark.parametrize("deadline", [-1.0, 0.0, 0.99 * ITERATION_S])
def test_what_even_an_idle_server_cannot_do_is_too_late(
    admission: Admission, deadline: float
) -> None:
    with pytest.raises(DeadlinePassed):
        admission.admit(ticket(PACE, PLAN, deadline=deadline))
    assert not admission


def test_frames_have_to_be_encoded_before_the_first_iteration(admission: Admission) -> None:
    deadline = 1.5 * ITERATION_S
    admission.admit(ticket(PACE, PLAN, deadline=deadline))
    with pytest.raises(DeadlinePassed):
        admission.admit(ticket(PACE, PLAN, deadline=deadline, frames=2))


def test_a_plan_that_the_queue_would_cost_iterations_is_refused(admission: Admission) -> None:
    admission.admit(ticket(PACE, PLAN, deadline=2 * WHOLE_S))
    refusal(admission, ticket(PACE, PLAN, arrival=1e-6, deadline=2 * WHOLE_S))
    admission.admit(ticket(PACE, PLAN, arrival=1e-6, deadline=(2 + 1.1 * MARGIN) * WHOLE_S))


@pytest.mark.parametrize("deadline", [1.3, 3.0])
def test_retry_after_is_when_it_would_be_admitted(
    admission: Admission, clock: FakeClock, deadline: float
) -> None:
    """Both to one that would come too late, and to one that would make others late."""
    inside = [ticket(PACE, PLAN, deadline=place * WHOLE_S) for place in (1.2, 2.4, 3.5)]
    for one in inside:
        admission.admit(one)
    deadline_s = deadline * WHOLE_S
    wait_s = refusal(admission, ticket(PACE, PLAN, deadline=deadline_s)).retry_after_s
    # The server works through what is inside, iteration by iteration.
    while clock.now < wait_s:
        clock.pass_by(ITERATION_S)
        next(one for one in inside if one.done < len(one.rows)).done += 1
    now = clock.now
    admission.admit(ticket(PACE, PLAN, arrival=now, deadline=now + deadline_s))
    assert wait_s <= 3.1 * WHOLE_S


def test_fewer_iterations_may_be_asked_for(admission: Admission) -> None:
    admission.admit(ticket(PACE, PLAN, deadline=1.2 * WHOLE_S))
    refusal(admission, ticket(PACE, PLAN, arrival=1e-6, deadline=1.5 * WHOLE_S))
    refusal(admission, ticket(PACE, PLAN, arrival=1e-6, deadline=1.5 * WHOLE_S, least=8))
    admission.admit(ticket(PACE, PLAN, arrival=1e-6, deadline=1.5 * WHOLE_S, least=3))


def test_fewer_than_the_least_are_too_late_even_when_idle(admission: Admission) -> None:
    deadline = 3.5 * ITERATION_S
    admission.admit(ticket(PACE, PLAN, deadline=deadline, least=3))
    with pytest.raises(DeadlinePassed):
        admission.admit(ticket(PACE, PLAN, deadline=deadline, least=4))


def test_a_plan_must_not_cost_those_inside_theirs(admission: Admission) -> None:
    admission.admit(ticket(PACE, PLAN, deadline=1.5 * WHOLE_S))
    urgent = 1.1 * WHOLE_S
    refusal(admission, ticket(PACE, PLAN, deadline=urgent))
    admission.admit(ticket(PACE, PLAN, deadline=urgent, priority=9))


def test_a_plan_without_a_deadline_is_held_to_the_same(admission: Admission) -> None:
    far = 20 * WHOLE_S
    admission.admit(ticket(PACE, PLAN, deadline=far))
    for _ in range(3):
        admission.admit(ticket(PACE, PLAN, arrival=1e-6))
    old = QueuedRequest(PACE, -9.9, rows=(10_000,) * 10, shape=Shape(2))  # aged: it goes first
    refusal(admission, old)


def test_those_who_are_late_already_stop_nobody_behind_them(
    admission: Admission, clock: FakeClock
) -> None:
    admission.admit(ticket(PACE, PLAN, deadline=1.01 * WHOLE_S))
    clock.pass_by(0.5 * WHOLE_S)
    now = clock.now
    admission.admit(ticket(PACE, PLAN, arrival=now, deadline=now + 2 * WHOLE_S))


def test_work_counts_until_it_leaves(admission: Admission) -> None:
    first, *later = (ticket(PACE, PLAN, deadline=1.2 * WHOLE_S) for _ in range(3))
    admission.admit(first)
    refusal(admission, later[0])
    admission.leave(first)
    admission.admit(later[1])


def test_frames_of_others_are_work_ahead(admission: Admission) -> None:
    frames = math.ceil(WHOLE_S / FRAME_S)
    admission.admit(QueuedRequest(PACE, 0.0, frames=frames))
    refusal(admission, ticket(PACE, PLAN, deadline=1.5 * WHOLE_S))
    refusal(admission, QueuedRequest(PACE, 0.0, deadline=0.5 * WHOLE_S, frames=1))
    admission.admit(QueuedRequest(PACE, 0.0, deadline=1.5 * WHOLE_S, frames=1))
    with pytest.raises(DeadlinePassed):
        admission.admit(QueuedRequest(PACE, 0.0, deadline=0.5 * FRAME_S, frames=1))


def test_a_full_queue_refuses_until_the_first_leaves(admission: Admission) -> None:
    for _ in range(10):
        admission.admit(ticket(PACE, PLAN))
    refused = refusal(admission, ticket(PACE, PLAN))
    assert refused.retry_after_s == pytest.approx(WHOLE_S)
    assert "full" in str(refused)


def test_a_plan_cut_short_anyway_may_lose_a_tenth(admission: Admission) -> None:
    long = cem(iterations=1000)
    admission.admit(QueuedRequest(PACE, 0.0, frames=1))
    admission.admit(ticket(PACE, long, deadline=50.5 * ITERATION_S))


def test_packed_plans_run_abreast() -> None:
    pace = pace_of(knee=256)
    admission = Admission(100, FakeClock())
    solver = cem(samples=64, iterations=10)
    deadline = 1.5 * ticket(pace, solver).solve_s()
    for _ in range(4):
        admission.admit(ticket(pace, solver, deadline=deadline))
    refusal(admission, ticket(pace, solver, deadline=deadline))


def serve(admission: Admission, clock: FakeClock, iterations: int) -> None:
    """A plan comes, is promised all its iterations, and leaves when its time is up."""
    one = ticket(PACE, PLAN, deadline=clock.now + 1.01 * WHOLE_S)
    admission.admit(one)
    one.done = iterations
    clock.pass_by(1.01 * WHOLE_S)
    admission.leave(one)


def room(admission: Admission, clock: FakeClock) -> float:
    """Behind one plan, the nearest deadline for which another is admitted, in whole plans."""
    ahead = ticket(PACE, PLAN, deadline=clock.now + 1.01 * WHOLE_S, priority=9)
    admission.admit(ahead)
    plans = 2.0
    while True:
        newcomer = ticket(PACE, PLAN, deadline=clock.now + plans * WHOLE_S)
        with suppress(QueueTooLong):
            admission.admit(newcomer)
            admission.leave(newcomer)
            ahead.done = len(PLAN.workload())
            admission.leave(ahead)
            return plans
        plans += 0.001


def test_broken_promises_make_it_careful_and_kept_ones_bold_again(
    admission: Admission, clock: FakeClock
) -> None:
    assert room(admission, clock) == pytest.approx(2 + MARGIN, abs=0.01)
    for _ in range(3):
        serve(admission, clock, iterations=2)
    assert room(admission, clock) == pytest.approx(2 + MARGIN + 3 * BROKEN, abs=0.01)
    for _ in range(100):
        serve(admission, clock, iterations=len(PLAN.workload()))
    assert room(admission, clock) == pytest.approx(2 + MARGIN, abs=0.01)


def test_a_client_that_goes_away_breaks_no_promise(admission: Admission, clock: FakeClock) -> None:
    for _ in range(3):
        gone = ticket(PACE, PLAN, deadline=clock.now + 3 * WHOLE_S)
        admission.admit(gone)
        admission.leave(gone)
    assert room(admission, clock) == pytest.approx(2 + MARGIN, abs=0.01)
