"""The cache of latents: the process's memory first, then Redis.

If several requests want the same new frame at the same time, one of them encodes it.

A latent (D,) is kept by its model's version and its `latent_id`, so that models never mix.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from lewm_serve.engine.batching import MAX_ENCODE_BATCH
from lewm_serve.frames.redis_tier import InvalidCacheValue, RedisTier, pack, unpack
from lewm_serve.observability.metrics import Metrics
from lewm_serve.settings import Settings

WRITE_DELAY_S = 0.05
"""Seconds before the second look for a latent of another server. The answer of that server may come
before its write to Redis."""

SENT_SHARE = 8
"""Latents that clients send have room for one in so many entries of the memory, beside these."""

MIN_SENT_ENTRIES = 64
"""Room for latents that clients send, however small the memory is."""

SENT_WRITES_PER_S, SENT_WRITES_BURST = 100.0, 1000.0
"""How many of the latents that clients send are written to Redis."""

CLIENT_SHARE = 4
"""One client's latents take at most one in so many entries."""

MAX_GROUP_SIZE = MAX_ENCODE_BATCH
"""Frames that one request encodes as a group. A request that wants one of them waits for the whole
group, so a group is not larger than one batch of the engine."""

Encode = Callable[[Sequence[str]], Awaitable[Sequence[Tensor]]]


