"""The cache of latents: its memory, Redis (here a dictionary), and encoding each frame once."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from lewm_serve.engine.batching import MAX_ENCODE_BATCH
from lewm_serve.frames import latent_cache
from lewm_serve.frames.latent_cache import (
    MAX_GROUP_SIZE,
    SENT_WRITES_BURST,
    Allowance,
    LatentCache,
    MemoryTier,
    SingleFlight,
)
from lewm_serve.frames.redis_tier import RedisTier, pack
from lewm_serve.observability.metrics import Metrics
from lewm_serve.settings import Settings

LATENT = torch.tensor([1.0, 2.0])
OTHER = torch.tensor([3.0, 4.0])
TTL_S = 10


def test_the_memory_returns_what_was_put() -> None:
    memory = MemoryTier(entries=4, ttl_s=TTL_S)
    memory.put("a", LATENT)
    found = memory.get("a")
    assert found is not None
    assert found.tolist() == [1.0, 2.0]
    assert memory.get("b") is None


def test_the_memory_drops_the_least_recently_used_latent_first() -> None:
    memory = MemoryTier(entries=2, ttl_s=TTL_S)
    for key in ("a", "b"):
        memory.put(key, torch.zeros(1))
    memory.get("a")
    memory.put("c", torch.zeros(1))
    assert (memory.get("a") is None, memory.get("b") is None, len(memory)) == (False, True, 2)


def test_the_memory_keeps_a_latent_for_its_time_to_live() -> None:
    now = 0.0
    memory = MemoryTier(entries=2, ttl_s=TTL_S, clock=lambda: now)
    memory.put("a", torch.zeros(1))
    now = 9.9
    assert memory.get("a") is not None
    now = 10.0
    assert memory.get("a") is None
    assert len(memory) == 0


def test_one_client_cannot_drop_the_latents_of_others() -> None:
    memory = MemoryTier(entries=40, ttl_s=TTL_S)
    for number in range(5):
        memory.put(f"robot {number}", LATENT, client="robot")
    for number in range(1000):
        memory.put(f"hog {number}", LATENT, client="hog")
    assert all(f"robot {number}" in memory for number in range(5))
    assert [number for number in range(1000) if f"hog {number}" in memory] == list(range(990, 1000))


def test_a_client_that_is_alone_has_all_the_room_until_others_come() -> None:
    memory = MemoryTier(entries=40, ttl_s=TTL_S)
    for number in range(100):
        memory.put(f"hog {number}", LATENT, client="hog")
    assert len(memory) == 40
    memory.put("robot", LATENT, client="robot")
    for number in range(100, 200):
        memory.put(f"hog {number}", LATENT, client="hog")
    assert "robot" in memory
    assert len(memory) == 11


def test_a_latent_stays_in_the_share_of_the_client_that_put_it_first() -> None:
    memory = MemoryTier(entries=8, ttl_s=TTL_S)
    memory.put("shared", LATENT, client="robot")
    for number in range(8):
        memory.put("shared", LATENT, client="hog")
        memory.put(f"hog {number}", LATENT, client="hog")
    assert "shared" in memory


def test_an_allowance_is_used_up_and_fills_again() -> None:
    now = 0.0
    allowance = Allowance(per_second=2.0, burst=3.0, clock=lambda: now)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    now = 0.5
    assert [allowance.take() for _ in range(2)] == [True, False]
    now = 100.0
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]


def test_a_latent_in_memory_does_not_keep_its_batch_alive() -> None:
    memory = MemoryTier(entries=2, ttl_s=TTL_S)
    batch = torch.zeros(1000, 8)
    memory.put("a", batch[3])
    found = memory.get("a")
    assert found is not None
    assert found.untyped_storage().nbytes() == 8 * 4


class FakeRedis:
    """Stands in for `RedisTier`. ``late`` values are there when they are looked up again."""

    def __init__(self) -> None:
        self.up = True
        self.up_since = 0.0
        self.values: dict[str, bytes] = {}
        self.late: dict[str, bytes] = {}
        self.lookups: list[list[str]] = []
        self.put_keys: list[str] = []

    async def get(self, keys: Sequence[str]) -> list[bytes | None] | None:
        self.lookups.append(list(keys))
        values = [self.values.get(key) for key in keys]
        self.values |= self.late
        return values if self.up else None

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value
        self.put_keys.append(key)


class TwoServers:
    """The caches of two servers with one Redis, and a clock."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.redis = FakeRedis()
        self.metrics = Metrics()
        self.first, self.second = (
            LatentCache(
                MemoryTier(100, TTL_S, clock=lambda: self.now),
                MemoryTier(100, TTL_S, clock=lambda: self.now),
                redis=cast(RedisTier, self.redis),
                metrics=self.metrics,
            )
            for _ in range(2)
        )

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def servers() -> TwoServers:
    return TwoServers()


