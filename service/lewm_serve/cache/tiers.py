"""The cache as requests see it: the process's memory first, then Redis, and nothing made twice."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Sequence

from torch import Tensor

from lewm_serve.cache.flights import Flights
from lewm_serve.cache.memory import MemoryCache
from lewm_serve.cache.redis import RedisTier
from lewm_serve.cache.value import ForeignValue, pack, unpack
from lewm_serve.metrics import Metrics
from lewm_serve.settings import Settings

LATE_S = 0.05
"""How far one server's write may be behind its answer before another calls the name unknown."""

Encode = Callable[[Sequence[str]], Awaitable[Sequence[Tensor]]]


class LatentCache:
    """Latents (D,) by a model's version and their name, so that models never mix.

    Lives on the event loop. Neither Redis nor what it holds ever fails a request.
    """

    def __init__(self, memory: MemoryCache, redis: RedisTier | None, metrics: Metrics) -> None:
        self._memory = memory
        self._redis = redis
        self._flights = Flights()
        self._requests = metrics.cache_requests_total
        self._errors = metrics.cache_errors_total

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> LatentCache:
        """The tiers that the settings name."""
        memory, redis = MemoryCache(settings.cache_entries, settings.cache_ttl_s), None
        if settings.redis_url is not None:
            metrics.show_redis()
            url, timeout_s = settings.redis_url.get_secret_value(), settings.redis_timeout_ms / 1000
            redis = RedisTier(url, timeout_s, settings.cache_ttl_s, metrics)
        return cls(memory, redis, metrics)

    def start(self) -> None:
        """Begin to connect to Redis; nobody waits for it."""
        if self._redis is not None:
            self._redis.start()

    async def close(self) -> None:
        """Write what waits to be written, briefly, and disconnect."""
        if self._redis is not None:
            await self._redis.close()

    async def get(
        self, version: str, names: Sequence[str], width: int, promised: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """What is known of these names, in one round trip to Redis.

        ``promised`` are names that some server gave to a client. Its write may be a moment behind
        its answer, so Redis is asked for them once more before they count as unknown: the only case
        in which a request waits for more than one time-out.
        """
        found: dict[str, Tensor] = {}
        for name in names:
            latent = self._memory.get(_key(version, name))
            self._requests.labels("memory", "miss" if latent is None else "hit").inc()
            if latent is not None:
                found[name] = latent
        found |= await self._shared(version, [name for name in names if name not in found], width)
        late = [name for name in promised if name not in found]
        if late and self._redis is not None and self._redis.up:
            await asyncio.sleep(LATE_S)
            found |= await self._shared(version, late, width)
        for name, latent in found.items():
            self.put(version, name, latent)
        return found

    async def _shared(self, version: str, names: Sequence[str], width: int) -> dict[str, Tensor]:
        """What Redis knows."""
        if self._redis is None or not names:
            return {}
        values = await self._redis.get([_key(version, name) for name in names])
        if values is None:
            self._requests.labels("redis", "unavailable").inc(len(names))
            return {}
        found: dict[str, Tensor] = {}
        for name, value in zip(names, values, strict=True):
            if value is not None:
                try:
                    found[name] = unpack(value, width)
                except ForeignValue:
                    self._errors.labels("redis").inc()
            self._requests.labels("redis", "hit" if name in found else "miss").inc()
        return found

    async def make(self, version: str, names: Sequence[str], encode: Encode) -> dict[str, Tensor]:
        """Latents of names that `get` did not know, each encoded by one of those who want it.

        ``encode`` turns names into latents in their order; what it raises is raised here.
        """
        name_of = {_key(version, name): name for name in names}

        async def encode_and_keep(keys: Sequence[str]) -> Sequence[Tensor]:
            mine = [name_of[key] for key in keys]
            latents = await encode(mine)
            for name, latent in zip(mine, latents, strict=True):
                self.put(version, name, latent)
            return latents

        made = await self._flights.run(list(name_of), self._memory.get, encode_and_keep)
        return {name_of[key]: latent for key, latent in made.items()}

    def put(self, version: str, name: str, latent: Tensor) -> None:
        """Keep a latent in every tier; Redis gets it in the background.

        What is used stays: a latent that has been kept for half of its time, or since before
        Redis was last connected, is kept anew. So what one server knows, the others know too, even
        if Redis has dropped it meanwhile.
        """
        key = _key(version, name)
        since = -math.inf if self._redis is None else self._redis.up_since
        if not self._memory.is_fresh(key, since):
            self._memory.put(key, latent)
            if self._redis is not None:
                self._redis.put(key, pack(latent))


def _key(version: str, name: str) -> str:
    return f"lewm:latent:{version}:{name}"
