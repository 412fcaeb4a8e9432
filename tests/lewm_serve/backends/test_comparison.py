"""How backends are timed: with the solver's own number of candidates, in a bounded time."""

from dataclasses import dataclass, field
from typing import cast

import pytest

from lewm_serve.backends.backend import ThreadedBackend
from lewm_serve.backends.comparison import (
    CLEARLY_SLOWER,
    SCREENING_ROUNDS,
    SCREENING_SAMPLES,
    TIMING_LIMIT_S,
    TIMING_ROUNDS,
    BackendTiming,
    time_options,
)

SAMPLES = 300


@dataclass(eq=False)
class FakeBackend:
    """Runs nothing; a candidate takes some seconds, by the number of threads.

    ``runs`` holds the number of candidates of each timed run.
    """

    candidate_s: dict[int, float]
    threads: int = 0
    runs: list[int] = field(default_factory=list)


class FakeMachine:
    """Times fake backends by a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0

    def time_options(self, *backends: FakeBackend, samples: int = SAMPLES) -> list[BackendTiming]:
        options = [(backend, threads) for backend in backends for threads in backend.candidate_s]
        return time_options(
            cast(list[tuple[ThreadedBackend, int]], options),
            samples=samples,
            plan_seconds=self._plan_seconds,
            clock=lambda: self.now,
        )

    def _plan_seconds(self, threaded: ThreadedBackend, samples: int) -> float:
        backend = cast(FakeBackend, threaded)
        candidate_s = backend.candidate_s[backend.threads]
        self.now += samples * candidate_s
        backend.runs.append(samples)
        return 30 * SAMPLES * candidate_s


def test_options_are_timed_with_the_solvers_own_number_of_candidates() -> None:
    backend = FakeBackend({1: 2e-4, 2: 1.5e-4})
    timings = FakeMachine().time_options(backend)
    assert [timing.plan_s for timing in timings] == pytest.approx([1.8, 1.35])
    screening_runs = 2 * (1 + SCREENING_ROUNDS)
    assert backend.runs[:screening_runs] == [SCREENING_SAMPLES] * screening_runs
    assert backend.runs[screening_runs:] == [SAMPLES] * 2 * (1 + TIMING_ROUNDS)


def test_a_clearly_slower_option_is_dropped_early() -> None:
    fast, slow = FakeBackend({1: 1e-4, 2: 1e-4}), FakeBackend({1: 1e-4 * CLEARLY_SLOWER * 1.1})
    timings = FakeMachine().time_options(fast, slow)
    assert set(slow.runs) == {SCREENING_SAMPLES}
    assert set(fast.runs) == {SCREENING_SAMPLES, SAMPLES}
    assert timings[-1].plan_s == pytest.approx(30 * SAMPLES * 2.2e-4)


def test_if_one_option_remains_it_is_not_timed_further() -> None:
    fast, slow = FakeBackend({1: 1e-4}), FakeBackend({1: 1e-3})
    FakeMachine().time_options(fast, slow)
    assert set(fast.runs) == {SCREENING_SAMPLES}


def test_slow_options_get_fewer_rounds() -> None:
    machine, backend = FakeMachine(), FakeBackend({1: 1e-3, 2: 1e-3})
    machine.time_options(backend)
    assert backend.runs.count(SAMPLES) == 2 * 2  # two rounds of 0.6 s
    very_slow = FakeBackend({1: 2e-3, 2: 2e-3})
    machine.time_options(very_slow)
    assert very_slow.runs.count(SAMPLES) == 2 * 1


def test_where_one_round_takes_too_long_there_are_fewer_candidates() -> None:
    machine, backend = FakeMachine(), FakeBackend({1: 1e-2, 2: 1e-2})
    machine.time_options(backend)
    assert backend.runs[-2:] == [75, 75]
    assert TIMING_LIMIT_S == 75 * 2 * 1e-2
    extremely_slow = FakeBackend({1: 1.0, 2: 1.0})
    machine.time_options(extremely_slow)
    assert set(extremely_slow.runs) == {SCREENING_SAMPLES}


def test_a_solver_of_few_candidates_is_timed_with_as_many() -> None:
    backend = FakeBackend({1: 2e-4, 2: 1.5e-4})
    FakeMachine().time_options(backend, samples=10)
    assert set(backend.runs) == {10}
