"""Latents as bytes, and the tier over a real Redis that is killed, frozen, filled or slow."""

import asyncio
import math
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from lewm_serve.frames.redis_tier import (
    CONNECT_TIMEOUT_S,
    MAX_WAITING_WRITES,
    RECONNECT_PAUSE_S,
    VALUE_HEADER,
    VALUE_MAGIC,
    InvalidCacheValue,
    RedisTier,
    pack,
    unpack,
)
from lewm_serve.observability.metrics import Metrics
from tests.lewm_serve.support.redis_process import PASSWORD, RedisProcess
from tests.lewm_serve.support.server_process import ROOT
from tests.patience import PATIENCE_S, wait_until

TTL_MS = 3_600_000
TIMEOUT_S = 60.0
SHORT_TIMEOUT_S = 0.2
"""For tests in which the time-out must pass. On a busy machine it may pass at other times too."""

LATENT = torch.tensor([0.5, -1.25, 3e-7])


def test_a_latent_has_the_same_bits_after_a_round_trip() -> None:
    assert torch.equal(unpack("k", pack("k", LATENT), 3), LATENT)
    assert len(pack("k", LATENT)) == VALUE_HEADER.size + 12


def test_the_layout_is_little_endian_float32() -> None:
    assert pack("k", torch.tensor([1.0]))[-4:] == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize("width", [0, 2, 4])
def test_a_latent_of_another_width_is_refused(width: int) -> None:
    with pytest.raises(InvalidCacheValue):
        unpack("k", pack("k", LATENT), width)


def test_the_latent_of_another_key_is_refused() -> None:
    with pytest.raises(InvalidCacheValue):
        unpack("k", pack("other", LATENT), 3)


@pytest.mark.parametrize("index", range(VALUE_HEADER.size + 12))
def test_one_changed_byte_is_detected(index: int) -> None:
    value = bytearray(pack("k", LATENT))
    value[index] ^= 1
    with pytest.raises(InvalidCacheValue):
        unpack("k", bytes(value), 3)


@given(st.binary(max_size=40))
def test_other_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidCacheValue):
        unpack("k", value, 3)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3e38, -1.01e4])
def test_values_that_are_not_finite_or_too_large_are_refused(number: float) -> None:
    with pytest.raises(InvalidCacheValue, match="finite"):
        unpack("k", pack("k", torch.tensor([0.0, number])), 2)


def test_fewer_bytes_than_the_header_announces_are_refused() -> None:
    data = bytes(8)
    header = VALUE_HEADER.pack(VALUE_MAGIC, 3, zlib.crc32(data, zlib.crc32(b"k")))
    with pytest.raises(InvalidCacheValue, match="8 bytes"):
        unpack("k", header + data, 3)


class StartedTier:
    """A tier and its metrics."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.metrics = Metrics()
        self.metrics.add_redis_tier()
        self.tier = RedisTier(url, timeout_s=timeout_s, ttl_s=TTL_MS / 1000, metrics=self.metrics)

    @property
    def up(self) -> float | None:
        return self.metrics.registry.get_sample_value("lewm_cache_up", {"tier": "redis"})

    @property
    def errors(self) -> float:
        labels = {"tier": "redis"}
        return self.metrics.registry.get_sample_value("lewm_cache_errors_total", labels) or 0.0

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def wait_up(self) -> None:
        await self.wait_until(lambda: self.tier.up and self.up == 1)

    async def wait_down(self) -> None:
        await self.wait_until(lambda: not self.tier.up and self.up == 0)

    async def wait_written(self, key: str) -> bytes | None:
        """The value of a key, once it has been written."""
        async with asyncio.timeout(PATIENCE_S):
            while not (values := await self.tier.get([key])) or values[0] is None:
                await asyncio.sleep(0.005)
            return values[0]

    async def wait_working(self) -> None:
        """Put a value until it is found. A round trip that fails loses what it should write."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.tier.get(["a"]) != [b"value"]:
                self.tier.put("a", b"value")
                await asyncio.sleep(0.005)

    def get_at_once(self, key: str) -> object:
        """The result of `get`, which must not wait."""
        lookup: Awaitable[Any] = self.tier.get([key])
        with pytest.raises(StopIteration) as ended:
            lookup.__await__().send(None)
        return ended.value.value


@asynccontextmanager
async def started_tier(url: str, **options: float) -> AsyncIterator[StartedTier]:
    tier = StartedTier(url, **options)
    tier.tier.start()
    try:
        yield tier
    finally:
        await tier.tier.close()


