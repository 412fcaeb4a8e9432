"""The load generator: what it sends and when, and what it computes from the answers."""

import numpy as np
import pytest

from benchmarks.load import (
    MIN_CALLS_PER_CLIENT,
    Call,
    load_process,
    poisson_schedule,
    steady_calls,
    throughput,
)
from benchmarks.overload import count_in_time
from lewm_serve.cli.local_server import LocalServer


def call(ended_s: float, *, due_s: float = 0.0, outcome: str = "completed") -> Call:
    """A call that was sent when it was due."""
    return Call(due_s=due_s, sent_s=due_s, ended_s=ended_s, outcome=outcome)


def test_a_poisson_schedule_follows_from_its_seed() -> None:
    times = poisson_schedule(100, 50, seed=3)
    assert times == poisson_schedule(100, 50, seed=3)
    assert times != poisson_schedule(100, 50, seed=4)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 50
    # The mean count is 5,000, with a standard deviation of 71. The standard deviation of
    # exponential gaps is their mean.
    assert len(times) == pytest.approx(5000, abs=300)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


def test_a_short_schedule_is_not_cut_off() -> None:
    counts = [len(poisson_schedule(2, 3, seed)) for seed in range(300)]
    assert np.mean(counts) == pytest.approx(6, abs=0.6)


def test_calls_before_the_queue_is_full_are_left_out() -> None:
    first = [call(1.0), call(2.0), call(3.0)]
    later = [call(4.0, due_s=1.0), call(5.0, due_s=1.0)]
    assert steady_calls(first + later) == later
    assert throughput(first) == 1.0


def test_a_failed_plan_is_no_throughput() -> None:
    with pytest.raises(RuntimeError, match="overloaded"):
        steady_calls([call(1.0), call(1.0, outcome="overloaded")])


def test_only_complete_plans_count_as_in_time() -> None:
    calls = [call(1.0), call(2.5), call(1.0, outcome="deadline"), call(1.0, outcome="late")]
    assert count_in_time(calls, seconds=2) == 1


def test_latency_counts_from_the_moment_at_which_a_call_was_due() -> None:
    assert Call(due_s=1, sent_s=3, ended_s=4, outcome="completed").latency_s == 3


def test_load_comes_from_another_process(quick_server: LocalServer) -> None:
    with load_process(quick_server.target) as load:
        closed_loop = load.closed_loop(clients=2, seconds=0)
        late = load.open_loop([0.0, 0.001, 0.002], deadline_s=1e-4)
    assert [call.outcome for call in closed_loop] == ["completed"] * 2 * MIN_CALLS_PER_CLIENT
    assert all(call.due_s <= call.sent_s <= call.ended_s for call in closed_loop)
    assert len(late) == 3
    assert {call.outcome for call in late} <= {"late", "deadline_exceeded"}