async def get(cache: LatentCache, *ids: str, version: str = "v1") -> dict[str, list[float]]:
    found = await cache.get(version, ids, 2)
    return {latent_id: latent.tolist() for latent_id, latent in found.items()}


def test_sent_latents_have_a_room_of_their_own(servers: TwoServers) -> None:
    """However many a client makes up, those of frames stay."""
    cache = servers.first
    cache.put("v", "frame", LATENT, client="robot")
    for number in range(1000):
        cache.put_sent("v", f"sent {number}", OTHER, client="hog")
    found = asyncio.run(cache.get("v", ["frame", "sent 999", "sent 0"], width=2))
    assert {name: latent.tolist() for name, latent in found.items() if name != "sent 0"} == {
        "frame": LATENT.tolist(),
        "sent 999": OTHER.tolist(),
    }


def test_sent_latents_reach_redis_at_a_bounded_rate(servers: TwoServers) -> None:
    for number in range(3000):
        servers.first.put_sent("v", f"sent {number}", OTHER, client="hog")
    assert SENT_WRITES_BURST <= len(servers.redis.values) < SENT_WRITES_BURST + 500


async def test_one_server_finds_what_another_put(servers: TwoServers) -> None:
    servers.first.put("v1", "a", LATENT)
    assert await get(servers.second, "a", "b") == {"a": [1, 2]}
    assert len(servers.redis.lookups) == 1  # one round trip
    assert await get(servers.second, "a") == {"a": [1, 2]}
    assert len(servers.redis.lookups) == 1  # from memory this time
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


async def test_models_never_mix(servers: TwoServers) -> None:
    servers.first.put("v1", "a", LATENT)
    servers.first.put("v2", "a", OTHER)
    for cache in (servers.first, servers.second):
        assert await get(cache, "a", version="v1") == {"a": [1, 2]}
        assert await get(cache, "a", version="v2") == {"a": [3, 4]}
        assert await get(cache, "a", version="v3") == {}


KEY = "lewm:latent:v1:a"


@pytest.mark.parametrize(
    "value",
    [b"", b"foreign", pack(KEY, torch.zeros(3)), pack(KEY, LATENT)[:-1], pack("other", LATENT)],
)
async def test_an_invalid_value_is_a_miss_and_is_replaced(
    servers: TwoServers, value: bytes
) -> None:
    servers.first.put("v1", "a", LATENT)
    assert list(servers.redis.values) == [KEY]
    servers.redis.values[KEY] = value
    assert await get(servers.second, "a") == {}
    assert servers.count("lewm_cache_errors_total", tier="redis") == 1
    assert servers.count("lewm_cache_requests_total", tier="redis", result="miss") == 1
    servers.second.put("v1", "a", LATENT)
    assert servers.redis.values[KEY] == pack(KEY, LATENT)


async def test_without_redis_the_memory_still_answers(servers: TwoServers) -> None:
    servers.redis.up = False
    servers.first.put("v1", "a", LATENT)
    assert await get(servers.first, "a", "b") == {"a": [1, 2]}
    assert servers.count("lewm_cache_requests_total", tier="redis", result="unavailable") == 1


async def test_an_issued_id_is_looked_up_once_more(servers: TwoServers) -> None:
    servers.first.put("v1", "a", LATENT)
    servers.redis.values, servers.redis.late = {}, servers.redis.values
    found = await servers.second.get("v1", ["a", "b"], 2, issued=["a", "b"])
    assert {latent_id: latent.tolist() for latent_id, latent in found.items()} == {"a": [1, 2]}
    assert [len(keys) for keys in servers.redis.lookups] == [2, 2]


