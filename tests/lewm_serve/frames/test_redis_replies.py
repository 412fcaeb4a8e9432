"""Replies that no Redis gives: from a proxy, a failing shard, or a server of another kind.

They count as misses and errors, open the circuit breaker, and fail no request.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from lewm_serve.frames.redis_tier import pack
from tests.lewm_serve.support.frames import LATENT_DIM, pixels
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.scripted_redis import (
    Reply,
    ScriptedRedis,
    array,
    bulk,
    scripted_redis,
)
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import wait_until

NESTED = b"*1\r\n" * 5000 + b":1\r\n"
HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def redis() -> Iterator[ScriptedRedis]:
    with scripted_redis() as redis:
        yield redis


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, redis: ScriptedRedis
) -> Iterator[ServerProcess]:
    flags = ("--models", str(model_folder), "--redis-timeout-ms", "2000")
    folder = tmp_path_factory.mktemp("server") / "log"
    with ServerProcess(folder, *flags, LEWM_REDIS_URL=redis.url) as server:
        yield server.wait_ready()
        assert server.stop() == 0
        assert "Traceback" not in server.errors()


@pytest.fixture
def connected(server: ServerProcess, redis: ScriptedRedis) -> Iterator[ServerProcess]:
    """The server, with Redis up and as it should be."""
    redis.replies = {}
    wait_until(lambda: is_up(server), "connected")
    yield server
    redis.replies = {}


def is_up(server: ServerProcess) -> bool:
    return server.metric('lewm_cache_up{tier="redis"}') == 1


def errors(server: ServerProcess) -> float:
    return server.metric('lewm_cache_errors_total{tier="redis"}')


def misses(server: ServerProcess) -> float:
    return server.metric('lewm_cache_requests_total{result="miss",tier="redis"}')


class NewFrames:
    """Frames that no server has seen."""

    seed = 100

    def __call__(self) -> dict[str, Any]:
        self.seed += 1
        return pixels(self.seed)


new_frame = NewFrames()


def plan_succeeds(server: ServerProcess) -> None:
    frames = new_frame(), new_frame()
    answer = httpx.post(f"{server.url}/plan", json=plan(frames=[frames[0]], goal=frames[1]))
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "completed"
    assert np.isfinite(answer.json()["cost"])


def one_item(item: bytes) -> Reply:
    """The right number of items, one of them wrong."""
    return lambda command: array(*[bulk(None)] * (len(command) - 2), item)


MGET_REPLIES: dict[str, Reply] = {
    "an error": one_item(b"-ERR shard down\r\n"),
    "an integer": one_item(b":7\r\n"),
    "a list": one_item(array(bulk(b"x"))),
    "a status": lambda command: b"+OK\r\n",
    "too few": lambda command: array(*[bulk(None)] * (len(command) - 2)),
    "too many": lambda command: array(*[bulk(None)] * len(command)),
    "empty": lambda _: b"*0\r\n",
    "null": lambda _: b"*-1\r\n",
    "null bulk": lambda _: b"$-1\r\n",
    "bulk": lambda command: bulk(b"x" * (len(command) - 1)),
    "number": lambda _: b":3\r\n",
    "map": lambda _: b"%1\r\n+a\r\n:1\r\n",
    "error": lambda _: b"-ERR unknown command\r\n",
    "nested": lambda _: NESTED,
    "http": lambda _: HTTP_ANSWER,
    "garbage": lambda _: bytes(range(256)) + b"\r\n",
    "bad length": lambda _: b"*x\r\n",
    "negative length": lambda _: b"$-7\r\n",
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("name", MGET_REPLIES)
def test_a_plan_is_answered_whatever_redis_replies(
    connected: ServerProcess, redis: ScriptedRedis, name: str
) -> None:
    before = errors(connected)
    redis.replies["MGET"] = MGET_REPLIES[name]
    plan_succeeds(connected)
    wait_until(lambda: errors(connected) > before, "counted as an error")
    wait_until(lambda: not is_up(connected), "the circuit breaker is open")
    plan_succeeds(connected)
    redis.replies = {}
    wait_until(lambda: is_up(connected), "Redis is used again")


@pytest.mark.parametrize("name", ["an error", "too few", "null", "bulk", "number"])
def test_a_reply_of_another_form_counts_as_misses(
    connected: ServerProcess, redis: ScriptedRedis, name: str
) -> None:
    def reply(command: list[bytes]) -> bytes:
        # Only lookups get it: the breaker must not open before the request.
        return MGET_REPLIES[name](command) if len(command) > 2 else redis.mget(command)

    before = misses(connected)
    redis.replies["MGET"] = reply  # type: ignore[assignment]
    plan_succeeds(connected)
    assert misses(connected) == before + 2


@pytest.mark.parametrize(
    "value",
    [np.nan, np.inf, 3e38, -3e38, None],
    ids=["NaN", "inf", "3e38", "-3e38", "noise"],
)
def test_a_stored_latent_that_cannot_be_used_is_a_miss_and_replaced(
    connected: ServerProcess, redis: ScriptedRedis, value: float | None
) -> None:
    before, missed = errors(connected), misses(connected)

    def stored(key: bytes) -> bytes:
        right = pack(key.decode(), torch.full((LATENT_DIM,), value or 0.0))
        return right if value is not None else bytes(reversed(right))

    def reply(command: list[bytes]) -> bytes:
        return array(bulk(None), *(bulk(stored(key)) for key in command[2:]))

    redis.replies["MGET"] = reply  # type: ignore[assignment]
    plan_succeeds(connected)
    assert errors(connected) == before + 2
    assert misses(connected) == missed + 2
    assert is_up(connected)


@pytest.mark.parametrize(
    "reply", [b":1\r\n", b"$-1\r\n", b"*0\r\n", b"+QUEUED\r\n", b"-OOM\r\n", b"*1\r\n:1\r\n"]
)
def test_a_reply_to_a_write_that_is_not_ok_counts_as_an_error(
    connected: ServerProcess, redis: ScriptedRedis, reply: bytes
) -> None:
    before = errors(connected)
    redis.replies["SET"] = lambda _: reply
    plan_succeeds(connected)
    wait_until(lambda: errors(connected) > before, "counted as an error")
    plan_succeeds(connected)


@pytest.mark.parametrize("command", ["AUTH", "SELECT", "MGET"])
@pytest.mark.parametrize("reply", [b":1\r\n", b"*-1\r\n", NESTED, HTTP_ANSWER])
def test_odd_replies_while_connecting(
    connected: ServerProcess, redis: ScriptedRedis, command: str, reply: bytes
) -> None:
    redis.replies["MGET"] = lambda _: b"*-1\r\n"
    plan_succeeds(connected)
    wait_until(lambda: not is_up(connected), "the circuit breaker is open")
    redis.replies = {command: lambda _: reply}
    plan_succeeds(connected)


def test_the_reply_to_another_question_is_not_taken(
    connected: ServerProcess, redis: ScriptedRedis
) -> None:
    """A proxy that mixes up replies must not give a frame the latent of another frame."""
    other = pack("lewm:latent:0:0", torch.ones(LATENT_DIM))
    redis.replies["MGET"] = lambda command: array(bulk(None), *[bulk(other) for _ in command[2:]])
    frame = new_frame()
    answer = httpx.post(f"{connected.url}/encode", json={"frames": [frame]}).json()
    assert answer["latents"][0]["cached"] is False
    assert answer["latents"][0]["latent"] != [1.0] * LATENT_DIM
