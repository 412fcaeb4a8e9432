"""Latents in Redis, shared by all servers that use it.

One task owns one connection. It works in round trips: each one carries the keys of all waiting
requests in one MGET, and new values. A round trip that fails or takes longer than the time-out
opens a circuit breaker: waiting requests continue without Redis, later ones do not ask it, and the
task reconnects in the background. No request waits for a connection.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from threading import Thread

import numpy as np
import torch
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from torch import Tensor

from lewm_serve.constants import MAX_LATENT_VALUE
from lewm_serve.observability.logging import log
from lewm_serve.observability.metrics import Metrics

CONNECT_TIMEOUT_S = 1.0
RECONNECT_PAUSE_S = 0.5

IDLE_CHECK_S = 1.0
"""Without requests, one round trip is made this often, so that a failure is usually seen before a
request comes."""

MAX_LOOKUPS_PER_TRIP = 64
MAX_WRITES_PER_TRIP = 64
"""Round trips must be short, because the next lookups wait for them."""

MAX_WAITING_WRITES = 4096
"""Values that wait to be written; beyond this the oldest are dropped."""

PROBE_KEY = "lewm:probe"
"""A key that is read in every round trip. It need not exist."""

VALUE_MAGIC = b"lwm2"
VALUE_HEADER = struct.Struct("<4sII")
"""Magic, width and CRC-32 of the key and the rest, little-endian. float32 values follow,
little-endian. With the key in the CRC, a reply to another question cannot pass as the answer."""

Values = list[bytes | None]


class UnexpectedReply(ValueError):
    """A reply that is not what a Redis sends: from a proxy, a failing shard, or another program."""


class InvalidCacheValue(ValueError):
    """Bytes that are not a latent of the expected width: damaged, or written by something else."""


def pack(key: str, latent: Tensor) -> bytes:
    """A latent (D,) as bytes, to be stored under this key."""
    data = latent.detach().to("cpu", torch.float32).numpy().astype("<f4").tobytes()
    return _header(key, len(latent), data) + data


def unpack(key: str, value: bytes, width: int) -> Tensor:
    """The latent (width,) in the ``value`` of a key.

    Raises:
        InvalidCacheValue: there is none.
    """
    data = value[VALUE_HEADER.size :]
    if value[: VALUE_HEADER.size] != _header(key, width, data):
        raise InvalidCacheValue("the header does not belong to a latent of this key and width")
    if len(data) != 4 * width:
        raise InvalidCacheValue(f"{len(data)} bytes for a latent of width {width}")
    latent = np.frombuffer(data, "<f4").astype(np.float32)
    if not (np.abs(latent) <= MAX_LATENT_VALUE).all():  # NaN is not
        raise InvalidCacheValue(f"values that are not finite, or beyond ±{MAX_LATENT_VALUE:g}")
    return torch.from_numpy(latent)


def _header(key: str, width: int, data: bytes) -> bytes:
    return VALUE_HEADER.pack(VALUE_MAGIC, width, zlib.crc32(data, zlib.crc32(key.encode())))


@dataclass(eq=False)
class Lookup:
    """The keys of one request. ``values`` is set to None if Redis could not be asked."""

    keys: Sequence[str]
    values: asyncio.Future[Values | None]


class RedisTier:
    """Reads and writes values, whatever Redis does. Used only from the event loop.

    Args:
        url: where Redis is. It may hold a password and is never logged.
        timeout_s: the longest time that `get` waits.
        ttl_s: how long Redis keeps a value.
        metrics: the server's metrics.

    Attributes:
        up_since: when Redis was last connected, a reading of `time.monotonic()`.
    """

    def __init__(self, url: str, *, timeout_s: float, ttl_s: float, metrics: Metrics) -> None:
        self.up_since = -math.inf
        self._timeout_s = timeout_s
        self._url = url
        self._ttl_ms = max(1, round(1000 * ttl_s))
        self._up = False
        self._logged_problem = ""
        self._lookups: list[Lookup] = []
        self._writes: dict[str, bytes] = {}
        self._has_work = asyncio.Event()
        self._all_written = asyncio.Event()
        self._all_written.set()
        self._task: asyncio.Task[None] | None = None
        self._host_resolver = HostResolver()
        self._up_gauge = metrics.cache_up.labels("redis")
        self._errors = metrics.cache_errors_total.labels("redis")

    @property
    def up(self) -> bool:
        """Whether Redis answers."""
        return self._up

    def start(self) -> None:
        """Start to connect in the background."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what waits, for at most one time-out, and disconnect."""
        if self._task is None:
            return
        if self._up:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_written.wait(), self._timeout_s)
        self._task.cancel()
        await asyncio.wait({self._task})

    async def get(self, keys: Sequence[str]) -> Values | None:
        """The value of each key, None where there is none. None if Redis does not answer."""
        if not self._up:
            return None
        lookup = Lookup(keys, asyncio.get_running_loop().create_future())
        self._lookups.append(lookup)
        self._has_work.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await lookup.values
        except TimeoutError:
            return None

    def put(self, key: str, value: bytes) -> None:
        """Write a value soon. While Redis is away, values wait for it."""
        self._writes[key] = value
        while len(self._writes) > MAX_WAITING_WRITES:
            del self._writes[next(iter(self._writes))]
            self._errors.inc()
        self._all_written.clear()
        self._has_work.set()

    async def _run(self) -> None:
        while True:
            round_trips = 0
            client = self._make_client()
            try:
                await self._connect(client)
                self._mark_up()
                while True:
                    await self._make_round_trip(client)
                    round_trips += 1
            except Exception as error:
                # redis-py, TLS, sockets and name resolution fail in more ways than they document.
                self._mark_down(error)
            finally:
                with suppress(Exception):
                    await client.aclose()
            if not round_trips:  # do not try again at once after a failed attempt
                await asyncio.sleep(RECONNECT_PAUSE_S)

    def _make_client(self) -> Redis:
        # `_run` reconnects, so a round trip has no retries and `_exchange` has its own time-out.
        # ``protocol`` and ``driver_info`` save one round trip for each connection.
        return Redis.from_url(
            self._url,
            protocol=2,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=None,
        )

    async def _connect(self, client: Redis) -> None:
        """Connect, and ask until Redis answers within the time-out.

        Late answers do not end the attempt, because this machine may be the slow one. The host is
        resolved first, by `HostResolver`. Otherwise redis-py would resolve it on asyncio's default
        threads, which other work shares and which cannot be cancelled.
        """
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            address = client.connection_pool.connection_kwargs
            if "path" not in address:
                host, port = address.get("host", "localhost"), address.get("port", 6379)
                await self._host_resolver.resolve(host, port)
            in_time = False
            while not in_time:
                asked_at = time.monotonic()
                _check_values(await client.mget([PROBE_KEY]), 1)
                in_time = time.monotonic() - asked_at <= self._timeout_s

    async def _make_round_trip(self, client: Redis) -> None:
        """Wait for work, for at most `IDLE_CHECK_S`, and make one round trip."""
        with suppress(TimeoutError):
            async with asyncio.timeout(IDLE_CHECK_S):
                await self._has_work.wait()
        self._has_work.clear()
        lookups = self._lookups[:MAX_LOOKUPS_PER_TRIP]
        self._lookups = self._lookups[MAX_LOOKUPS_PER_TRIP:]
        writes = list(islice(self._writes.items(), MAX_WRITES_PER_TRIP))
        for key, _ in writes:
            del self._writes[key]
        if self._writes or self._lookups:
            self._has_work.set()
        try:
            await self._exchange(client, lookups, writes)
        except BaseException:
            _set_values(lookups, None)
            raise
        if not self._writes:
            self._all_written.set()

    async def _exchange(
        self, client: Redis, lookups: list[Lookup], writes: list[tuple[str, bytes]]
    ) -> None:
        lookups = [lookup for lookup in lookups if not lookup.values.done()]
        keys = [PROBE_KEY, *(key for lookup in lookups for key in lookup.keys)]
        pipeline = client.pipeline(transaction=False)
        pipeline.mget(keys)
        for key, value in writes:
            pipeline.set(key, value, px=self._ttl_ms)
        async with asyncio.timeout(self._timeout_s):
            reply, *write_replies = await pipeline.execute(raise_on_error=False)
        if isinstance(reply, Exception):
            raise reply
        _set_values(lookups, _usable_values(reply, len(keys))[1:])
        _check_values(reply, len(keys))
        refused = [_refusal(reply) for reply in write_replies if reply is not True]
        if refused:
            # A Redis that is full refuses to write, but can still be read.
            self._errors.inc(len(refused))
            self._log_problem("redis refuses to store latents", refused[0])

    def _mark_up(self) -> None:
        self._up = True
        self.up_since = time.monotonic()
        self._up_gauge.set(1)
        self._logged_problem = ""
        self._has_work.set()
        log.info("redis is up")

    def _mark_down(self, error: Exception) -> None:
        self._up = False
        self._up_gauge.set(0)
        self._errors.inc()
        lookups, self._lookups = self._lookups, []
        _set_values(lookups, None)
        self._log_problem("redis is down", error)

    def _log_problem(self, event: str, error: Exception) -> None:
        """Log a problem once. Only the error's type is logged: its text may hold a password."""
        problem = f"{event}: {type(error).__name__}"
        if problem != self._logged_problem:
            self._logged_problem = problem
            log.warning(event, reason=type(error).__name__)


