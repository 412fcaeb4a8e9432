"""Memory first, then Redis, here a dictionary."""

import time
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from lewm_serve.frames.latent_cache import LatentCache, MemoryTier
from lewm_serve.frames.redis_tier import RedisTier, pack
from lewm_serve.observability.metrics import Metrics

LATENT = torch.tensor([1.0, 2.0])
OTHER = torch.tensor([3.0, 4.0])


class Shared:
    """Stands in for `RedisTier`; ``late`` values are only there when asked for again."""

    def __init__(self) -> None:
        self.up = True
        self.up_since = 0.0
        self.values: dict[str, bytes] = {}
        self.late: dict[str, bytes] = {}
        self.asked: list[list[str]] = []
        self.put_keys: list[str] = []

    async def get(self, keys: Sequence[str]) -> list[bytes | None] | None:
        self.asked.append(list(keys))
        values = [self.values.get(key) for key in keys]
        self.values |= self.late
        return values if self.up else None

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value
        self.put_keys.append(key)


class Servers:
    """Two servers' caches over one shared tier, and a clock."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.shared = Shared()
        self.metrics = Metrics()
        self.first, self.second = (
            LatentCache(
                MemoryTier(100, 10, clock=lambda: self.now),
                cast(RedisTier, self.shared),
                self.metrics,
            )
            for _ in range(2)
        )

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def servers() -> Servers:
    return Servers()


async def get(cache: LatentCache, *names: str, version: str = "v1") -> dict[str, list[float]]:
    found = await cache.get(version, names, 2)
    return {name: latent.tolist() for name, latent in found.items()}


async def test_what_one_puts_the_other_finds(servers: Servers) -> None:
    servers.first.put("v1", "a", LATENT)
    assert await get(servers.second, "a", "b") == {"a": [1, 2]}
    assert len(servers.shared.asked) == 1  # one round trip
    assert await get(servers.second, "a") == {"a": [1, 2]}
    assert len(servers.shared.asked) == 1  # in memory by now
    counts = {
        (tier, result): servers.count("lewm_cache_requests_total", tier=tier, result=result)
        for tier in ("memory", "redis")
        for result in ("hit", "miss")
    }
    assert counts == {
        ("memory", "hit"): 1,
        ("memory", "miss"): 2,
        ("redis", "hit"): 1,
        ("redis", "miss"): 1,
    }


async def test_models_never_mix(servers: Servers) -> None:
    servers.first.put("v1", "a", LATENT)
    servers.first.put("v2", "a", OTHER)
    for cache in (servers.first, servers.second):
        assert await get(cache, "a", version="v1") == {"a": [1, 2]}
        assert await get(cache, "a", version="v2") == {"a": [3, 4]}
        assert await get(cache, "a", version="v3") == {}


@pytest.mark.parametrize("value", [b"", b"foreign", pack(torch.zeros(3)), pack(LATENT)[:-1]])
async def test_a_foreign_value_is_a_miss_and_is_replaced(servers: Servers, value: bytes) -> None:
    servers.first.put("v1", "a", LATENT)
    (key,) = servers.shared.values
    servers.shared.values[key] = value
    assert await get(servers.second, "a") == {}
    assert servers.count("lewm_cache_errors_total", tier="redis") == 1
    assert servers.count("lewm_cache_requests_total", tier="redis", result="miss") == 1
    servers.second.put("v1", "a", LATENT)
    assert servers.shared.values[key] == pack(LATENT)


async def test_without_redis_memory_goes_on(servers: Servers) -> None:
    servers.shared.up = False
    servers.first.put("v1", "a", LATENT)
    assert await get(servers.first, "a", "b") == {"a": [1, 2]}
    assert servers.count("lewm_cache_requests_total", tier="redis", result="unavailable") == 1


async def test_a_promised_name_is_asked_for_again(servers: Servers) -> None:
    servers.first.put("v1", "a", LATENT)
    servers.shared.values, servers.shared.late = {}, servers.shared.values
    found = await servers.second.get("v1", ["a", "b"], 2, promised=["a", "b"])
    assert {name: latent.tolist() for name, latent in found.items()} == {"a": [1, 2]}
    assert [len(keys) for keys in servers.shared.asked] == [2, 2]


async def test_what_is_used_stays(servers: Servers) -> None:
    servers.first.put("v1", "a", LATENT)
    for _ in range(8):
        servers.now += 4
        assert await get(servers.first, "a") == {"a": [1, 2]}
    assert len(servers.shared.put_keys) == 1 + 4  # every second time, half of the ten seconds


async def test_a_redis_that_forgot_is_told_again(servers: Servers) -> None:
    servers.first.put("v1", "a", LATENT)
    servers.shared.values.clear()
    servers.now += 1
    assert await get(servers.second, "a") == {}
    servers.shared.up_since = servers.now
    servers.now += 1
    assert await get(servers.first, "a") == {"a": [1, 2]}
    assert await get(servers.second, "a") == {"a": [1, 2]}


async def test_made_latents_are_kept_in_every_tier(servers: Servers) -> None:
    async def encode(names: Sequence[str]) -> Sequence[Tensor]:
        return [LATENT if name == "a" else OTHER for name in names]

    made = await servers.first.make("v1", ["b", "a"], encode)
    assert {name: latent.tolist() for name, latent in made.items()} == {"a": [1, 2], "b": [3, 4]}
    assert await get(servers.first, "a", "b") == await get(servers.second, "a", "b")