async def test_values_are_found_again(redis: RedisProcess) -> None:
    async with started_tier(redis.url) as tier:
        assert tier.get_at_once("a") is None  # not connected yet
        await tier.wait_up()
        for index in range(200):
            tier.tier.put(f"k{index}", b"%d" % index)
        assert await tier.wait_written("k199") == b"199"
        calls = redis.admin.info("commandstats")["cmdstat_mget"]["calls"]
        keys = [f"k{index}" for index in range(100, 300)]
        values = await tier.tier.get(keys)
        assert values == [b"%d" % index for index in range(100, 200)] + [None] * 100
        assert redis.admin.info("commandstats")["cmdstat_mget"]["calls"] - calls < 10
        many = await asyncio.gather(*(tier.tier.get([f"k{i}", "x"]) for i in range(200)))
        assert many == [[b"%d" % index, None] for index in range(200)]
        assert tier.errors == 0
    stored = redis.admin.info("keyspace")["db1"]
    assert stored["keys"] == stored["expires"] == 200
    assert stored["avg_ttl"] <= TTL_MS
    # Nothing is left behind.
    wait_until(lambda: redis.admin.info("clients")["connected_clients"] == 1)


async def test_waiting_values_are_written_before_closing(redis: RedisProcess) -> None:
    async with started_tier(redis.url) as tier:
        await tier.wait_up()
        for index in range(300):
            tier.tier.put(f"k{index}", b"value")
    assert redis.admin.info("keyspace")["db1"]["keys"] == 300


async def test_a_redis_that_is_killed_and_restarted(redis: RedisProcess) -> None:
    async with started_tier(redis.url) as tier:
        await tier.wait_up()
        since = tier.tier.up_since
        redis.kill()
        assert await tier.tier.get(["a"]) is None
        await tier.wait_down()
        assert tier.errors >= 1
        tier.tier.put("a", b"put meanwhile")
        await asyncio.to_thread(redis.start)
        await tier.wait_up()
        assert tier.tier.up_since > since
        assert await tier.wait_written("a") == b"put meanwhile"


def test_a_redis_that_is_back_is_used_within_four_seconds() -> None:
    """In the worst case an attempt has just started when Redis comes back, and fails by time-out.

    Then its client is closed, for which redis-py takes no longer than for connecting.
    """
    attempt_s = closing_s = CONNECT_TIMEOUT_S
    assert attempt_s + closing_s + RECONNECT_PAUSE_S + attempt_s < 4


async def test_a_redis_that_starts_later(redis: RedisProcess) -> None:
    redis.kill()
    async with started_tier(redis.url) as tier:
        await tier.wait_until(lambda: tier.errors >= 2)
        assert tier.up == 0
        await asyncio.to_thread(redis.start)
        await tier.wait_up()


async def test_a_frozen_redis_holds_up_only_lookups_before_the_time_out(
    redis: RedisProcess,
) -> None:
    async with started_tier(redis.url, timeout_s=SHORT_TIMEOUT_S) as tier:
        await tier.wait_up()
        redis.freeze()
        try:
            lookups = asyncio.gather(*(tier.tier.get([f"k{index}"]) for index in range(50)))
            assert await lookups == [None] * 50
            await tier.wait_down()
            for _ in range(50):
                assert tier.get_at_once("a") is None
            await tier.wait_until(lambda: tier.errors >= 2)  # it reconnects in the background
            assert tier.get_at_once("a") is None
        finally:
            redis.thaw()
        await tier.wait_working()


async def test_a_redis_that_freezes_without_lookups(redis: RedisProcess) -> None:
    async with started_tier(redis.url, timeout_s=SHORT_TIMEOUT_S) as tier:
        await tier.wait_up()
        redis.freeze()
        try:
            await tier.wait_down()
        finally:
            redis.thaw()
        await tier.wait_up()


async def test_a_full_redis_is_read_but_not_written(redis: RedisProcess) -> None:
    with capture_logs() as logs:
        async with started_tier(redis.url) as tier:
            await tier.wait_up()
            tier.tier.put("before", b"value")
            assert await tier.wait_written("before") == b"value"
            redis.set_full(True)
            for index in range(100):
                tier.tier.put(f"k{index}", b"value")
            await tier.wait_until(lambda: tier.errors >= 100)
            assert tier.up == 1
            assert await tier.tier.get(["before", "k0"]) == [b"value", None]
            redis.set_full(False)
            tier.tier.put("after", b"value")
            assert await tier.wait_written("after") == b"value"
    refusals = [line for line in logs if line["event"] == "redis refuses to store latents"]
    assert [line["reason"] for line in refusals] == ["OutOfMemoryError"]


async def test_a_redis_whose_password_changes(redis: RedisProcess) -> None:
    with capture_logs() as logs:
        async with started_tier(redis.url) as tier:
            await tier.wait_up()
            await asyncio.to_thread(redis.set_password, "changed")
            await tier.wait_down()
            await tier.wait_until(lambda: tier.errors >= 3)
            assert tier.get_at_once("a") is None
            await asyncio.to_thread(redis.set_password, PASSWORD)
            await tier.wait_up()
    reasons = {line["reason"] for line in logs if line["event"] == "redis is down"}
    assert "AuthenticationError" in reasons
    assert PASSWORD not in repr(logs)


