"""Expected work of a request, and which requests are admitted when durations are known."""

import math
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from lewm_serve.engine.admission import (
    MARGIN_AFTER_MISS,
    MAX_SEARCH_BYTES,
    MIN_CLIENT_SHARE,
    MIN_MARGIN,
    Admission,
    DeadlinePassed,
    QueueTooLong,
)
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.engine.queued_request import MAX_EXCESS_S, Client, QueuedRequest
from tests.lewm_serve.engine.fakes import FRAME_S, FakeClock, latency_model, queued_plan, search

LATENCY = latency_model()
SEARCH = search(iterations=10)
"""Ten iterations and the final mean."""

ITERATION_S = LATENCY.rollout_s(8, RolloutShape(2))
PLAN_S = queued_plan(LATENCY, SEARCH).snapshot().search_s()
ASKS = len(queued_plan(LATENCY, SEARCH).candidates_per_iteration)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def admission(clock: FakeClock) -> Admission:
    return Admission(limit=10, clock=clock)


def plan(**settings: Any) -> QueuedRequest:
    """A plan of ten iterations."""
    return queued_plan(LATENCY, SEARCH, **settings)


def complete(queued: QueuedRequest, iterations: int) -> None:
    """What the engine writes when a plan has done this many iterations."""
    queued.started_iterations = queued.completed_iterations = iterations


@pytest.fixture
def three_iterations() -> QueuedRequest:
    """A plan whose iterations take 10, 20 and 30 ms."""
    latency = LatencyModel([(1, 0.001)], clock=FakeClock())
    return QueuedRequest(latency, 0.0, candidates_per_iteration=(10, 20, 30), shape=RolloutShape(1))


def test_expected_seconds_and_iterations_of_a_search(three_iterations: QueuedRequest) -> None:
    queued = three_iterations
    assert queued.snapshot().search_s() == pytest.approx(0.06)
    assert queued.snapshot().search_s(2) == pytest.approx(0.03)
    times = (-1, 0.0, 0.009, 0.011, 0.031, 1, math.inf)
    snapshot = queued.snapshot()
    assert [snapshot.iterations_within(seconds) for seconds in times] == [0, 0, 0, 1, 2, 3, 3]
    complete(queued, 1)
    assert queued.snapshot().search_s() == pytest.approx(0.05)
    snapshot = queued.snapshot()
    assert [snapshot.iterations_within(seconds) for seconds in (0.0, 0.021, 0.051)] == [1, 2, 3]
    assert queued.snapshot().search_s(1) == 0


def test_expected_work_follows_the_corrected_latency_model(three_iterations: QueuedRequest) -> None:
    queued = three_iterations
    queued.latency.observe_rollout(10, RolloutShape(1), 0.02)
    assert queued.snapshot().search_s() == pytest.approx(0.12)
    assert queued.snapshot().iterations_within(0.031) == 1
    assert queued.snapshot().longest_part_s == pytest.approx(0.06)


def test_an_iteration_that_runs_is_not_expected_work(three_iterations: QueuedRequest) -> None:
    """Its end is known: it is that of the work that runs now."""
    queued = three_iterations
    assert not queued.started
    queued.started_iterations = 2.5
    assert queued.started
    assert queued.snapshot().search_s() == pytest.approx(0.015)
    assert queued.snapshot().search_s(2) == 0
    snapshot = queued.snapshot()
    assert [snapshot.iterations_within(seconds) for seconds in (0.0, 0.014, 0.016)] == [2, 2, 3]


def test_work_that_takes_no_time_is_always_done() -> None:
    """As on a server whose latencies were never measured."""
    queued = QueuedRequest(
        LatencyModel(), 0.0, candidates_per_iteration=(10, 20), shape=RolloutShape(1)
    )
    assert (queued.snapshot().search_s(), queued.snapshot().search_s(batched_plans=3)) == (0, 0)
    assert queued.snapshot().iterations_within(0.0) == 2
    assert queued.snapshot().iterations_within(0.0, batched_plans=3) == 2


def test_plans_that_share_rollouts_wait_for_the_rows_of_the_others() -> None:
    latency = LatencyModel([(1, 0.01), (10, 0.01), (110, 0.11)], clock=FakeClock())
    queued = QueuedRequest(latency, 0.0, candidates_per_iteration=(10, 10), shape=RolloutShape(1))
    assert queued.snapshot().search_s() == pytest.approx(0.02)
    assert queued.snapshot().search_s(batched_plans=3) == pytest.approx(0.06)
    assert queued.snapshot().iterations_within(0.031, batched_plans=3) == 1
    queued.deadline = 0.05
    queued.expect(2)
    assert queued.in_time(0.0)
    assert not queued.in_time(0.0, batched_plans=3)


