"""Rows split among threads, and the choice of one thread or all by what calls take."""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lewm_models.cores import lower_thread_priority
from lewm_serve.backends.rollout import (
    FIRST_TRIAL_CALLS,
    MAX_CALL_SIZES,
    MAX_TRIAL_CALLS,
    MAX_TRIAL_COST,
    TRIALS_TO_SWITCH,
    RowThreads,
    ThreadPolicy,
)
from tests.patience import PATIENCE_S

CALL = "roll-outs"
ALL_THREADS = 4

Seconds = Callable[[int, int], float]
"""The seconds of a call by its rows and threads."""


@pytest.mark.parametrize(
    ("threads", "rows", "sizes"),
    [(1, 100, [100]), (2, 100, [50, 50]), (3, 100, [33, 33, 34]), (4, 17, [8, 9]), (2, 1, [1])],
)
def test_rows_are_split_by_their_number_alone(threads: int, rows: int, sizes: list[int]) -> None:
    parts = RowThreads(threads).map(lambda part: part, rows, call=CALL)
    assert [part.stop - part.start for part in parts] == sizes
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))


def test_parts_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3)
    row_threads = RowThreads(3, min_rows=1)
    row_threads.map(lambda _part: barrier.wait(PATIENCE_S), 3, call=CALL)


def test_an_error_in_any_part_is_raised() -> None:
    def fail(part: slice) -> None:
        if part.start:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        RowThreads(2).map(fail, 16, call=CALL)


class Machine:
    """Runs calls on a policy by a fake clock; records the threads of each call, and all seconds."""

    def __init__(self, policy: ThreadPolicy, seconds: Seconds) -> None:
        self.policy = policy
        self.seconds = seconds
        self.threads: list[int] = []
        self.elapsed_s = 0.0

    def run(self, calls: int, rows: int, call: str = CALL) -> list[int]:
        """Run calls of one size; the threads of each."""
        for _ in range(calls):
            threads = self.policy.threads(call, rows)
            seconds = self.seconds(rows, threads)
            self.policy.observe(call, rows, threads=threads, seconds=seconds)
            self.threads.append(threads)
            self.elapsed_s += seconds
        return self.threads[-calls:]


def shared(rows: int, threads: int) -> float:
    """Seconds on an idle machine: threads share the rows, and waking them takes a while."""
    return rows / threads + (10 if threads > 1 else 0)


def busy(rows: int, threads: int) -> float:
    """Seconds beside other processes: several threads wait for the one that has to wait longest."""
    return rows * (1.0 if threads == 1 else 1.5)


def test_a_choice_made_while_the_machine_was_busy_is_reconsidered_when_it_is_idle() -> None:
    machine = Machine(ThreadPolicy(1, ALL_THREADS), busy)
    assert set(machine.run(1000, rows=300)[-100:]) <= {1, ALL_THREADS}
    assert machine.policy.threads(CALL, 300) == 1
    machine.seconds = shared
    threads = machine.run(2 * MAX_TRIAL_CALLS, rows=300)
    assert threads[-1] == ALL_THREADS
    machine.seconds = busy
    assert machine.run(2 * MAX_TRIAL_CALLS, rows=300)[-1] == 1


def test_a_wrong_first_choice_is_corrected_within_a_plan() -> None:
    machine = Machine(ThreadPolicy(1, ALL_THREADS), shared)
    threads = machine.run(30, rows=300)
    assert set(threads[:FIRST_TRIAL_CALLS]) == {1}
    assert threads[-10:] == [ALL_THREADS] * 10
    assert threads.count(1) < 20


def test_small_calls_take_one_thread_and_large_ones_all() -> None:
    machine = Machine(ThreadPolicy(ALL_THREADS, ALL_THREADS), shared)
    for _ in range(200):
        machine.run(1, rows=8)
        machine.run(1, rows=100)
    assert machine.policy.threads(CALL, 8) == 1
    assert machine.policy.threads(CALL, 100) == ALL_THREADS


def test_a_new_size_starts_with_the_choice_of_the_nearest_one() -> None:
    machine = Machine(ThreadPolicy(ALL_THREADS, ALL_THREADS), shared)
    for _ in range(200):
        machine.run(1, rows=8)
        machine.run(1, rows=200)
    assert machine.policy.threads(CALL, 5) == 1
    assert machine.policy.threads(CALL, 100) == ALL_THREADS
    assert machine.policy.threads("encodes", 9) == 1


