"""The shared tier: values in Redis, for every server that uses it.

One task keeps one connection and speaks over it in turns. A turn is one round trip that carries
whatever waits: all requests' keys in one MGET, and new values. A circuit breaker opens when a turn
fails or takes longer than the time-out: who waits is told so, later requests do not ask, and the
task connects anew and closes it again, on nobody's time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lewm_serve.cache.lookup import NameLookup
from lewm_serve.logs import log
from lewm_serve.metrics import Metrics

CONNECT_S = 1.0
PAUSE_S = 0.5
"""How long connecting may take, and closing too, and the pause after it failed; no request waits
for any of these."""
PULSE_S = 1.0
"""How long nothing may be asked: Redis should be seen to fail before a request comes."""
TURN_LOOKUPS = 64
TURN_WRITES = 64
"""Lookups and values in one turn, which should be short: the next lookups wait for it."""
MAX_WAITING = 4096
"""Values that wait to be written; the oldest give way."""
PROBE = "lewm:probe"
"""A key that is asked for in every turn; it need not be there."""

Values = list[bytes | None]


@dataclass(eq=False)
class Lookup:
    """The keys of one request; ``answer`` is None where Redis could not be asked."""

    keys: Sequence[str]
    answer: asyncio.Future[Values | None]


class RedisTier:
    """Get and put values, whatever Redis does. Lives on the event loop.

    ``url`` may hold a password and is never shown. No `get` waits longer than ``timeout_s``.
    Redis keeps a value for ``ttl_s``. ``up_since`` is a reading of ``time.monotonic()``.
    """

    def __init__(self, url: str, timeout_s: float, ttl_s: float, metrics: Metrics) -> None:
        self.up_since = -math.inf
        self._timeout_s = timeout_s
        self._url = url
        self._ttl_ms = max(1, round(1000 * ttl_s))
        self._up = False
        self._trouble = ""
        self._lookups: list[Lookup] = []
        self._writes: dict[str, bytes] = {}
        self._work = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._task: asyncio.Task[None] | None = None
        self._names = NameLookup()
        self._up_gauge = metrics.cache_up.labels("redis")
        self._errors = metrics.cache_errors_total.labels("redis")

    @property
    def up(self) -> bool:
        """Whether Redis answers."""
        return self._up

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what waits, for one time-out at most, and disconnect."""
        if self._task is None:
            return
        if self._up:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._written.wait(), self._timeout_s)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def get(self, keys: Sequence[str]) -> Values | None:
        """The values of keys, each None where there is none; None where Redis does not answer."""
        if not self._up:
            return None
        lookup = Lookup(keys, asyncio.get_running_loop().create_future())
        self._lookups.append(lookup)
        self._work.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await lookup.answer
        except TimeoutError:
            return None

    def put(self, key: str, value: bytes) -> None:
        """Write a value soon; what is put while Redis is away waits for it."""
        self._writes[key] = value
        while len(self._writes) > MAX_WAITING:
            del self._writes[next(iter(self._writes))]
            self._errors.inc()
        self._written.clear()
        self._work.set()

    async def _run(self) -> None:
        while True:
            turns = 0
            client = self._client()
            try:
                await self._prove(client)
                self._rise()
                while True:
                    await self._turn(client)
                    turns += 1
            except Exception as error:
                # redis-py, TLS, sockets and name resolution fail in more ways than they document.
                self._fall(error)
            finally:
                with suppress(Exception):
                    await client.aclose()
            if not turns:
                await asyncio.sleep(PAUSE_S)

    def _client(self) -> Redis:
        # What fails is tried again here, never inside a turn; one round trip less to connect.
        return Redis.from_url(
            self._url,
            protocol=2,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_S,
            socket_timeout=None,
        )

    async def _prove(self, client: Redis) -> None:
        """Connect, which may take a while, and see whether an answer can come in time.

        One answer in time is enough: this machine may stall too. The name is looked up first, since
        to connect is to look it up too, on threads that all share and that cannot be called back.
        """
        async with asyncio.timeout(CONNECT_S):
            address = client.connection_pool.connection_kwargs
            if "path" not in address:
                await self._names.done(address.get("host", "localhost"), address.get("port", 6379))
            late = True
            while late:
                asked = time.monotonic()
                await client.mget([PROBE])
                late = time.monotonic() - asked > self._timeout_s

    async def _turn(self, client: Redis) -> None:
        """Wait for work, not for long, and do it in one round trip."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PULSE_S):
                await self._work.wait()
        self._work.clear()
        lookups, self._lookups = self._lookups[:TURN_LOOKUPS], self._lookups[TURN_LOOKUPS:]
        writes = list(islice(self._writes.items(), TURN_WRITES))
        for key, _ in writes:
            del self._writes[key]
        if self._writes or self._lookups:
            self._work.set()
        try:
            await self._exchange(client, lookups, writes)
        except BaseException:
            _answer(lookups, None)
            raise
        if not self._writes:
            self._written.set()

    async def _exchange(
        self, client: Redis, lookups: list[Lookup], writes: list[tuple[str, bytes]]
    ) -> None:
        lookups = [lookup for lookup in lookups if not lookup.answer.done()]
        pipeline = client.pipeline(transaction=False)
        pipeline.mget([PROBE, *(key for lookup in lookups for key in lookup.keys)])
        for key, value in writes:
            pipeline.set(key, value, px=self._ttl_ms)
        async with asyncio.timeout(self._timeout_s):
            values, *written = await pipeline.execute(raise_on_error=False)
        if isinstance(values, Exception):
            raise values
        _answer(lookups, values[1:])
        refused = [reply for reply in written if isinstance(reply, Exception)]
        if refused:
            # A full Redis refuses to write and still reads.
            self._errors.inc(len(refused))
            self._tell("redis refuses to store latents", refused[0])

    def _rise(self) -> None:
        self._up = True
        self.up_since = time.monotonic()
        self._up_gauge.set(1)
        self._trouble = ""
        self._work.set()
        log.info("redis is up")

    def _fall(self, error: Exception) -> None:
        self._up = False
        self._up_gauge.set(0)
        self._errors.inc()
        lookups, self._lookups = self._lookups, []
        _answer(lookups, None)
        self._tell("redis is down", error)

    def _tell(self, event: str, error: Exception) -> None:
        """Log a kind of trouble once; the kind alone, since a message may repeat a password."""
        trouble = f"{event}: {type(error).__name__}"
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning(event, reason=type(error).__name__)


def _answer(lookups: list[Lookup], values: Values | None) -> None:
    """Give each lookup its share of values."""
    first = 0
    for lookup in lookups:
        last = first + len(lookup.keys)
        if not lookup.answer.done():
            lookup.answer.set_result(None if values is None else values[first:last])
        first = last
