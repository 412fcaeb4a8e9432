"""What the cache saves, what it costs, and what a failing Redis costs.

Two servers of one model share a Redis; a third has none. The first encodes frames that the second
has then never seen, so that it must fetch each from Redis. What is compared is asked in turns, by
one client over REST, with 224 px JPEG images; the bare route is `GET /healthz`, so that the upload,
its parsing and the naming of the frame count as the cache's.

Redis is hurt in five ways: frozen, killed, full, restarted, given another password. From then on
the second server and the one without Redis are asked for new frames, in turns, for some seconds,
and their p99 compared; then it is healed. The details tell how many errors the server counted.
"""

from __future__ import annotations

import base64
import http.client
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.frames import fresh, jpeg, rendered
from benchmarks.redis_server import RedisServer, redis_server
from benchmarks.report import Figure, Report, at_most
from benchmarks.run import Run
from benchmarks.served import random_folder
from lewm_serve.cli.local_server import HOST, LocalServer, local_server

FRAMES, PLANS, PAPER_PLANS = 200, 60, 10
HURT_S = 6.0
TIMEOUT_MS = 50.0
BACK_S = 5.0
IN_PROCESS_MS, FROM_REDIS_MS = 2.0, 4.0
FEW = {"samples": 64, "iterations": 3, "elites": 8}
"""For the paper's size, whose default search would hide what encoding costs."""

Document = dict[str, Any]


class Client:
    """One connection to a server, which closes what is idle for some seconds."""

    def __init__(self, server: LocalServer) -> None:
        self._connection = http.client.HTTPConnection(HOST, server.http_port, timeout=120)

    def get(self, path: str) -> tuple[float, str]:
        """Seconds until the whole answer, and its text."""
        return self._ask("GET", path, None)

    def post(self, path: str, document: Document) -> tuple[float, Document]:
        """Seconds from the document's bytes to the answer's, and the answer."""
        seconds, text = self._ask("POST", path, json.dumps(document).encode())
        answer: Document = json.loads(text)
        return seconds, answer

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[float, str]:
        headers = {} if body is None else {"content-type": "application/json"}
        start = time.perf_counter()
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        text = response.read()
        seconds = time.perf_counter() - start
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}: {text[:200]!r}")
        return seconds, text.decode()

    def redis_is_up(self) -> bool:
        """What the server's metrics say."""
        return 'lewm_cache_up{tier="redis"} 1.0' in self.get("/metrics")[1]

    def redis_errors(self) -> float:
        """How many failures of Redis the server has counted."""
        name = 'lewm_cache_errors_total{tier="redis"} '
        lines = self.get("/metrics")[1].splitlines()
        return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    def wait_for_redis(self) -> float:
        """Seconds until the server has seen that Redis answers."""
        start = time.perf_counter()
        while not self.redis_is_up():
            if time.perf_counter() > start + 60:
                raise RuntimeError("the server does not find Redis")
            time.sleep(0.02)
        return time.perf_counter() - start


def measure(run: Run) -> Report:
    """See the module."""
    images = fresh([jpeg(picture) for picture in rendered()])
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        run.say("three servers start")
        shared: dict[str, Any] = {"redis_url": redis.url, "redis_timeout_ms": TIMEOUT_MS}
        first, second, alone = (
            stack.enter_context(local_server(**settings)) for settings in (shared, shared, {})
        )
        run.say("one cached frame")
        frames = list(islice(images, 10 if run.quick else FRAMES))
        figures += _encodes(Client(first), Client(second), frames, details)
        run.say("plans of the embedded model")
        plans = 3 if run.quick else PLANS
        figures += _plans("embedded model", Client(alone), images, plans, {}, details)
        run.say("Redis is hurt")
        hurt_s = 1.0 if run.quick else HURT_S
        figures += _hurt(redis, Client(second), Client(alone), images, hurt_s, details)
    run.say("plans of the paper's size")
    preset, plans = ("edge", 2) if run.quick else ("paper", PAPER_PLANS)
    with _random_server(preset) as server:
        figures += _plans("paper size", Client(server), images, plans, FEW, details)
    return Report(tuple(figures), details)


@contextmanager
def _random_server(preset: str) -> Iterator[LocalServer]:
    with random_folder(preset) as folder, local_server(folder) as server:
        yield server


def _image(data: bytes) -> Document:
    return {"image": base64.b64encode(data).decode()}


