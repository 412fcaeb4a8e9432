"""What the cache of latents saves and costs, and what a failing Redis costs.

Two servers of the embedded model share a Redis; a third has none. The first encodes frames. The
second has never seen them, so it must fetch each from Redis. One client asks over REST, with JPEG
images of 224 px, and what is compared is asked in turns. The bare route is `GET /healthz`, so the
upload, its parsing and the naming of the frame count as costs of the cache.

Redis is disturbed in five ways: frozen, killed, full, restarted, with another password. For some
seconds the second server and the one without Redis get new frames in turns, and their p99 is
compared. Then the disturbance ends, and the time until the server has Redis again is measured. The
details hold the number of errors that the server counted.

Targets, over the bare route at p50: at most 2 ms for a frame cached in process, 4 ms in Redis.
While Redis is disturbed: at most 50 ms more than without Redis at p99. Redis is back within 5 s.
One minute and a half.

    python -m benchmarks.cache [--quick]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from benchmarks.clients import (
    Document,
    RestClient,
    image_document,
    new_jpegs,
    two_room_pictures,
)
from benchmarks.comparison import median_ratio
from benchmarks.in_process import random_model_folder
from benchmarks.processes import RedisServer, redis_server
from benchmarks.report import Measurement, Report, RunOptions, at_most, run_as_program
from lewm_serve.cli.local_server import local_server

ENCODES, EMBEDDED_PLANS, PAPER_PLANS = 200, 60, 10
QUICK_ENCODES, QUICK_EMBEDDED_PLANS, QUICK_PAPER_PLANS = 10, 3, 2
DISTURBED_SECONDS, QUICK_DISTURBED_SECONDS = 6.0, 1.0

REDIS_TIMEOUT_MS = 50.0
RECONNECT_TIMEOUT_S = 60.0
MAX_BACK_S = 5.0
MAX_IN_PROCESS_MS, MAX_FROM_REDIS_MS = 2.0, 4.0

SHORT_SEARCH = {"samples": 64, "iterations": 3, "elites": 8}
"""For the paper's size, whose default search would hide what encoding costs."""