async def test_an_error_that_repeats_the_password_is_not_logged() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await reader.read(1000)
        writer.write(b"-ERR unknown command, with args beginning with: %r\r\n" % received)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with capture_logs() as logs:
        async with server, started_tier(f"redis://:{PASSWORD}@127.0.0.1:{port}") as tier:
            await tier.wait_until(lambda: tier.errors >= 2)
            assert tier.up == 0
    assert "ResponseError" in [line["reason"] for line in logs]
    assert PASSWORD not in repr(logs)


async def test_a_name_service_that_hangs_takes_one_thread(
    redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    getaddrinfo, release = socket.getaddrinfo, threading.Event()
    lookups = 0

    def hang(*arguments: Any, **options: Any) -> Any:
        nonlocal lookups
        lookups += 1
        assert release.wait(PATIENCE_S)
        return getaddrinfo(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        async with started_tier(redis.url.replace("127.0.0.1", "localhost")) as tier:
            await tier.wait_until(lambda: tier.errors >= 3)
            assert lookups == 1
            release.set()
            await tier.wait_up()
    finally:
        release.set()


async def test_a_host_that_cannot_be_resolved_is_tried_again(
    redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    getaddrinfo, is_known = socket.getaddrinfo, threading.Event()

    def resolve(*arguments: Any, **options: Any) -> Any:
        if not is_known.is_set():
            raise socket.gaierror("unknown host")
        return getaddrinfo(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with capture_logs() as logs:
        async with started_tier(redis.url.replace("127.0.0.1", "localhost")) as tier:
            await tier.wait_until(lambda: tier.errors >= 2)
            is_known.set()
            await tier.wait_up()
    assert [line["reason"] for line in logs if line["event"] == "redis is down"] == ["gaierror"]


async def test_a_redis_behind_a_unix_socket(redis: RedisProcess, tmp_path: Path) -> None:
    connection, path = SlowConnection(redis.port), tmp_path / "redis.sock"
    server = await asyncio.start_unix_server(connection.carry, path)
    async with server, started_tier(f"unix://:{PASSWORD}@{path}?db=1") as tier:
        await tier.wait_working()


async def test_a_redis_that_refuses_to_read_is_down() -> None:
    """As for a user who may read the probe only."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(1000):
            is_probe = request.startswith(b"*2\r\n")  # MGET with one key
            writer.write(b"*1\r\n$-1\r\n" if is_probe else b"-NOPERM no permission\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with capture_logs() as logs:
        async with server, started_tier(f"redis://127.0.0.1:{port}") as tier:
            await tier.wait_up()
            assert await tier.tier.get(["a"]) is None
            await tier.wait_until(lambda: tier.errors == 1)
            await tier.wait_up()  # the probe still works
    (line,) = (line for line in logs if line["event"] == "redis is down")
    assert line["reason"] == "NoPermissionError"


HANGING_NAME_SERVICE = """
import asyncio, socket, threading
from lewm_serve.frames.redis_tier import RedisTier
from lewm_serve.observability.metrics import Metrics

def hang(*_, **__):
    hanging.set()
    threading.Event().wait()

async def main():
    tier = RedisTier("redis://localhost", timeout_s=1.0, ttl_s=1.0, metrics=Metrics())
    tier.start()
    while not hanging.is_set():
        await asyncio.sleep(0.01)
    await tier.close()

hanging = threading.Event()
socket.getaddrinfo = hang
asyncio.run(main())
"""


def test_a_name_service_that_hangs_does_not_keep_the_process_alive() -> None:
    command = [sys.executable, "-c", HANGING_NAME_SERVICE]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE_S)


class SlowConnection:
    """A proxy of Redis that delays every answer by ``delay_s``."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.delay_s = 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await asyncio.gather(
                self._forward_requests(reader, redis_writer),
                self._forward_answers(redis_reader, writer),
            )
        except OSError:
            pass
        finally:
            redis_writer.close()
            writer.close()

    async def _forward_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def _forward_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(self.delay_s)
            writer.write(data)


async def test_a_redis_that_answers_too_late(redis: RedisProcess) -> None:
    connection = SlowConnection(redis.port)
    server = await asyncio.start_server(connection.carry, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        started_tier(f"redis://:{PASSWORD}@127.0.0.1:{port}/1", timeout_s=SHORT_TIMEOUT_S) as tier,
    ):
        await tier.wait_up()
        connection.delay_s = 1.5 * SHORT_TIMEOUT_S
        assert await tier.tier.get(["a"]) is None
        await tier.wait_down()
        before = tier.errors
        await tier.wait_until(lambda: tier.errors >= before + 2)
        assert tier.get_at_once("a") is None  # it answers, but too late
        connection.delay_s = 0.0
        await tier.wait_working()


async def test_waiting_values_are_bounded() -> None:
    tier = StartedTier("redis://127.0.0.1:1")
    for index in range(MAX_WAITING_WRITES + 10):
        tier.tier.put(f"k{index}", b"value")
    assert tier.errors == 10
    await tier.tier.close()
