"""What a soak finds: its own verdict for series that are known, and a real one of five minutes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.calls import Call, LoadResult
from loadtests.drift import judge
from loadtests.report import LoadReport
from loadtests.soak import (
    MEMORY_LIMIT,
    P99_LIMIT,
    WINDOWS,
    ProcessSample,
    SoakReport,
    read_processes,
    soak,
    windows_p99_ms,
)
from loadtests.spec import LoadSpec

SECONDS = 300.0


def plans(count: int, *, code: str = "ok") -> list[Call]:
    """One plan a second; each takes as many milliseconds as seconds have passed."""
    return [
        Call("grpc plan", float(second), float(second), 0.0, code, code == "ok", False)
        for second in range(count)
    ]


def report(memory: list[float], p99: list[float], *, ratio: float, code: str = "ok") -> SoakReport:
    load = LoadReport.of(
        LoadSpec(http="127.0.0.1:8000"), LoadResult(plans(300, code=code), SECONDS), None, None
    )
    return SoakReport(
        load=load,
        samples=[ProcessSample(float(at), size, 30, 18) for at, size in enumerate(memory)],
        windows_p99_ms=p99,
        figures=[
            judge("memory", "MiB", memory, MEMORY_LIMIT),
            judge("p99", "ms", p99, P99_LIMIT),
        ],
        p99_ratio=ratio,
    )


FLAT, LEAK = [500.0] * 150, [500.0 + size for size in range(150)]
STEADY, SLOWER = [20.0] * 30, [20.0 + 2 * window for window in range(30)]


def test_a_steady_server(tmp_path: Path) -> None:
    steady = report(FLAT, STEADY, ratio=1.0)
    assert steady.faults == []
    page, _ = steady.write(tmp_path)
    assert "**no drift and no failed call: 300 calls in 300 s.**" in page.read_text()
    # 10 MiB, and 200 calls from the middle of the first third to that of the last.
    assert steady.smallest_leak_bytes == pytest.approx(10 * 2**20 / 200)


def test_a_leak_is_a_fault() -> None:
    (fault,) = report(LEAK, STEADY, ratio=1.0).faults
    assert fault.startswith("memory drifts: 537.0 MiB in the first third, 627.0")


def test_a_slower_server_is_a_fault_unless_a_fresh_one_is_as_slow() -> None:
    (fault,) = report(FLAT, SLOWER, ratio=2.0).faults
    assert fault.startswith("p99 drifts")
    assert report(FLAT, SLOWER, ratio=1.1).faults == []


@pytest.mark.parametrize("code", ["internal", "overloaded"])
def test_failed_and_refused_calls_are_faults(code: str) -> None:
    (fault,) = report(FLAT, STEADY, ratio=1.0, code=code).faults
    assert "300" in fault


def test_windows_hold_the_calls_that_ended_in_them() -> None:
    windows = windows_p99_ms(LoadResult(plans(300), SECONDS))
    assert len(windows) == WINDOWS
    assert windows[0] == pytest.approx(9, abs=0.2)
    assert windows[-1] == pytest.approx(299, abs=0.2)
    other = replace_kind(plans(300), "rest client leaves")
    assert windows_p99_ms(LoadResult([*plans(300), *other], SECONDS)) == windows


def replace_kind(calls: list[Call], kind: str) -> list[Call]:
    return [call._replace(kind=kind, latency_ms=1e6) for call in calls]


def test_a_process_is_read() -> None:
    before = read_processes(os.getpid(), 1.0)
    with Path("/dev/null").open():
        opened = read_processes(os.getpid(), 2.0)
    assert opened.descriptors == before.descriptors + 1
    assert before.threads >= 1
    assert before.memory_mib > 10
    assert replace(before, at_s=2.0).at_s == opened.at_s


def test_a_soak_is_long_enough_to_judge() -> None:
    with pytest.raises(ValueError, match="--seconds: expected at least 60, got 5"):
        soak(5)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nothing_drifts_in_five_minutes(tmp_path: Path) -> None:
    result = soak(SECONDS)
    page, _ = result.write(tmp_path)
    assert result.faults == [], page.read_text()