def test_only_frames_that_the_engine_has_not_started_are_expected_work() -> None:
    queued = QueuedRequest(LATENCY, 0.0, frames_to_encode=3)
    assert queued.snapshot().frames_s == pytest.approx(3 * FRAME_S)
    queued.frames_started = 2
    assert queued.snapshot().frames_s == pytest.approx(FRAME_S)
    queued.frames_to_encode = 0  # its latents are known now
    assert queued.snapshot().frames_s == 0


def test_a_client_is_not_guaranteed_more_than_it_asked_for() -> None:
    queued = plan(min_iterations=3)
    queued.expect(10)
    assert queued.guaranteed_iterations == 3
    queued.expect(2)
    assert queued.guaranteed_iterations == 2


def refusal(admission: Admission, queued: QueuedRequest) -> QueueTooLong:
    """The error of a request that must not be admitted."""
    before = len(admission)
    with pytest.raises(QueueTooLong) as caught:
        admission.admit(queued)
    assert len(admission) == before
    assert caught.value.retry_after_s > 0
    return caught.value


def test_an_idle_server_admits_what_it_can_do_in_time(admission: Admission) -> None:
    for deadline in (1.001 * ITERATION_S, 3.5 * ITERATION_S, PLAN_S, math.inf):
        queued = plan(deadline=deadline)
        admission.admit(queued)
        admission.leave(queued)


@pytest.mark.parametrize("deadline", [-1.0, 0.0, 0.99 * ITERATION_S])
def test_a_deadline_that_an_idle_server_would_miss_has_passed(
    admission: Admission, deadline: float
) -> None:
    with pytest.raises(DeadlinePassed):
        admission.admit(plan(deadline=deadline))
    assert not admission


def test_an_idle_server_admits_a_plan_with_new_frames(admission: Admission) -> None:
    """There is no other roll-out for which it would have to wait."""
    admission.admit(plan(deadline=2 * FRAME_S + 1.001 * PLAN_S, frames_to_encode=2))


def test_frames_are_encoded_before_the_first_iteration(admission: Admission) -> None:
    deadline = 1.5 * ITERATION_S
    admission.admit(plan(deadline=deadline))
    with pytest.raises(DeadlinePassed):
        admission.admit(plan(deadline=deadline, frames_to_encode=2))


def test_a_plan_that_would_lose_iterations_to_the_queue_is_refused(admission: Admission) -> None:
    admission.admit(plan(deadline=2 * PLAN_S))
    error = refusal(admission, plan(arrival=1e-6, deadline=2 * PLAN_S))
    assert str(error) == "the requests in the queue leave too little time before the deadline"
    admission.admit(plan(arrival=1e-6, deadline=(2 + 1.1 * MIN_MARGIN) * PLAN_S))


@pytest.mark.parametrize("deadline", [1.3, 3.0])
def test_after_retry_after_the_same_request_is_admitted(
    admission: Admission, clock: FakeClock, deadline: float
) -> None:
    """One deadline is too early for the plan itself, the other makes admitted plans late.

    A newcomer that is too early counts with all its iterations: when it comes again, it would do
    them all, and make the second plan late.
    """
    admitted = [plan(deadline=factor * PLAN_S) for factor in (1.2, 2.45, 3.6)]
    for queued in admitted:
        admission.admit(queued)
    deadline_s = deadline * PLAN_S
    wait_s = refusal(admission, plan(deadline=deadline_s)).retry_after_s
    # Meanwhile the server works through the queue, iteration by iteration.
    while clock.now < wait_s:
        clock.advance(ITERATION_S)
        running = next(one for one in admitted if one.completed_iterations < ASKS)
        complete(running, running.completed_iterations + 1)
    now = clock.now
    admission.admit(plan(arrival=now, deadline=now + deadline_s))
    assert wait_s <= 3.1 * PLAN_S


def test_a_client_may_ask_for_fewer_iterations(admission: Admission) -> None:
    admission.admit(plan(deadline=1.2 * PLAN_S))
    refusal(admission, plan(arrival=1e-6, deadline=1.5 * PLAN_S))
    refusal(admission, plan(arrival=1e-6, deadline=1.5 * PLAN_S, min_iterations=8))
    admission.admit(plan(arrival=1e-6, deadline=1.5 * PLAN_S, min_iterations=3))


