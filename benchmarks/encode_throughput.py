"""Frames a second that 64 gRPC clients get encoded, against the backend alone at its best batch.

Paper-size encoder, random weights, JPEG frames that the server has never seen, one a request. The
clients live in this process and the server in another; on a machine of few cores they take part of
what the backend alone has to itself. The backend is measured before and after, and the mean counts.

    python -m benchmarks.encode_throughput
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import torch

from benchmarks.frames import fresh, jpeg, photographs
from benchmarks.served import load_served
from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_models import checkpoint
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card, random_model
from lewm_serve.backends.backend import Backend
from lewm_serve.cli.local_server import local_server

CLIENTS = 64
BATCHES = (8, 16, 32)
ALONE_S = 1.5
"""For each batch size, before and after."""
WARM_UP_S = 2.0
SERVED_S = 8.0


def measure(preset: str = "paper", served_s: float = SERVED_S) -> dict[str, Any]:
    """Frames a second alone and served, and their ratio."""
    config = PRESETS[preset]
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / preset
        checkpoint.save(path, random_model(config), random_card(preset, config, {}))
        backend = load_served(path, device="auto", threads=threads).backend
        frames = torch.randint(0, 256, (max(BATCHES), *[config.image_size] * 2, 3)).byte()
        with local_server(path, threads=threads) as server:
            before = {rows: _rate(backend, frames[:rows]) for rows in BATCHES}
            served = asyncio.run(_served(server.target, served_s))
            after = {rows: _rate(backend, frames[:rows]) for rows in BATCHES}
    alone = {rows: (before[rows] + after[rows]) / 2 for rows in BATCHES}
    best = max(BATCHES, key=lambda rows: alone[rows])
    return {
        "preset": preset,
        "threads": threads,
        "clients": CLIENTS,
        "best_batch": best,
        "alone_per_s": round(alone[best], 1),
        "served_per_s": round(served, 1),
        "ratio": round(served / alone[best], 3),
    }


def _rate(backend: Backend, frames: torch.Tensor) -> float:
    """Frames a second of the backend alone, at this batch size."""
    backend.encode(frames)
    batches, spent, start = 0, 0.0, time.perf_counter()
    while not batches or spent < ALONE_S:
        backend.encode(frames)
        batches += 1
        spent = time.perf_counter() - start
    return batches * len(frames) / spent


async def _served(target: str, seconds: float) -> float:
    """Frames a second that the clients get, each with a connection of its own."""
    images = fresh([jpeg(picture) for picture in photographs()])
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds
    each = await asyncio.gather(*(_client(target, images, end) for _ in range(CLIENTS)))
    return rate([moment for moments in each for moment in moments], begin, end)


def rate(moments: Iterable[float], begin: float, end: float) -> float:
    """Answers a second, from the first after ``begin`` up to the first after ``end``.

    Answers come by the batch: between two fixed moments there is one batch more or less by chance.
    """
    ordered = sorted(moments)
    first, last = bisect_left(ordered, begin), bisect_left(ordered, end)
    return (last - first) / (ordered[last] - ordered[first]) if last > first else 0.0


async def _client(target: str, images: Iterator[bytes], end: float) -> list[float]:
    """When a client's frames were answered, the last one after ``end``."""
    answered: list[float] = []
    own = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(target, options=own) as channel:
        stub = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]
        while time.perf_counter() < end:
            await stub.Encode(pb.EncodeRequest(frames=[pb.Frame(image=next(images))]))
            answered.append(time.perf_counter())
    return answered


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
