"""Plans through the engine: one, many, with deadlines, and those of the embedded models."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.bench import Bench, Found
from benchmarks.gpu.plans import (
    Answer,
    EnginePlanner,
    choose,
    embedded_subject,
    median_ms,
    plans_per_s,
)
from benchmarks.report import Measurement, at_least, at_most
from lewm_models.checkpoint import PRETRAINED

MAX_PLANS = 200
MAX_PLAN_MS, MIN_PLANS_PER_S, MIN_THROUGHPUT_RATIO = 15.0, 100.0, 5.0
DEADLINE_MS, MIN_IN_TIME = 20.0, 0.99
LATE_MS = 2.0
"""An answer counts as in time until so long after its deadline: a thread has to wake up."""

FEW_CLIENTS, MANY_CLIENTS, MOST_CLIENTS = 8, 32, 64

PLAN_P50, FEW_RATIO = "GPU: one plan, p50", f"GPU: {FEW_CLIENTS} clients, throughput against one"
ONE_PLAN_TARGETS = (at_most(PLAN_P50, None, "ms", bound=MAX_PLAN_MS),)
CLIENTS_TARGETS = (
    at_least(FEW_RATIO, None, "times", bound=MIN_THROUGHPUT_RATIO),
    at_least(f"GPU: {MANY_CLIENTS} clients", None, "plans/s", bound=MIN_PLANS_PER_S),
)
DEADLINE_TARGETS = tuple(
    at_least(
        f"GPU: deadlines of {DEADLINE_MS:g} ms, {count}: kept", None, "of plans", bound=MIN_IN_TIME
    )
    for count in ("1 client", f"{FEW_CLIENTS} clients")
)


def one_plan(bench: Bench) -> Found:
    """Seconds of plans, one after another; and with the solver on the host."""
    planner = bench.planner
    until = bench.share_until(0.6)
    seconds = _plan_seconds(planner, until)
    bench.show_progress("one plan, with the solver on the host")
    precision = planner.backend.precision
    choice = choose(bench.subject, bench.device, precision=precision, on_host=True)
    host = EnginePlanner(bench.subject, choice.backend)
    try:
        host_seconds = _plan_seconds(host, bench.until, most=MAX_PLANS // 10)
    finally:
        host.stop()
    return Found(
        [
            at_most(PLAN_P50, median_ms(seconds), "ms", bound=MAX_PLAN_MS, note=_p99(seconds)),
            Measurement("GPU: one plan, solver on the host, p50", median_ms(host_seconds), "ms"),
            Measurement("GPU: recording the usual searches", planner.recording_s, "s"),
        ],
        {
            "plan_s": seconds,
            "host_plan_s": host_seconds,
            "precision": precision,
            "max_batched_rows": planner.latency.max_batched_rows,
            "curve": planner.latency.measurements.curve,
        },
    )


def clients(bench: Bench) -> Found:
    """Plans per second of several clients."""
    rates: dict[int, float] = {}
    counts = (1, FEW_CLIENTS, MANY_CLIENTS, MOST_CLIENTS)
    for index, count in enumerate(counts):
        if rates and bench.is_over:
            break
        bench.show_progress(f"{count} clients")
        until = bench.share_until(1 / (len(counts) - index))
        planner = bench.planner
        planner.run_clients(count, time.monotonic())  # records what is not recorded yet
        rates[count] = plans_per_s(planner, count, max(0.0, until - time.monotonic()))
    few, many = rates.get(FEW_CLIENTS), rates.get(MANY_CLIENTS)
    ratio = None if few is None else few / rates[1]
    most = rates.get(MOST_CLIENTS)
    return Found(
        [
            Measurement("GPU: 1 client", rates[1], "plans/s"),
            Measurement(f"GPU: {FEW_CLIENTS} clients", few, "plans/s"),
            at_least(FEW_RATIO, ratio, "times", bound=MIN_THROUGHPUT_RATIO),
            at_least(f"GPU: {MANY_CLIENTS} clients", many, "plans/s", bound=MIN_PLANS_PER_S),
            Measurement(f"GPU: {MOST_CLIENTS} clients", most, "plans/s"),
        ],
        {"plans_per_s": rates},
    )


def deadlines(bench: Bench) -> Found:
    """Plans with deadlines that cut them short."""
    measurements: list[Measurement] = []
    details: dict[str, Any] = {}
    for index, target in enumerate(DEADLINE_TARGETS):
        count = (1, FEW_CLIENTS)[index]
        until = bench.share_until(1 / (len(DEADLINE_TARGETS) - index))
        answers = bench.planner.run_clients(count, until, deadline_s=DEADLINE_MS / 1000)
        in_time = [1000 * answer.seconds <= DEADLINE_MS + LATE_MS for answer in answers]
        planned = [answer.outcome for answer in answers if answer.outcome is not None]
        iterations = [outcome.iterations for outcome in planned]
        note = (
            f"{statistics.mean(iterations):.1f} iterations, {len(planned)} of {len(answers)} "
            f"planned; {_p99([answer.seconds for answer in answers])}"
            if iterations
            else "no plan had an iteration"
        )
        measurements.append(
            at_least(
                target.what, sum(in_time) / len(in_time), "of plans", bound=MIN_IN_TIME, note=note
            )
        )
        details[str(count)] = _summary(answers)
    return Found(measurements, details)


def embedded(bench: Bench) -> Found:
    """One plan and many clients of each embedded model, by its card's own search."""
    measurements: list[Measurement] = []
    details: dict[str, Any] = {}
    folders = sorted(folder for folder in PRETRAINED.iterdir() if folder.is_dir())
    for index, folder in enumerate(folders):
        bench.show_progress(folder.name)
        until = bench.share_until(1 / (len(folders) - index))
        if measurements and bench.is_over:
            break
        subject = embedded_subject(folder, bench.device, small=bench.small)
        precision = "float32" if bench.small else "auto"
        planner = EnginePlanner(subject, choose(subject, bench.device, precision=precision).backend)
        try:
            planner.plan(0)
            seconds = _plan_seconds(planner, (time.monotonic() + until) / 2)
            planner.run_clients(MANY_CLIENTS, time.monotonic())
            rate = plans_per_s(planner, MANY_CLIENTS, max(0.0, until - time.monotonic()))
        finally:
            planner.stop()
        measurements += [
            Measurement(f"GPU: {folder.name}, one plan, p50", median_ms(seconds), "ms"),
            Measurement(f"GPU: {folder.name}, {MANY_CLIENTS} clients", rate, "plans/s"),
        ]
        details[folder.name] = {"plan_s": seconds, "precision": planner.backend.precision}
    return Found(measurements, details)


def _plan_seconds(planner: EnginePlanner, until: float, most: int = MAX_PLANS) -> list[float]:
    """Seconds of plans one after another, until a time, after one that is not counted."""
    planner.plan(0)
    seconds: list[float] = []
    while not seconds or (len(seconds) < most and time.monotonic() < until):
        seconds.append(planner.plan(len(seconds)).seconds)
    return seconds


def _summary(answers: Sequence[Answer]) -> dict[str, Any]:
    outcomes = [answer.outcome for answer in answers if answer.outcome is not None]
    return {
        "answers": len(answers),
        "planned": len(outcomes),
        "iterations": [outcome.iterations for outcome in outcomes],
        "seconds": [answer.seconds for answer in answers],
    }


def _p99(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return f"p99 {1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]:.3g} ms"
