"""How many frames per second 64 clients get encoded, compared with the backend alone.

A paper-size encoder with random weights runs in a server. 64 gRPC clients, each with its own
connection, send one new JPEG frame after another. The backend alone runs in this process at its
best batch size, before and after the clients; the mean counts. The clients also run in this
process, so on a machine with few cores they take a part of what the backend alone has.

Target: the clients get at least 0.85 times the frames per second of the backend alone. Half a
minute.

    python -m benchmarks.encode_throughput [--quick]
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

import grpc.aio
import torch

from benchmarks.clients import new_jpegs, photographs
from benchmarks.in_process import load_like_server, random_model_folder
from benchmarks.report import Measurement, Report, RunOptions, at_least, run_as_program
from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_models.config import PRESETS
from lewm_serve.backends.backend import Backend
from lewm_serve.cli.local_server import local_server

CLIENTS = 64
BATCH_SIZES = (8, 16, 32)
BACKEND_SECONDS = 1.5
"""For each batch size, before and after the clients."""

WARM_UP_SECONDS = 2.0
CLIENT_SECONDS, QUICK_CLIENT_SECONDS = 8.0, 1.0
MIN_RATIO = 0.85


def measure(options: RunOptions) -> Report:
    """See the module."""
    options.show_progress(f"{CLIENTS} clients, and the backend alone before and after them")
    details = (
        measure_rates("edge", client_seconds=QUICK_CLIENT_SECONDS)
        if options.quick
        else measure_rates("paper")
    )
    return Report(
        (
            at_least(
                f"{CLIENTS} gRPC clients: frames encoded against the backend alone",
                details["ratio"],
                "times",
                bound=MIN_RATIO,
            ),
            Measurement(f"{CLIENTS} clients", details["served_per_s"], "frames/s"),
            Measurement(
                "the backend alone",
                details["alone_per_s"],
                "frames/s",
                note=f"batches of {details['best_batch']}, {details['threads']} threads",
            ),
        ),
        details,
    )


def measure_rates(preset: str, client_seconds: float = CLIENT_SECONDS) -> dict[str, Any]:
    """Frames per second of the backend alone and of the clients, and their ratio."""
    size = PRESETS[preset].image_size
    threads = len(os.sched_getaffinity(0))
    with random_model_folder(preset) as folder:
        backend = load_like_server(folder, device="auto", threads=threads).backend
        frames = torch.randint(0, 256, (max(BATCH_SIZES), size, size, 3)).byte()
        with local_server(folder, threads=threads) as server:
            before = {count: _backend_rate(backend, frames[:count]) for count in BATCH_SIZES}
            clients_rate = asyncio.run(_clients_rate(server.target, client_seconds))
            after = {count: _backend_rate(backend, frames[:count]) for count in BATCH_SIZES}
    alone = {count: (before[count] + after[count]) / 2 for count in BATCH_SIZES}
    best = max(BATCH_SIZES, key=lambda count: alone[count])
    return {
        "preset": preset,
        "threads": threads,
        "clients": CLIENTS,
        "best_batch": best,
        "alone_per_s": round(alone[best], 1),
        "served_per_s": round(clients_rate, 1),
        "ratio": round(clients_rate / alone[best], 3),
    }


def _backend_rate(backend: Backend, frames: torch.Tensor) -> float:
    """Frames per second of the backend alone, if it gets these frames in one batch."""
    backend.encode(frames)
    batches, spent, start = 0, 0.0, time.perf_counter()
    while not batches or spent < BACKEND_SECONDS:
        backend.encode(frames)
        batches += 1
        spent = time.perf_counter() - start
    return batches * len(frames) / spent


async def _clients_rate(target: str, seconds: float) -> float:
    """Frames per second that all clients get together."""
    images = new_jpegs(photographs())
    begin = time.perf_counter() + WARM_UP_SECONDS
    end = begin + seconds
    clients = (_run_client(target, images, end) for _ in range(CLIENTS))
    answers_by_client = await asyncio.gather(*clients)
    return answer_rate([moment for answers in answers_by_client for moment in answers], begin, end)


def answer_rate(answers: Iterable[float], begin: float, end: float) -> float:
    """Answers per second, from the first one after ``begin`` to the first one after ``end``.

    Answers come in batches: between two fixed moments there is one batch more or less by chance.
    """
    ordered = sorted(answers)
    first, last = bisect_left(ordered, begin), bisect_left(ordered, end)
    return (last - first) / (ordered[last] - ordered[first]) if last > first else 0.0


async def _run_client(target: str, images: Iterator[bytes], end: float) -> list[float]:
    """The moments at which the frames of one client were answered; the last is after ``end``."""
    answers: list[float] = []
    own_connection = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(target, options=own_connection) as channel:
        stub = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]
        while time.perf_counter() < end:
            await stub.Encode(pb.EncodeRequest(frames=[pb.Frame(image=next(images))]))
            answers.append(time.perf_counter())
    return answers


if __name__ == "__main__":
    run_as_program(measure, __doc__)