def test_the_number_of_remembered_sizes_is_bounded() -> None:
    machine = Machine(ThreadPolicy(1, ALL_THREADS), shared)
    for horizon in range(2 * MAX_CALL_SIZES):
        machine.run(1, rows=100, call=f"roll-outs (horizon {horizon})")
    assert len(machine.policy._sizes) == MAX_CALL_SIZES


def test_calls_of_different_kinds_have_their_own_choice() -> None:
    policy = ThreadPolicy(1, ALL_THREADS)
    idle, loaded = Machine(policy, shared), Machine(policy, busy)
    for _ in range(200):
        idle.run(1, rows=300, call="roll-outs of 5 steps")
        loaded.run(1, rows=300, call="roll-outs of 1 steps")
    assert policy.threads("roll-outs of 5 steps", 300) == ALL_THREADS
    assert policy.threads("roll-outs of 1 steps", 300) == 1


@pytest.mark.parametrize("start", [1, ALL_THREADS])
def test_what_is_faster_by_less_than_the_margin_changes_nothing(start: int) -> None:
    machine = Machine(
        ThreadPolicy(start, ALL_THREADS), lambda _rows, threads: 1.0 if threads == start else 0.91
    )
    machine.run(3000, rows=300)
    assert machine.policy.threads(CALL, 300) == start


def test_one_lucky_trial_changes_nothing() -> None:
    def lucky(_rows: int, threads: int) -> float:
        trials = machine.threads.count(ALL_THREADS)
        return 0.1 if threads > 1 and trials < TRIALS_TO_SWITCH - 1 else 1.0

    machine = Machine(ThreadPolicy(1, ALL_THREADS), lucky)
    machine.run(FIRST_TRIAL_CALLS + 10, rows=300)
    assert machine.threads.count(ALL_THREADS) == TRIALS_TO_SWITCH
    assert machine.policy.threads(CALL, 300) == 1


def test_noise_does_not_make_the_choice_swing() -> None:
    delays = [1.0, 1.03, 0.98, 1.4, 1.01, 0.97, 3.0, 1.02]

    def noisy(_rows: int, _threads: int) -> float:
        return delays[len(machine.threads) % len(delays)]

    machine = Machine(ThreadPolicy(1, ALL_THREADS), noisy)
    machine.run(5000, rows=300)
    assert machine.policy.threads(CALL, 300) == 1
    assert machine.threads.count(ALL_THREADS) < 100


def test_trials_cost_little_however_slow_they_are() -> None:
    machine = Machine(
        ThreadPolicy(1, ALL_THREADS), lambda _rows, threads: 1.0 if threads == 1 else 20.0
    )
    machine.run(200, rows=300)  # the first trial comes early, and nobody knows what it will cost
    before_s = machine.elapsed_s
    machine.run(20_000, rows=300)
    assert machine.elapsed_s - before_s <= 20_000 * (1 + 1.1 * MAX_TRIAL_COST)
    assert machine.threads[-19_000:].count(ALL_THREADS) >= 5


def test_row_threads_follow_what_calls_take(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    running: list[int] = []

    def part(rows: slice) -> None:
        running.append(rows.stop - rows.start)
        if len(running) == 1:  # the clock follows one thread, as if the others ran beside it
            now[0] += rows.stop - rows.start

    def call(rows: int) -> int:
        running.clear()
        row_threads.map(part, rows, call=CALL)
        return len(running)

    row_threads = RowThreads(1, clock=lambda: now[0])
    row_threads.choose_by_measurement(2)
    with caplog.at_level(logging.INFO):
        parts = [call(100) for _ in range(30)]
    assert parts[:FIRST_TRIAL_CALLS] == [1] * FIRST_TRIAL_CALLS
    assert parts[-10:] == [2] * 10
    assert [record.getMessage() for record in caplog.records] == [
        "threads changed: 2 for roll-outs of about 100 rows"
    ]
    assert call(15) == 1  # too few rows for two threads
    row_threads.use(1)
    assert {call(100) for _ in range(30)} == {1}


def test_renewed_threads_have_the_priority_of_the_caller() -> None:
    row_threads = RowThreads(2, min_rows=1)
    both = threading.Barrier(2)

    def niceness_of_rows(_rows: slice) -> int:
        both.wait(PATIENCE_S)  # each of the two threads has one of the rows
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def niceness() -> list[int]:
        return row_threads.map(niceness_of_rows, 2, call="test")

    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    lower = min(19, here + 10)
    with ThreadPoolExecutor(1, initializer=lower_thread_priority, initargs=(lower,)) as loader:
        assert loader.submit(niceness).result() == [lower, lower]
    assert niceness() == [here, lower]  # threads inherit the priority, and keep it
    row_threads.renew()
    assert niceness() == [here, here]
