"""Sections about the GPU: where its time goes, its arithmetic floor, and its energy."""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.flops import least_plan_flops
from benchmarks.gpu.bench import Bench, Found
from benchmarks.gpu.throughput import MANY_CLIENTS
from benchmarks.report import Measurement

SHOWN_KERNELS = 25
PRODUCT_SIZE, SMALL_PRODUCT_SIZE = 8192, 64
PROFILED_PLANS = 3
POWER_INTERVAL_S = 0.05
IDLE_SHARE = 0.2


def profile(bench: Bench) -> Found:
    """Kernels of a plan, the time that the GPU is busy, and the rate against large products."""
    planner = bench.planner
    solver, config = bench.subject.card.solver, bench.subject.card.config
    size = SMALL_PRODUCT_SIZE if bench.small else PRODUCT_SIZE
    dtype = getattr(torch, planner.backend.precision)
    left, right = torch.randn(2, size, size).to(bench.device, dtype)
    product_s = statistics.median(
        bench.seconds_of(lambda: torch.mm(left, right), bench.share_until(0.2), most=20)
    )
    product_flops = 2 * size**3 / product_s
    plan_flops = least_plan_flops(
        config, samples=solver.samples, iterations=solver.iterations, horizon=solver.horizon
    )
    plan_s = statistics.median(planner.plan(seed).seconds for seed in range(5))
    activity = ProfilerActivity.CPU if bench.device.type == "cpu" else ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as recorded:
        began = time.perf_counter()
        for seed in range(PROFILED_PLANS):
            planner.plan(seed)
        profiled_s = time.perf_counter() - began
    kernels = _kernels(recorded, bench.device)
    busy_s = sum(seconds for _, seconds, _ in kernels)
    launches = sum(count for _, _, count in kernels)
    per_iteration = launches / PROFILED_PLANS / (solver.iterations + 1)
    return Found(
        [
            Measurement(
                "GPU: one plan against the arithmetic floor",
                plan_s * product_flops / plan_flops,
                "times",
                note=f"large products: {product_flops / 1e12:.3g} TFLOP/s",
            ),
            Measurement("GPU: busy during one plan", min(1.0, busy_s / profiled_s), "of the time"),
            Measurement("GPU: kernels of an iteration", per_iteration, ""),
            Measurement("GPU: memory of all models of this run", _memory_gib(bench), "GiB"),
        ],
        {
            "kernels": [
                {"name": name, "seconds": seconds, "count": count}
                for name, seconds, count in kernels[:SHOWN_KERNELS]
            ],
            "product_flops": product_flops,
            "plan_flops": plan_flops,
            "profiled_plans": PROFILED_PLANS,
            "profiled_s": profiled_s,
            "busy_s": busy_s,
        },
    )


def _memory_gib(bench: Bench) -> float | None:
    """The most memory that PyTorch has taken from the GPU."""
    if bench.device.type != "cuda":
        return None
    return torch.cuda.max_memory_reserved(bench.device) / 2**30


def _kernels(recorded: Any, device: torch.device) -> list[tuple[str, float, int]]:
    """Names, seconds and counts of what ran on the device, the longest first."""
    on_gpu = device.type == "cuda"
    rows = [
        (
            event.key,
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6,
            event.count,
        )
        for event in recorded.key_averages()
    ]
    return sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])


def energy(bench: Bench) -> Found:
    """Joules of a plan with many clients, by the power that the driver reports."""
    read = power_reader(bench.device)
    if read is None:
        note = "not measured: neither pynvml nor nvidia-smi reports the power"
        return Found([Measurement("GPU: energy of a plan", None, "J", note=note)])
    planner = bench.planner
    with _powers(read) as idle:
        time.sleep(IDLE_SHARE * max(0.0, bench.left_s))
    with _powers(read) as busy:
        began = time.monotonic()
        answers = planner.run_clients(MANY_CLIENTS, bench.until)
        seconds = time.monotonic() - began
    watts = statistics.mean(busy)
    return Found(
        [
            Measurement(
                "GPU: energy of a plan",
                watts * seconds / len(answers),
                "J",
                note=f"{MANY_CLIENTS} clients; {watts:.0f} W, idle {statistics.mean(idle):.0f} W",
            )
        ],
        {"busy_w": busy, "idle_w": idle, "plans": len(answers), "seconds": seconds},
    )


def power_reader(device: torch.device) -> Callable[[], float] | None:
    """A function that reads the watts of a GPU, by NVML or by nvidia-smi; None if none can."""
    if device.type != "cuda":
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    if importlib.util.find_spec("pynvml") is not None:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return lambda: float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, f"--id={uuid}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]

    def read() -> float:
        return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout)

    return read


@contextmanager
def _powers(read: Callable[[], float]) -> Iterator[list[float]]:
    """The watts during the block, several times a second; at least one."""
    watts = [read()]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POWER_INTERVAL_S):
            watts.append(read())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield watts
    finally:
        ended.set()
        thread.join()
