"""One tier over a real Redis that is killed, frozen, filled, locked and slowed down."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from structlog.testing import capture_logs

from lewm_serve.frames.redis_tier import CONNECT_S, MAX_WAITING, PAUSE_S, RedisTier
from lewm_serve.observability.metrics import Metrics
from tests.lewm_serve.support.server_process import ROOT
from tests.lewm_serve.support.redis_process import PASSWORD, RedisProcess
from tests.patience import PATIENCE_S, wait_until

TTL_MS = 3_600_000
TIMEOUT_S = 60.0
QUICK_S = 0.2
"""For tests in which the time-out must pass. A busy machine may let it pass at other times too."""


class Tier:
    """A tier that has been started, and its figures."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.metrics = Metrics()
        self.metrics.show_redis()
        self.tier = RedisTier(url, timeout_s, TTL_MS / 1000, self.metrics)

    @property
    def up(self) -> float | None:
        return self.metrics.registry.get_sample_value("lewm_cache_up", {"tier": "redis"})

    @property
    def errors(self) -> float:
        labels = {"tier": "redis"}
        return self.metrics.registry.get_sample_value("lewm_cache_errors_total", labels) or 0.0

    async def seen(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await asyncio.sleep(0.005)

    async def is_up(self) -> None:
        await self.seen(lambda: self.tier.up and self.up == 1)

    async def is_down(self) -> None:
        await self.seen(lambda: not self.tier.up and self.up == 0)

    async def kept(self, key: str) -> bytes | None:
        """A key's value, once it has been written."""
        async with asyncio.timeout(PATIENCE_S):
            while not (values := await self.tier.get([key])) or values[0] is None:
                await asyncio.sleep(0.005)
            return values[0]

    async def works(self) -> None:
        """It takes a value and gives it back; what a turn that fails has lost is put again."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.tier.get(["a"]) != [b"value"]:
                self.tier.put("a", b"value")
                await asyncio.sleep(0.005)

    def at_once(self, asking: Awaitable[Any]) -> object:
        """What a coroutine gives that waits for nothing at all."""
        with pytest.raises(StopIteration) as ended:
            asking.__await__().send(None)
        return ended.value.value


@asynccontextmanager
async def tier_of(url: str, **options: float) -> AsyncIterator[Tier]:
    tier = Tier(url, **options)
    tier.tier.start()
    try:
        yield tier
    finally:
        await tier.tier.close()


async def hurt(action: Callable[..., None], *args: Any) -> None:
    """Do something to Redis, which takes a while, beside the tier."""
    await asyncio.to_thread(action, *args)


async def test_values_come_back(redis: RedisProcess) -> None:
    async with tier_of(redis.url) as tier:
        assert tier.at_once(tier.tier.get(["a"])) is None  # not connected yet
        await tier.is_up()
        for index in range(200):
            tier.tier.put(f"k{index}", b"%d" % index)
        assert await tier.kept("k199") == b"199"
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


async def test_what_waits_is_written_before_closing(redis: RedisProcess) -> None:
    async with tier_of(redis.url) as tier:
        await tier.is_up()
        for index in range(300):
            tier.tier.put(f"k{index}", b"value")
    assert redis.admin.info("keyspace")["db1"]["keys"] == 300


async def test_killed_and_restarted(redis: RedisProcess) -> None:
    async with tier_of(redis.url) as tier:
        await tier.is_up()
        since = tier.tier.up_since
        redis.kill()
        assert await tier.tier.get(["a"]) is None
        await tier.is_down()
        assert tier.errors >= 1
        tier.tier.put("a", b"made meanwhile")
        await hurt(redis.start)
        await tier.is_up()
        assert tier.tier.up_since > since
        assert await tier.kept("a") == b"made meanwhile"


def test_it_is_tried_again_within_four_seconds() -> None:
    """After an attempt that had just begun when Redis came back, and failed as late as it could.

    Its client is closed then, for which redis-py takes no longer than for connecting.
    """
    attempt_s = closing_s = CONNECT_S
    assert attempt_s + closing_s + PAUSE_S + attempt_s < 4


async def test_absent_at_the_start(redis: RedisProcess) -> None:
    redis.kill()
    async with tier_of(redis.url) as tier:
        await tier.seen(lambda: tier.errors >= 2)
        assert tier.up == 0
        await hurt(redis.start)
        await tier.is_up()


async def test_frozen_only_those_wait_who_asked_before_it_was_seen(redis: RedisProcess) -> None:
    async with tier_of(redis.url, timeout_s=QUICK_S) as tier:
        await tier.is_up()
        redis.freeze()
        try:
            asked = asyncio.gather(*(tier.tier.get([f"k{index}"]) for index in range(50)))
            assert await asked == [None] * 50
            await tier.is_down()
            for _ in range(50):
                assert tier.at_once(tier.tier.get(["a"])) is None
            await tier.seen(lambda: tier.errors >= 2)  # it is tried again, in the background
            assert tier.at_once(tier.tier.get(["a"])) is None
        finally:
            redis.thaw()
        await tier.works()


async def test_frozen_while_nobody_asks(redis: RedisProcess) -> None:
    async with tier_of(redis.url, timeout_s=QUICK_S) as tier:
        await tier.is_up()
        redis.freeze()
        try:
            await tier.is_down()
        finally:
            redis.thaw()
        await tier.is_up()


async def test_full(redis: RedisProcess) -> None:
    with capture_logs() as logs:
        async with tier_of(redis.url) as tier:
            await tier.is_up()
            tier.tier.put("before", b"value")
            assert await tier.kept("before") == b"value"
            redis.fill(True)
            for index in range(100):
                tier.tier.put(f"k{index}", b"value")
            await tier.seen(lambda: tier.errors >= 100)
            assert tier.up == 1
            assert await tier.tier.get(["before", "k0"]) == [b"value", None]
            redis.fill(False)
            tier.tier.put("after", b"value")
            assert await tier.kept("after") == b"value"
    refusals = [line for line in logs if line["event"] == "redis refuses to store latents"]
    assert [line["reason"] for line in refusals] == ["OutOfMemoryError"]


async def test_another_password(redis: RedisProcess) -> None:
    with capture_logs() as logs:
        async with tier_of(redis.url) as tier:
            await tier.is_up()
            await hurt(redis.set_password, "changed")
            await tier.is_down()
            await tier.seen(lambda: tier.errors >= 3)
            assert tier.at_once(tier.tier.get(["a"])) is None
            await hurt(redis.set_password, PASSWORD)
            await tier.is_up()
    reasons = {line["reason"] for line in logs if line["event"] == "redis is down"}
    assert "AuthenticationError" in reasons
    assert PASSWORD not in repr(logs)


async def test_a_message_that_repeats_the_password_is_not_logged() -> None:
    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = await reader.read(1000)
        writer.write(b"-ERR unknown command, with args beginning with: %r\r\n" % heard)
        writer.close()

    server = await asyncio.start_server(repeat, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with capture_logs() as logs:
        async with server, tier_of(f"redis://:{PASSWORD}@127.0.0.1:{port}") as tier:
            await tier.seen(lambda: tier.errors >= 2)
            assert tier.up == 0
    assert "ResponseError" in [line["reason"] for line in logs]
    assert PASSWORD not in repr(logs)


async def test_a_name_service_that_hangs_holds_one_thread(
    redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, asked, let_go = socket.getaddrinfo, count(1), threading.Event()
    lookups = 0

    def hang(*arguments: Any, **options: Any) -> Any:
        nonlocal lookups
        lookups = next(asked)
        assert let_go.wait(PATIENCE_S)
        return look_up(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        async with tier_of(redis.url.replace("127.0.0.1", "localhost")) as tier:
            await tier.seen(lambda: tier.errors >= 3)
            assert lookups == 1
            let_go.set()
            await tier.is_up()
    finally:
        let_go.set()


HANGING = """
import asyncio, socket, threading
from lewm_serve.frames.redis_tier import RedisTier
from lewm_serve.observability.metrics import Metrics

def hang(*_, **__):
    hanging.set()
    threading.Event().wait()

async def main():
    tier = RedisTier("redis://localhost", 1.0, 1.0, Metrics())
    tier.start()
    while not hanging.is_set():
        await asyncio.sleep(0.01)
    await tier.close()

hanging = threading.Event()
socket.getaddrinfo = hang
asyncio.run(main())
"""


def test_a_name_service_that_hangs_keeps_no_server_from_ending() -> None:
    command = [sys.executable, "-c", HANGING]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE_S)


class Line:
    """A way to Redis that holds every answer back for ``delay_s``."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.delay_s = 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._back(far_reader, writer))
        except OSError:
            pass
        finally:
            far_writer.close()
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(self.delay_s)
            writer.write(data)


async def test_slow(redis: RedisProcess) -> None:
    line = Line(redis.port)
    server = await asyncio.start_server(line.carry, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        tier_of(f"redis://:{PASSWORD}@127.0.0.1:{port}/1", timeout_s=QUICK_S) as tier,
    ):
        await tier.is_up()
        line.delay_s = 1.5 * QUICK_S
        assert await tier.tier.get(["a"]) is None
        await tier.is_down()
        before = tier.errors
        await tier.seen(lambda: tier.errors >= before + 2)
        assert tier.at_once(tier.tier.get(["a"])) is None  # it answers, but too late to be of use
        line.delay_s = 0.0
        await tier.works()


async def test_what_waits_is_bounded() -> None:
    tier = Tier("redis://127.0.0.1:1")
    for index in range(MAX_WAITING + 10):
        tier.tier.put(f"k{index}", b"value")
    assert tier.errors == 10
    await tier.tier.close()
