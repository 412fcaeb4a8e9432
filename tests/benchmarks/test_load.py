"""The load generator: what it sends when, and what it makes of the answers."""

import numpy as np
import pytest

from benchmarks.closed_loop import steady, throughput
from benchmarks.load import LEAST, Call, load_process, poisson_schedule
from benchmarks.overload import in_time
from tests.lewm_serve.support.server_process import ServerProcess


def test_a_poisson_schedule_is_fixed_by_its_seed() -> None:
    moments = poisson_schedule(100, 50, seed=3)
    assert moments == poisson_schedule(100, 50, seed=3)
    assert moments != poisson_schedule(100, 50, seed=4)
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 50
    # 5,000 expected, with a deviation of 71; gaps of an exponential distribution deviate by
    # their mean.
    assert len(moments) == pytest.approx(5000, abs=300)
    gaps = np.diff(moments)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


def test_a_schedule_of_few_is_whole() -> None:
    counts = [len(poisson_schedule(2, 3, seed)) for seed in range(300)]
    assert np.mean(counts) == pytest.approx(6, abs=0.6)


def calls(*ends: float, wanted: float = 0.0) -> list[Call]:
    return [Call(wanted, wanted, end, "completed") for end in ends]


def test_only_calls_under_full_load_count() -> None:
    first, later = calls(1.0, 2.0, 3.0), calls(4.0, 5.0, wanted=1.0)
    assert steady(first + later) == later
    assert throughput(calls(1.0, 2.0, 3.0)) == 1.0


def test_a_failed_plan_is_no_throughput() -> None:
    with pytest.raises(RuntimeError, match="overloaded"):
        steady([*calls(1.0), Call(0, 0, 1, "overloaded")])


def test_only_whole_plans_count_as_in_time() -> None:
    answers = [*calls(1.0, 2.5), Call(0, 0, 1, "deadline"), Call(0, 0, 1, "late")]
    assert in_time(answers, seconds=2) == 1


def test_waiting_counts_from_the_moment_meant() -> None:
    assert Call(wanted_s=1, sent_s=3, ended_s=4, outcome="completed").latency_s == 3


def test_load_comes_from_a_process_of_its_own(quick_server: ServerProcess) -> None:
    with load_process(quick_server.target) as load:
        closed = load.closed(clients=2, seconds=0)
        late = load.open([0.0, 0.001, 0.002], deadline_s=1e-4)
    assert [call.outcome for call in closed] == ["completed"] * 2 * LEAST
    assert all(call.wanted_s <= call.sent_s <= call.ended_s for call in closed)
    assert len(late) == 3
    assert {call.outcome for call in late} <= {"late", "deadline_exceeded"}