async def test_an_issued_id_is_not_waited_for_while_redis_is_down(servers: TwoServers) -> None:
    servers.redis.up = False
    assert await servers.first.get("v1", ["a"], 2, issued=["a"]) == {}
    assert len(servers.redis.lookups) == 1


async def test_used_latents_stay_in_redis(servers: TwoServers) -> None:
    servers.first.put("v1", "a", LATENT)
    for _ in range(8):
        servers.now += 0.4 * TTL_S
        assert await get(servers.first, "a") == {"a": [1, 2]}
    # Every second time the latent is older than half of its time to live, and is written again.
    assert len(servers.redis.put_keys) == 1 + 4


async def test_a_redis_that_lost_its_values_gets_them_again(servers: TwoServers) -> None:
    servers.first.put("v1", "a", LATENT)
    servers.redis.values.clear()
    servers.now += 1
    assert await get(servers.second, "a") == {}
    servers.redis.up_since = servers.now
    servers.now += 1
    assert await get(servers.first, "a") == {"a": [1, 2]}
    assert await get(servers.second, "a") == {"a": [1, 2]}


async def test_encoded_latents_are_kept_in_both_tiers(servers: TwoServers) -> None:
    async def encode(ids: Sequence[str]) -> Sequence[Tensor]:
        return [LATENT if latent_id == "a" else OTHER for latent_id in ids]

    latents = await servers.first.get_or_encode("v1", ["b", "a"], encode)
    assert {latent_id: latent.tolist() for latent_id, latent in latents.items()} == {
        "a": [1, 2],
        "b": [3, 4],
    }
    assert await get(servers.first, "a", "b") == await get(servers.second, "a", "b")


async def test_a_cache_without_redis() -> None:
    metrics = Metrics()
    cache = LatentCache.from_settings(Settings(cache_entries=1, redis_url=None), metrics)
    cache.start()
    cache.put("v1", "a", LATENT)
    cache.put("v1", "b", OTHER)
    found = await cache.get("v1", ["a", "b"], 2, issued=["a"])
    assert {latent_id: latent.tolist() for latent_id, latent in found.items()} == {"b": [3, 4]}
    await cache.close()
    assert b'tier="redis"' not in metrics.render()


async def test_a_cache_with_redis_has_the_settings_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created: list[dict[str, Any]] = []
    calls: list[str] = []

    class RecordedTier(RedisTier):
        def __init__(self, url: str, **options: Any) -> None:
            super().__init__(url, **options)
            created.append({"url": url, **options})

        def start(self) -> None:
            calls.append("start")

        async def close(self) -> None:
            calls.append("close")

    monkeypatch.setattr(latent_cache, "RedisTier", RecordedTier)
    metrics = Metrics()
    settings = Settings(
        redis_url="redis://127.0.0.1:1",  # type: ignore[arg-type]
        redis_timeout_ms=20,
        cache_ttl_s=30,
    )
    cache = LatentCache.from_settings(settings, metrics)
    cache.start()
    assert await get(cache, "a") == {}
    await cache.close()
    assert created == [
        {"url": "redis://127.0.0.1:1", "timeout_s": 0.02, "ttl_s": 30, "metrics": metrics}
    ]
    assert calls == ["start", "close"]
    assert b'lewm_cache_requests_total{result="unavailable",tier="redis"} 1.0' in metrics.render()


class FakeEncoder:
    """Encodes a key as its number once its gate is open, keeps the latents, and counts calls."""

    def __init__(self) -> None:
        self.single_flight = SingleFlight()
        self.calls: list[list[str]] = []
        self.latents: dict[str, Tensor] = {}
        self.gate = asyncio.Event()
        self.fails_once = False

    async def encode(self, keys: Sequence[str]) -> Sequence[Tensor]:
        self.calls.append(list(keys))
        await self.gate.wait()
        if self.fails_once:
            self.fails_once = False
            raise ValueError("broken")
        latents = [torch.tensor([float(key)]) for key in keys]
        self.latents |= zip(keys, latents, strict=True)
        return latents

    def request(self, *keys: str) -> asyncio.Task[dict[str, Tensor]]:
        return asyncio.create_task(self.single_flight.run(keys, self.latents.get, self.encode))


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