class LatentCache:
    """Looks latents up in memory and Redis. Used only from the event loop.

    Neither a failure of Redis nor what it holds ever fails a request. Latents that clients send are
    kept apart in memory, and reach Redis at a bounded rate: they cost nothing, so a client could
    make up any number of them.
    """

    def __init__(
        self, memory: MemoryTier, sent: MemoryTier, *, redis: RedisTier | None, metrics: Metrics
    ) -> None:
        self._memory = memory
        self._sent = sent
        self._sent_writes = Allowance(SENT_WRITES_PER_S, burst=SENT_WRITES_BURST)
        self._redis = redis
        self._single_flight = SingleFlight()
        self._requests = metrics.cache_requests_total
        self._errors = metrics.cache_errors_total

    @classmethod
    def from_settings(cls, settings: Settings, metrics: Metrics) -> LatentCache:
        """The cache that the settings describe."""
        memory = MemoryTier(settings.cache_entries, settings.cache_ttl_s)
        sent_entries = max(MIN_SENT_ENTRIES, settings.cache_entries // SENT_SHARE)
        sent = MemoryTier(sent_entries, settings.cache_ttl_s)
        redis = None
        if settings.redis_url is not None:
            metrics.add_redis_tier()
            redis = RedisTier(
                settings.redis_url.get_secret_value(),
                timeout_s=settings.redis_timeout_ms / 1000,
                ttl_s=settings.cache_ttl_s,
                metrics=metrics,
            )
        return cls(memory, sent, redis=redis, metrics=metrics)

    def start(self) -> None:
        """Start to connect to Redis in the background."""
        if self._redis is not None:
            self._redis.start()

    async def close(self) -> None:
        """Write what waits to be written, for a short time, and disconnect."""
        if self._redis is not None:
            await self._redis.close()

    async def get(
        self,
        version: str,
        latent_ids: Sequence[str],
        width: int,
        *,
        client: str = "",
        issued: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """The latents that are known, with one round trip to Redis.

        What Redis knows is kept in memory too, in the share of ``client``.
        ``issued`` are those that a server has given to a client. Its write to Redis may be a moment
        behind its answer, so these are looked up once more before they count as unknown. That is
        the only case in which a request waits for more than one time-out of Redis.
        """
        found: dict[str, Tensor] = {}
        for latent_id in latent_ids:
            key = _key(version, latent_id)
            latent = self._memory.get(key)
            if latent is None:
                latent = self._sent.get(key)
            self._requests.labels("memory", "miss" if latent is None else "hit").inc()
            if latent is not None:
                found[latent_id] = latent
        unknown = [latent_id for latent_id in latent_ids if latent_id not in found]
        found |= await self._get_from_redis(version, unknown, width)
        late = [latent_id for latent_id in issued if latent_id not in found]
        if late and self._redis is not None and self._redis.up:
            await asyncio.sleep(WRITE_DELAY_S)
            found |= await self._get_from_redis(version, late, width)
        for latent_id, latent in found.items():
            if _key(version, latent_id) not in self._sent:
                self.put(version, latent_id, latent, client=client)
        return found

    def put_sent(self, version: str, latent_id: str, latent: Tensor, *, client: str) -> None:
        """Keep a latent that a client has sent, in memory and, if the rate allows, in Redis."""
        key = _key(version, latent_id)
        self._keep(self._sent, key, latent, client=client, may_write=self._sent_writes.take)

    async def get_or_encode(
        self, version: str, latent_ids: Sequence[str], encode: Encode, *, client: str = ""
    ) -> dict[str, Tensor]:
        """Latents that `get` did not find. Each is encoded by one of the requests that want it.

        ``encode`` turns ids into latents in their order. Its exceptions are raised here.
        """
        id_of = {_key(version, latent_id): latent_id for latent_id in latent_ids}

        async def encode_and_put(keys: Sequence[str]) -> Sequence[Tensor]:
            ids = [id_of[key] for key in keys]
            latents = await encode(ids)
            for latent_id, latent in zip(ids, latents, strict=True):
                self.put(version, latent_id, latent, client=client)
            return latents

        latents = await self._single_flight.run(list(id_of), self._memory.get, encode_and_put)
        return {id_of[key]: latent for key, latent in latents.items()}

    def put(self, version: str, latent_id: str, latent: Tensor, *, client: str = "") -> None:
        """Keep a latent of a frame in memory, and in Redis in the background.

        A latent that is used stays: it is written again when it is older than half of its time to
        live, or older than the connection to Redis. So Redis gets back what it has lost, and all
        servers can use it.
        """
        key = _key(version, latent_id)
        self._keep(self._memory, key, latent, client=client, may_write=lambda: True)

    def _keep(
        self,
        tier: MemoryTier,
        key: str,
        latent: Tensor,
        *,
        client: str,
        may_write: Callable[[], bool],
    ) -> None:
        """Put a latent that is not fresh into a tier of the memory and, if allowed, into Redis."""
        since = -math.inf if self._redis is None else self._redis.up_since
        if not tier.is_fresh(key, since):
            tier.put(key, latent, client=client)
            if self._redis is not None and may_write():
                self._redis.put(key, pack(key, latent))

    async def _get_from_redis(
        self, version: str, latent_ids: Sequence[str], width: int
    ) -> dict[str, Tensor]:
        if self._redis is None or not latent_ids:
            return {}
        keys = [_key(version, latent_id) for latent_id in latent_ids]
        values = await self._redis.get(keys)
        if values is None:
            self._requests.labels("redis", "unavailable").inc(len(latent_ids))
            return {}
        found: dict[str, Tensor] = {}
        for latent_id, key, value in zip(latent_ids, keys, values, strict=True):
            if value is not None:
                try:
                    found[latent_id] = unpack(key, value, width)
                except InvalidCacheValue:
                    self._errors.labels("redis").inc()
            self._requests.labels("redis", "hit" if latent_id in found else "miss").inc()
        return found


class MemoryTier:
    """At most ``entries`` latents, the least recently used dropped first, each for ``ttl_s``.

    If the latents of one client take more than one entry in `CLIENT_SHARE`, the least recently used
    of these is dropped. So one client cannot drop those of all others. Used only from the event
    loop.
    """

    def __init__(
        self, entries: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._entries = entries
        self._ttl_s = ttl_s
        self._clock = clock
        self._max_client_entries = max(1, entries // CLIENT_SHARE)
        self._latents: OrderedDict[str, _Entry] = OrderedDict()
        self._keys_of_client: dict[str, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._latents)

    def __contains__(self, key: str) -> bool:
        return key in self._latents

    def get(self, key: str) -> Tensor | None:
        """The latent (D,); None if it was never there, has expired or was dropped."""
        entry = self._latents.get(key)
        if entry is None:
            return None
        if entry.put_at + self._ttl_s <= self._clock():
            self._drop(key)
            return None
        self._latents.move_to_end(key)
        self._keys_of_client[entry.client].move_to_end(key)
        return entry.latent

    def is_fresh(self, key: str, since: float) -> bool:
        """Whether a latent was put after ``since`` and in the last half of its time to live."""
        entry = self._latents.get(key)
        return entry is not None and entry.put_at > max(since, self._clock() - self._ttl_s / 2)

    def put(self, key: str, latent: Tensor, *, client: str = "") -> None:
        """Keep a latent (D,). It is copied, because a row would keep its whole batch alive.

        A latent that is there already stays in the share of the client that put it first.
        """
        known = self._latents.get(key)
        if known is not None:
            client = known.client
        self._latents[key] = _Entry(self._clock(), latent.to(torch.float32).clone(), client)
        self._latents.move_to_end(key)
        keys = self._keys_of_client.setdefault(client, OrderedDict())
        keys[key] = None
        keys.move_to_end(key)
        if len(keys) > self._max_client_entries and len(self._keys_of_client) > 1:
            # At most two, so that the share of a client that was alone shrinks little by little.
            surplus = len(keys) - self._max_client_entries
            for oldest in list(islice(keys, min(2, surplus))):
                self._drop(oldest)
        while len(self._latents) > self._entries:
            self._drop(next(iter(self._latents)))

    def _drop(self, key: str) -> None:
        entry = self._latents.pop(key)
        keys = self._keys_of_client[entry.client]
        del keys[key]
        if not keys:
            del self._keys_of_client[entry.client]


class _Entry(NamedTuple):
    put_at: float
    latent: Tensor
    client: str


class Allowance:
    """Allows ``per_second`` actions, and up to ``burst`` at once after a quiet time."""

    def __init__(
        self, per_second: float, *, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._left, self._updated_at = burst, clock()

    def take(self) -> bool:
        """Whether one more action is allowed now. If so, it counts."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._updated_at) * self._per_second)
        self._updated_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class SingleFlight:
    """Encodes each latent once for all requests that want it at the same time.

    The first request that wants a key encodes it, and the others wait for it. If the first request
    fails or its client disconnects, one of the others encodes the key anew, so no request fails
    because of another. Used only from the event loop.
    """

    def __init__(self) -> None:
        self._in_progress: dict[str, asyncio.Future[Tensor | None]] = {}

    async def run(
        self, keys: Sequence[str], find: Callable[[str], Tensor | None], encode: Encode
    ) -> dict[str, Tensor]:
        """The latents of all keys: found, encoded by other requests, or encoded here.

        ``find`` looks where other requests leave their latents. ``encode`` turns at most
        `MAX_GROUP_SIZE` keys into latents in their order; its exceptions are raised here.
        """
        latents: dict[str, Tensor] = {}
        while missing := [key for key in keys if key not in latents]:
            for key in missing:
                latent = find(key)
                if latent is not None:
                    latents[key] = latent
            missing = [key for key in missing if key not in latents]
            unclaimed = [key for key in missing if key not in self._in_progress]
            if unclaimed:
                latents |= await self._encode(unclaimed[:MAX_GROUP_SIZE], encode)
            elif missing:
                latents |= await self._wait_for(missing[0])
        return latents

    async def _encode(self, keys: Sequence[str], encode: Encode) -> dict[str, Tensor]:
        loop = asyncio.get_running_loop()
        futures = {key: loop.create_future() for key in keys}
        self._in_progress |= futures
        latents: dict[str, Tensor] = {}
        try:
            latents |= zip(keys, await encode(keys), strict=True)
            return latents
        finally:
            for key, future in futures.items():
                del self._in_progress[key]
                future.set_result(latents.get(key))

    async def _wait_for(self, key: str) -> dict[str, Tensor]:
        """The latent that another request encodes; empty if that request failed."""
        future = self._in_progress[key]
        await asyncio.wait({future})  # does not cancel the future if this request is cancelled
        latent = future.result()
        return {} if latent is None else {key: latent}


def _key(version: str, latent_id: str) -> str:
    return f"lewm:latent:{version}:{latent_id}"