def _encodes(
    first: Client, second: Client, frames: Sequence[bytes], details: dict[str, Any]
) -> list[Figure]:
    for client in (first, second):
        client.wait_for_redis()
    documents: list[Document] = [{"frames": [_image(frame)]} for frame in frames]
    for document in documents:
        first.post("/encode", document)
    seconds: dict[str, list[float]] = {"bare": [], "redis": [], "process": []}
    for document in documents:
        seconds["bare"].append(second.get("/healthz")[0])
        for tier in ("redis", "process"):
            spent, answer = second.post("/encode", document)
            if answer["latents"][0]["cached"]:
                seconds[tier].append(spent)
    details["encode_ms"] = {tier: _percentiles(values) for tier, values in seconds.items()}
    details["encode_found"] = {tier: len(values) for tier, values in seconds.items()}
    bare = statistics.median(seconds["bare"])
    added = {
        tier: 1000 * (statistics.median(seconds[tier]) - bare) for tier in ("process", "redis")
    }
    return [
        at_most(
            "/encode, cached in process, over the bare route, p50",
            added["process"],
            "ms",
            IN_PROCESS_MS,
        ),
        at_most(
            "/encode, cached in Redis, over the bare route, p50",
            added["redis"],
            "ms",
            FROM_REDIS_MS,
        ),
    ]


def _plans(
    what: str,
    client: Client,
    images: Iterator[bytes],
    rounds: int,
    solver: Document,
    details: dict[str, Any],
) -> list[Figure]:
    """Three frames of history and a goal, all new or all known, in turns."""
    model = json.loads(client.get("/models")[1])["models"][0]["card"]
    past = [[0.0] * model["action_dim"]] * (2 * model["action_block"])
    known = [_image(next(images)) for _ in range(4)]
    seconds: dict[str, list[float]] = {"uncached": [], "cached": []}
    for number in range(rounds + 1):
        new = [_image(next(images)) for _ in range(4)]
        for kind, frames in {"uncached": new, "cached": known}.items():
            spent, _ = client.post(
                "/plan",
                {
                    "frames": frames[:3],
                    "past_actions": past,
                    "goal": frames[3],
                    "solver": solver,
                    "seed": number,
                },
            )
            if number:  # the first round makes the known frames known
                seconds[kind].append(spent)
    details[f"plan_ms, {what}"] = {kind: _percentiles(values) for kind, values in seconds.items()}
    saved = [a - b for a, b in zip(seconds["uncached"], seconds["cached"], strict=True)]
    ratio = [a / b for a, b in zip(seconds["uncached"], seconds["cached"], strict=True)]
    note = f"solver {solver}" if solver else ""
    return [
        Figure(
            f"{what}: /plan, 3 frames and goal cached, saves, p50",
            1000 * statistics.median(saved),
            "ms",
            note=note,
        ),
        Figure(f"{what}: /plan, uncached against cached", statistics.median(ratio), "times"),
    ]


def _hurt(
    redis: RedisServer,
    client: Client,
    alone: Client,
    images: Iterator[bytes],
    seconds: float,
    details: dict[str, Any],
) -> list[Figure]:
    """New frames, to a server whose Redis is hurt and to one that has none."""
    figures: list[Figure] = []
    hurts: dict[str, tuple[Callable[[], None], Callable[[], None] | None]] = {
        "frozen": (redis.freeze, redis.thaw),
        "killed": (redis.kill, redis.start),
        "full": (redis.fill, redis.empty),
        "restarted": (redis.restart, None),
        "with another password": (redis.lock, redis.unlock),
    }
    for what, (hurt, heal) in hurts.items():
        spent: dict[str, list[float]] = {"with": [], "without": []}
        errors = client.redis_errors()
        hurt()
        try:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                for kind, asked in {"with": client, "without": alone}.items():
                    document = {"frames": [_image(next(images))]}
                    spent[kind].append(asked.post("/encode", document)[0])
            lost = not client.redis_is_up()
        finally:
            if heal is not None:
                heal()
        back_s = client.wait_for_redis()
        p99 = {kind: 1000 * float(np.percentile(values, 99)) for kind, values in spent.items()}
        details[f"encode_ms, Redis {what}"] = {
            kind: _percentiles(values) | {"requests": len(values)} for kind, values in spent.items()
        }
        details[f"errors, Redis {what}"] = client.redis_errors() - errors
        figures.append(
            at_most(
                f"Redis {what}: p99 of /encode over a server without, new frames",
                p99["with"] - p99["without"],
                "ms",
                TIMEOUT_MS,
            )
        )
        if lost:
            figures.append(at_most(f"Redis {what}: back after", back_s, "s", BACK_S))
    return figures


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = (round(1000 * float(np.percentile(seconds, at)), 2) for at in (50, 99))
    return {"p50": p50, "p99": p99, "max": round(1000 * max(seconds), 2)}