class Disturbance(NamedTuple):
    """Something that happens to Redis, and what ends it; None: it ends by itself."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None] | None


def measure(options: RunOptions) -> Report:
    """See the module."""
    quick = options.quick
    images = new_jpegs(two_room_pictures())
    measurements: list[Measurement] = []
    details: dict[str, Any] = {}
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        options.show_progress("three servers start")
        with_redis: dict[str, Any] = {"redis_url": redis.url, "redis_timeout_ms": REDIS_TIMEOUT_MS}
        first, second, without_redis = (
            RestClient(stack.enter_context(local_server(**settings)))
            for settings in (with_redis, with_redis, {})
        )
        options.show_progress("cached frames")
        frames = list(islice(images, QUICK_ENCODES if quick else ENCODES))
        measurements += _measure_encodes(first, second, frames, details=details)
        options.show_progress("plans of the embedded model")
        measurements += _measure_plans(
            "embedded model",
            without_redis,
            images,
            rounds=QUICK_EMBEDDED_PLANS if quick else EMBEDDED_PLANS,
            solver={},
            details=details,
        )
        for disturbance in _disturbances(redis):
            options.show_progress(f"Redis {disturbance.name}")
            measurements += _measure_disturbance(
                disturbance,
                second,
                without_redis,
                images=images,
                seconds=QUICK_DISTURBED_SECONDS if quick else DISTURBED_SECONDS,
                details=details,
            )
    options.show_progress("plans of the paper's size")
    preset = "edge" if quick else "paper"
    with random_model_folder(preset) as folder, local_server(folder) as server:
        measurements += _measure_plans(
            "paper size",
            RestClient(server),
            images,
            rounds=QUICK_PAPER_PLANS if quick else PAPER_PLANS,
            solver=SHORT_SEARCH,
            details=details,
        )
    return Report(tuple(measurements), details)


def _measure_encodes(
    first: RestClient, second: RestClient, frames: Sequence[bytes], details: dict[str, Any]
) -> list[Measurement]:
    """Encodes that only the first server has done, then the second from Redis and from memory."""
    for client in (first, second):
        _wait_for_redis(client)
    documents: list[Document] = [{"frames": [image_document(frame)]} for frame in frames]
    for document in documents:
        first.post("/encode", document)
    seconds: dict[str, list[float]] = {"bare": [], "redis": [], "process": []}
    for document in documents:
        seconds["bare"].append(second.get("/healthz")[0])
        for tier in ("redis", "process"):
            spent, answer = second.post("/encode", document)
            if answer["latents"][0]["cached"]:
                seconds[tier].append(spent)
    details["encode_ms"] = {tier: _summary(values) for tier, values in seconds.items()}
    details["encode_found"] = {tier: len(values) for tier, values in seconds.items()}
    medians = {tier: 1000 * statistics.median(values) for tier, values in seconds.items()}
    return [
        at_most(
            "/encode, cached in process: time above the bare route, p50",
            medians["process"] - medians["bare"],
            "ms",
            bound=MAX_IN_PROCESS_MS,
        ),
        at_most(
            "/encode, cached in Redis: time above the bare route, p50",
            medians["redis"] - medians["bare"],
            "ms",
            bound=MAX_FROM_REDIS_MS,
        ),
    ]


def _measure_plans(
    what: str,
    client: RestClient,
    images: Iterator[bytes],
    *,
    rounds: int,
    solver: Document,
    details: dict[str, Any],
) -> list[Measurement]:
    """Plans from three frames to a goal, all new or all cached, in turns."""
    card = json.loads(client.get("/models")[1])["models"][0]["card"]
    past_actions = [[0.0] * card["action_dim"]] * (2 * card["action_block"])
    cached_frames = [image_document(next(images)) for _ in range(4)]
    seconds: dict[str, list[float]] = {"uncached": [], "cached": []}
    for number in range(rounds + 1):
        new_frames = [image_document(next(images)) for _ in range(4)]
        for kind, frames in {"uncached": new_frames, "cached": cached_frames}.items():
            document = {
                "frames": frames[:3],
                "past_actions": past_actions,
                "goal": frames[3],
                "solver": solver,
                "seed": number,
            }
            spent, _ = client.post("/plan", document)
            if number:  # the first round puts the frames into the cache
                seconds[kind].append(spent)
    details[f"plan_ms, {what}"] = {kind: _summary(values) for kind, values in seconds.items()}
    pairs = zip(seconds["uncached"], seconds["cached"], strict=True)
    return [
        Measurement(
            f"{what}: /plan, time saved by 3 cached frames and a cached goal, p50",
            1000 * statistics.median(uncached - cached for uncached, cached in pairs),
            "ms",
            note=f"solver {solver}" if solver else "",
        ),
        Measurement(
            f"{what}: /plan, uncached against cached",
            median_ratio(seconds["uncached"], seconds["cached"]),
            "times",
        ),
    ]


def _disturbances(redis: RedisServer) -> list[Disturbance]:
    return [
        Disturbance("frozen", redis.freeze, redis.thaw),
        Disturbance("killed", redis.kill, redis.start),
        Disturbance("full", redis.refuse_writes, redis.accept_writes),
        Disturbance("restarted", redis.restart, None),
        Disturbance("with another password", redis.change_password, redis.restore_password),
    ]


def _measure_disturbance(
    disturbance: Disturbance,
    with_redis: RestClient,
    without_redis: RestClient,
    images: Iterator[bytes],
    *,
    seconds: float,
    details: dict[str, Any],
) -> list[Measurement]:
    """New frames for a server whose Redis is disturbed, and for one that has none, in turns."""
    what = f"Redis {disturbance.name}"
    spent: dict[str, list[float]] = {"with": [], "without": []}
    errors_before = _redis_errors(with_redis)
    disturbance.begin()
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for kind, client in {"with": with_redis, "without": without_redis}.items():
                document = {"frames": [image_document(next(images))]}
                spent[kind].append(client.post("/encode", document)[0])
        was_lost = not _redis_is_up(with_redis)
    finally:
        if disturbance.end is not None:
            disturbance.end()
    back_s = _wait_for_redis(with_redis)
    details[f"encode_ms, {what}"] = {
        kind: _summary(values) | {"requests": len(values)} for kind, values in spent.items()
    }
    details[f"errors, {what}"] = _redis_errors(with_redis) - errors_before
    p99_ms = {kind: 1000 * float(np.percentile(values, 99)) for kind, values in spent.items()}
    measurements = [
        at_most(
            f"{what}: p99 of /encode above that of a server without Redis, new frames",
            p99_ms["with"] - p99_ms["without"],
            "ms",
            bound=REDIS_TIMEOUT_MS,
        )
    ]
    if was_lost:
        measurements.append(
            at_most(f"{what}: server has Redis back after", back_s, "s", bound=MAX_BACK_S)
        )
    return measurements


def _redis_is_up(client: RestClient) -> bool:
    """Whether the server's metrics say that Redis answers."""
    return 'lewm_cache_up{tier="redis"} 1.0' in client.get("/metrics")[1]


def _redis_errors(client: RestClient) -> float:
    """How many failures of Redis the server has counted."""
    name = 'lewm_cache_errors_total{tier="redis"} '
    lines = client.get("/metrics")[1].splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def _wait_for_redis(client: RestClient) -> float:
    """Seconds until the server has noticed that Redis answers."""
    start = time.perf_counter()
    while not _redis_is_up(client):
        if time.perf_counter() > start + RECONNECT_TIMEOUT_S:
            raise RuntimeError("the server does not find Redis")
        time.sleep(0.02)
    return time.perf_counter() - start


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = (round(1000 * float(np.percentile(seconds, at)), 2) for at in (50, 99))
    return {"p50": p50, "p99": p99, "max": round(1000 * max(seconds), 2)}


if __name__ == "__main__":
    run_as_program(measure, __doc__)