def test_fewer_than_min_iterations_are_refused_by_an_idle_server_too(admission: Admission) -> None:
    deadline = 3.5 * ITERATION_S
    admission.admit(plan(deadline=deadline, min_iterations=3))
    with pytest.raises(DeadlinePassed):
        admission.admit(plan(deadline=deadline, min_iterations=4))


def test_a_plan_that_would_make_an_admitted_plan_late_is_refused(admission: Admission) -> None:
    admission.admit(plan(deadline=1.5 * PLAN_S))
    urgent = 1.1 * PLAN_S
    error = refusal(admission, plan(deadline=urgent))
    assert str(error) == "plans already admitted would not end in time"
    admission.admit(plan(deadline=urgent, priority=9))


def test_a_plan_with_just_enough_time_is_protected_while_it_runs(clock: FakeClock) -> None:
    """With the margin it looks late already. Without it, a newcomer would make it late."""
    free_at = 0.0
    admission = Admission(10, clock, free_at=lambda: free_at)
    tight = plan(deadline=1.01 * PLAN_S)
    admission.admit(tight)
    tight.started_iterations, free_at = 1.0, ITERATION_S
    refusal(admission, plan(deadline=PLAN_S))
    admission.admit(plan(frames_to_encode=1))  # without a deadline it comes last


@pytest.mark.parametrize("arrival", [0.0, -9.9, -1000.0])
@pytest.mark.parametrize("priority", [5, 9])
def test_plans_without_a_deadline_do_not_keep_others_out(
    admission: Admission, arrival: float, priority: int
) -> None:
    """Neither their length nor their age nor their priority matters: they come last."""
    for _ in range(3):
        admission.admit(
            QueuedRequest(
                LATENCY,
                arrival,
                priority=priority,
                candidates_per_iteration=(10_000,) * 10,
                shape=RolloutShape(2),
            )
        )
    admission.admit(plan(deadline=1.3 * PLAN_S))


def test_a_plan_that_has_its_guaranteed_iterations_comes_last(admission: Admission) -> None:
    first = plan(deadline=1.5 * PLAN_S, min_iterations=2)
    admission.admit(first)
    assert first.is_urgent
    complete(first, 2)
    assert not first.is_urgent
    admission.admit(plan(deadline=1.2 * PLAN_S))


def test_iterations_that_are_not_guaranteed_do_not_keep_others_out(admission: Admission) -> None:
    """They are done after all that is guaranteed."""
    long = search(iterations=1000)
    deadline = 1.5 * PLAN_S
    admission.admit(queued_plan(LATENCY, long, deadline=deadline, min_iterations=2))
    admission.admit(plan(arrival=1e-6, deadline=deadline))


def busy_client(admission: Admission, name: str, seconds: float, priority: int = 5) -> Client:
    """A client for which the engine has just worked."""
    client = admission.client(name)
    client.priority = priority
    client.observe_use(seconds, best_effort=False)
    return client