async def run_tasks(turns: int = 5) -> None:
    """Let every task run until it waits."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_a_frame_is_encoded_once_for_all_who_wait(encoder: FakeEncoder) -> None:
    requests = [encoder.request("1", "2"), encoder.request("2", "3"), encoder.request("3", "1")]
    await run_tasks()
    encoder.gate.set()
    answers = await asyncio.gather(*requests)
    assert sorted(key for keys in encoder.calls for key in keys) == ["1", "2", "3"]
    for answer, keys in zip(answers, ("12", "23", "31"), strict=True):
        assert {key: latent.item() for key, latent in answer.items()} == {k: float(k) for k in keys}


async def test_a_waiting_request_gets_the_latent_that_another_encoded(
    encoder: FakeEncoder,
) -> None:
    """Even if the memory has dropped it in the meantime."""
    requests = [
        asyncio.create_task(encoder.single_flight.run(["1"], lambda _key: None, encoder.encode))
        for _ in range(2)
    ]
    await run_tasks()
    encoder.gate.set()
    answers = await asyncio.gather(*requests)
    assert [answer["1"].item() for answer in answers] == [1, 1]
    assert encoder.calls == [["1"]]


async def test_a_latent_that_is_known_by_now_is_not_encoded(encoder: FakeEncoder) -> None:
    encoder.latents["1"] = torch.tensor([10.0])
    encoder.gate.set()
    answer = await encoder.request("1", "2")
    assert (answer["1"].item(), answer["2"].item()) == (10, 2)
    assert encoder.calls == [["2"]]


async def test_when_the_first_request_goes_away_another_encodes(encoder: FakeEncoder) -> None:
    first, second, third = (encoder.request("1") for _ in range(3))
    await run_tasks()
    first.cancel()
    await run_tasks()
    assert encoder.calls == [["1"], ["1"]]  # once more, for both that are left
    encoder.gate.set()
    assert (await second)["1"].item() == (await third)["1"].item() == 1
    assert first.cancelled()


async def test_a_waiting_request_may_go_away(encoder: FakeEncoder) -> None:
    first, second = encoder.request("1"), encoder.request("1")
    await run_tasks()
    second.cancel()
    await run_tasks()
    encoder.gate.set()
    assert (await first)["1"].item() == 1
    assert encoder.calls == [["1"]]


async def test_a_failure_does_not_spread_to_waiting_requests(encoder: FakeEncoder) -> None:
    encoder.fails_once = True
    first, second = encoder.request("1", "2"), encoder.request("2")
    await run_tasks()
    encoder.gate.set()
    with pytest.raises(ValueError, match="broken"):
        await first
    assert (await second)["2"].item() == 2
    assert encoder.calls == [["1", "2"], ["2"]]


async def test_when_all_fail_no_one_waits_for_ever(encoder: FakeEncoder) -> None:
    async def fail(_: Sequence[str]) -> Sequence[Tensor]:
        await encoder.gate.wait()
        raise ValueError("broken")

    requests = [
        asyncio.create_task(encoder.single_flight.run(["1"], encoder.latents.get, fail))
        for _ in range(3)
    ]
    await run_tasks()
    encoder.gate.set()
    answers = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError] * 3


def test_a_group_of_frames_fits_into_one_batch() -> None:
    """Another request that wants one of the frames waits for the whole group."""
    assert MAX_GROUP_SIZE <= MAX_ENCODE_BATCH


async def test_a_large_request_reserves_only_what_it_encodes(encoder: FakeEncoder) -> None:
    large = encoder.request(*map(str, range(3 * MAX_GROUP_SIZE)))
    await run_tasks()
    small = encoder.request(str(2 * MAX_GROUP_SIZE))
    await run_tasks()
    assert [len(keys) for keys in encoder.calls] == [MAX_GROUP_SIZE, 1]
    encoder.gate.set()
    assert set(await small) == {str(2 * MAX_GROUP_SIZE)}
    assert len(await large) == 3 * MAX_GROUP_SIZE