class HostResolver:
    """Resolves a host name on a thread of its own. Used only from the event loop.

    A name service may hang, and a resolution cannot be cancelled. So at most one resolution runs at
    a time, however often it is asked for, and its thread does not keep the process alive.
    """

    def __init__(self) -> None:
        self._resolving: Future[None] | None = None

    async def resolve(self, host: str, port: int) -> None:
        """Wait until the host is resolved, by this call or by one that runs already.

        Raises:
            OSError: the host cannot be resolved.
        """
        if self._resolving is None:
            self._resolving = Future()
            self._resolving.set_running_or_notify_cancel()  # a caller must not cancel it
            thread = Thread(
                target=_resolve,
                args=(host, port, self._resolving),
                name="resolve-host",
                daemon=True,
            )
            thread.start()
        resolving = self._resolving
        try:
            await asyncio.wrap_future(resolving)
        finally:
            if resolving.done():
                self._resolving = None


def _resolve(host: str, port: int, result: Future[None]) -> None:
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except Exception as error:
        result.set_exception(error)
    else:
        result.set_result(None)


def _is_value(item: object) -> bool:
    return item is None or isinstance(item, bytes)


def _usable_values(reply: object, count: int) -> Values:
    """The values in a reply to MGET of ``count`` keys. What is no value is None, a miss."""
    if not isinstance(reply, list) or len(reply) != count:
        return [None] * count
    return [item if _is_value(item) else None for item in reply]


def _check_values(reply: object, count: int) -> None:
    """Refuse a reply to MGET that is not a list of ``count`` values.

    Raises:
        UnexpectedReply: the reply has another form.
    """
    if not isinstance(reply, list) or len(reply) != count or not all(map(_is_value, reply)):
        raise UnexpectedReply(f"expected {count} values, got {type(reply).__name__}")


def _refusal(reply: object) -> Exception:
    """Why Redis did not store a value, from a reply to SET that is not OK."""
    return reply if isinstance(reply, Exception) else UnexpectedReply("expected OK")


def _set_values(lookups: list[Lookup], values: Values | None) -> None:
    """Give each lookup its part of the values."""
    first = 0
    for lookup in lookups:
        last = first + len(lookup.keys)
        if not lookup.values.done():
            lookup.values.set_result(None if values is None else values[first:last])
        first = last