def test_the_clients_of_a_fleet_are_looked_at_once_in_a_while(
    admission: Admission, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    robots = [busy_client(admission, f"robot {number}", 0.004) for number in range(300)]
    looked_at: Counter[str] = Counter()
    for name in ("is_active", "excess_s"):
        look = getattr(Client, name).fget

        def counted(client: Client, name: str = name, look: Any = look) -> Any:
            looked_at[name] += 1
            return look(client)

        monkeypatch.setattr(Client, name, property(counted))

    def admit(robot: int) -> QueuedRequest:
        client = admission.client(f"robot {robot}")
        queued = plan(deadline=clock.now + 2 * PLAN_S, client=client)
        admission.admit(queued)
        admission.leave(queued)
        return queued

    clock.advance(0.04 / MIN_CLIENT_SHARE)  # none has used more than its share
    for robot in range(20):
        assert admit(robot).is_urgent
        assert robots[robot].share == MIN_CLIENT_SHARE
    assert looked_at["is_active"] < len(robots) + 5 * 20
    assert looked_at["excess_s"] < 5 * 20
    clock.advance(20.0)
    admit(0)
    assert robots[0].share == 1.0


LONG = search(iterations=1000)
LONG_S = queued_plan(LATENCY, LONG).snapshot().search_s()
LONG_DEADLINE = 1.01 * LONG_S


def long_plan(admission: Admission, **settings: Any) -> QueuedRequest:
    """A plan that takes nearly all the time before its deadline."""
    client = admission.client("hog")
    return queued_plan(LATENCY, LONG, client=client, **{"deadline": LONG_DEADLINE, **settings})


def test_a_lone_client_is_guaranteed_all_the_time(admission: Admission) -> None:
    alone = long_plan(admission)
    admission.admit(alone)
    assert alone.is_urgent
    assert alone.guaranteed_iterations == len(alone.candidates_per_iteration)


def test_a_plan_beyond_its_clients_share_gets_the_time_that_the_others_leave(
    admission: Admission,
) -> None:
    busy_client(admission, "robot", 0.4)
    beyond = long_plan(admission)
    admission.admit(beyond)
    assert not beyond.is_urgent
    assert beyond.guaranteed_iterations == 0
    expected = (
        0.6 * LONG_DEADLINE / (1 + MIN_MARGIN) / LONG_S * len(beyond.candidates_per_iteration)
    )
    assert beyond.expected_iterations == pytest.approx(expected, rel=0.02)
    robot = plan(deadline=1.2 * PLAN_S, client=admission.client("another robot"))
    admission.admit(robot)
    assert robot.is_urgent


def test_a_plan_beyond_the_share_is_refused_if_the_others_leave_too_little_time(
    admission: Admission,
) -> None:
    busy_client(admission, "robot", 0.4)
    error = refusal(admission, long_plan(admission, min_iterations=900))
    assert str(error) == "other clients need a part of the time before the deadline"
    first = long_plan(admission, min_iterations=300)
    admission.admit(first)
    # The second plan has to wait until the first one leaves enough time.
    wait_s = refusal(admission, long_plan(admission, min_iterations=300)).retry_after_s
    both_s = 600 * ITERATION_S
    assert wait_s == pytest.approx(both_s / 0.6 * (1 + MIN_MARGIN) - LONG_DEADLINE, rel=0.01)


def test_a_client_that_comes_ends_the_guarantees_beyond_the_new_shares(
    admission: Admission,
) -> None:
    admitted_alone = long_plan(admission)
    admission.admit(admitted_alone)
    admission.admit(plan(arrival=1e-6, deadline=1.2 * PLAN_S, client=admission.client("robot")))
    assert not admitted_alone.is_urgent


def test_a_client_that_is_refused_ends_no_guarantees(clock: FakeClock) -> None:
    free_at = 0.0
    admission = Admission(10, clock, lambda: free_at)
    admitted_alone = long_plan(admission)
    admission.admit(admitted_alone)
    free_at = 2 * PLAN_S
    refusal(admission, plan(deadline=1.2 * PLAN_S, client=admission.client("robot")))
    assert admitted_alone.is_urgent


def test_clients_of_lower_priority_have_no_share(admission: Admission) -> None:
    busy_client(admission, "robot", 0.4, priority=4)
    important = long_plan(admission)
    admission.admit(important)
    assert important.is_urgent
    client = admission.client("another robot")
    refusal(admission, plan(deadline=1.2 * PLAN_S, priority=4, client=client))
    assert important.is_urgent


def test_a_plan_beyond_the_share_is_refused_if_urgent_plans_need_its_time(
    admission: Admission,
) -> None:
    important = long_plan(admission, priority=9)
    admission.admit(important)
    beyond = queued_plan(
        LATENCY, LONG, deadline=0.8 * LONG_DEADLINE, client=admission.client("robot")
    )
    wait_s = refusal(admission, beyond).retry_after_s
    assert 0.2 * LONG_DEADLINE <= wait_s <= LONG_DEADLINE


def test_a_client_beyond_its_share_is_within_it_again_after_a_pause(
    admission: Admission, clock: FakeClock
) -> None:
    hog = busy_client(admission, "hog", 2.0)
    busy_client(admission, "robot", 0.4)

    def is_urgent_now() -> bool:
        queued = plan(deadline=clock.now + 2 * PLAN_S, client=hog)
        admission.admit(queued)
        admission.leave(queued)
        return queued.is_urgent

    assert not is_urgent_now()
    clock.advance(0.5 * MAX_EXCESS_S)
    assert not is_urgent_now()
    clock.advance(1.5 * MAX_EXCESS_S)
    assert is_urgent_now()


def test_a_small_plan_is_guaranteed_whatever_other_clients_use(
    admission: Admission, clock: FakeClock
) -> None:
    for number in range(50):
        busy_client(admission, f"client {number}", 1.0)
    robot = queued_plan(
        LATENCY, SEARCH, deadline=1.2 * PLAN_S, client=admission.client("robot"), min_iterations=5
    )
    admission.admit(robot)
    assert robot.guaranteed_iterations == 5


def test_clients_that_left_are_forgotten(admission: Admission, clock: FakeClock) -> None:
    kept = admission.client("kept")
    admission.admit(queued_plan(LATENCY, SEARCH, client=kept))
    for number in range(1000):
        busy_client(admission, f"client {number}", 0.001)
        clock.advance(1.0)
    assert admission.client("kept") is kept
    assert len(admission._clients) < 100


def test_searches_that_would_take_too_much_memory_wait(admission: Admission) -> None:
    large = partial(plan, search_bytes=MAX_SEARCH_BYTES // 2 + 1)
    first = large()
    admission.admit(first)
    error = refusal(admission, large())
    assert str(error) == f"the searches in progress take {first.search_bytes} bytes of memory"
    admission.admit(plan(search_bytes=1000))
    admission.leave(first)
    admission.admit(large())


def test_a_full_queue_has_places_for_urgent_plans_and_other_clients() -> None:
    admission = Admission(limit=32, clock=FakeClock())
    hog = admission.client("hog")
    for _ in range(30):
        admission.admit(queued_plan(LATENCY, SEARCH, client=hog))
    assert str(refusal(admission, queued_plan(LATENCY, SEARCH, client=hog))) == "the queue is full"
    refusal(admission, plan())
    admission.admit(plan(deadline=1.5 * PLAN_S))


def test_plans_that_are_late_anyway_do_not_keep_others_out(
    admission: Admission, clock: FakeClock
) -> None:
    admission.admit(plan(deadline=1.01 * PLAN_S))
    clock.advance(0.5 * PLAN_S)
    now = clock.now
    admission.admit(plan(arrival=now, deadline=now + 2 * PLAN_S))


def test_work_counts_until_its_request_leaves(admission: Admission) -> None:
    first, second, third = (plan(deadline=1.2 * PLAN_S) for _ in range(3))
    admission.admit(first)
    refusal(admission, second)
    admission.leave(first)
    admission.admit(third)


def test_frames_of_others_are_work_ahead(admission: Admission) -> None:
    for _ in range(math.ceil(PLAN_S / FRAME_S / 4)):
        admission.admit(QueuedRequest(LATENCY, 0.0, deadline=10 * PLAN_S, frames_to_encode=4))
    refusal(admission, plan(deadline=1.5 * PLAN_S))
    refusal(admission, QueuedRequest(LATENCY, 0.0, deadline=0.5 * PLAN_S, frames_to_encode=1))
    admission.admit(QueuedRequest(LATENCY, 0.0, deadline=1.5 * PLAN_S, frames_to_encode=1))
    with pytest.raises(DeadlinePassed):
        admission.admit(QueuedRequest(LATENCY, 0.0, deadline=0.5 * FRAME_S, frames_to_encode=1))


def test_many_frames_without_a_plan_are_no_work_ahead(admission: Admission) -> None:
    admission.admit(QueuedRequest(LATENCY, 0.0, frames_to_encode=256))
    admission.admit(QueuedRequest(LATENCY, 0.0, frames_to_encode=256, deadline=100.0))
    admission.admit(plan(deadline=1.5 * PLAN_S))


def test_frames_are_decoded_while_the_engine_does_other_work(admission: Admission) -> None:
    admission.admit(plan(deadline=10.0, frames_to_encode=1, decode_s=5.0))
    admission.admit(plan(deadline=2.5 * PLAN_S, frames_to_encode=1, decode_s=0.3 * PLAN_S))
    with pytest.raises(DeadlinePassed):
        admission.admit(plan(deadline=0.2 * PLAN_S, decode_s=0.3 * PLAN_S))


def test_an_encode_request_is_not_refused_for_the_sake_of_plans(admission: Admission) -> None:
    admission.admit(plan(deadline=1.001 * PLAN_S))
    admission.admit(QueuedRequest(LATENCY, 0.0, frames_to_encode=1))
    admission.admit(QueuedRequest(LATENCY, 0.0, deadline=10 * FRAME_S, frames_to_encode=1))


def test_an_encode_request_takes_no_place_among_the_plans(admission: Admission) -> None:
    for _ in range(3):
        admission.admit(QueuedRequest(LATENCY, 0.0, deadline=PLAN_S, frames_to_encode=1))
    admission.admit(plan(deadline=2 * PLAN_S))
    refusal(admission, plan(arrival=1e-6, deadline=2 * PLAN_S))


def test_frames_that_are_being_encoded_count_once(clock: FakeClock) -> None:
    """They are part of the work that runs now, not of the work that waits."""
    frames = math.ceil(PLAN_S / FRAME_S)
    encode = QueuedRequest(LATENCY, 0.0, frames_to_encode=frames)
    encode.deadline = 10 * PLAN_S
    admission = Admission(10, clock, free_at=lambda: frames * FRAME_S)
    admission.admit(encode)
    encode.frames_started = frames
    admission.admit(plan(deadline=2.3 * PLAN_S))
    refusal(admission, plan(deadline=2.0 * PLAN_S, priority=9))


def test_a_full_queue_refuses_until_the_first_request_leaves(admission: Admission) -> None:
    for _ in range(10):
        admission.admit(plan())
    error = refusal(admission, plan())
    assert error.retry_after_s == pytest.approx(PLAN_S)
    assert str(error) == "the queue is full"


def test_a_plan_that_is_cut_short_anyway_may_lose_a_tenth(admission: Admission) -> None:
    long = search(iterations=1000)
    admission.admit(QueuedRequest(LATENCY, 0.0, frames_to_encode=1))
    admission.admit(queued_plan(LATENCY, long, deadline=50.5 * ITERATION_S))


def test_batched_plans_run_at_the_same_time() -> None:
    latency = latency_model(max_batched_rows=256)
    admission = Admission(100, FakeClock())
    wide = search(samples=64, iterations=10)
    deadline = 1.5 * queued_plan(latency, wide).snapshot().search_s()
    for _ in range(4):
        admission.admit(queued_plan(latency, wide, deadline=deadline))
    refusal(admission, queued_plan(latency, wide, deadline=deadline))


def serve(admission: Admission, clock: FakeClock, iterations: int) -> None:
    """Admit a plan with time for all its iterations. It leaves at its deadline, after these."""
    queued = plan(deadline=clock.now + 1.01 * PLAN_S)
    admission.admit(queued)
    complete(queued, iterations)
    clock.advance(1.01 * PLAN_S)
    admission.leave(queued)


def nearest_admitted_deadline(admission: Admission, clock: FakeClock) -> float:
    """The nearest deadline with which a plan is admitted behind another, in plan durations."""
    ahead = plan(deadline=clock.now + 1.01 * PLAN_S, priority=9)
    admission.admit(ahead)
    plans = 2.0
    while True:
        newcomer = plan(deadline=clock.now + plans * PLAN_S)
        with suppress(QueueTooLong):
            admission.admit(newcomer)
            admission.leave(newcomer)
            complete(ahead, ASKS)
            admission.leave(ahead)
            return plans
        plans += 0.001


def test_missed_guarantees_widen_the_margin_and_kept_ones_narrow_it(
    admission: Admission, clock: FakeClock
) -> None:
    least = 2 + MIN_MARGIN
    assert nearest_admitted_deadline(admission, clock) == pytest.approx(least, abs=0.01)
    for _ in range(3):
        serve(admission, clock, iterations=2)
    widened = least + 3 * MARGIN_AFTER_MISS
    assert nearest_admitted_deadline(admission, clock) == pytest.approx(widened, abs=0.01)
    for _ in range(100):
        serve(admission, clock, iterations=ASKS)
    assert nearest_admitted_deadline(admission, clock) == pytest.approx(least, abs=0.01)


def test_requests_without_a_guarantee_do_not_change_the_margin(
    admission: Admission, clock: FakeClock
) -> None:
    for _ in range(3):
        serve(admission, clock, iterations=2)
    for _ in range(100):
        encode = QueuedRequest(LATENCY, clock.now, deadline=clock.now + PLAN_S, frames_to_encode=1)
        without_deadline = plan(arrival=clock.now)
        for queued in (encode, without_deadline):
            admission.admit(queued)
            complete(queued, len(queued.candidates_per_iteration))
            admission.leave(queued)
    widened = 2 + MIN_MARGIN + 3 * MARGIN_AFTER_MISS
    assert nearest_admitted_deadline(admission, clock) == pytest.approx(widened, abs=0.01)


def test_a_client_that_goes_away_is_not_a_missed_guarantee(
    admission: Admission, clock: FakeClock
) -> None:
    for _ in range(3):
        gone = plan(deadline=clock.now + 3 * PLAN_S)
        admission.admit(gone)
        admission.leave(gone)
    expected = 2 + MIN_MARGIN
    assert nearest_admitted_deadline(admission, clock) == pytest.approx(expected, abs=0.01)
