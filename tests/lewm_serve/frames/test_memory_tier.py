"""The in-process cache under a clock of the test's own."""

import torch

from lewm_serve.frames.latent_cache import MemoryTier


def test_it_gives_back_what_was_put() -> None:
    cache = MemoryTier(entries=4, ttl_s=10)
    cache.put("a", torch.tensor([1.0, 2.0]))
    found = cache.get("a")
    assert found is not None
    assert found.tolist() == [1.0, 2.0]
    assert cache.get("b") is None


def test_the_least_recently_used_goes_first() -> None:
    cache = MemoryTier(entries=2, ttl_s=10)
    for key in ("a", "b"):
        cache.put(key, torch.zeros(1))
    cache.get("a")
    cache.put("c", torch.zeros(1))
    assert (cache.get("a") is None, cache.get("b") is None, len(cache)) == (False, True, 2)


def test_a_latent_is_kept_for_its_time_and_no_longer() -> None:
    now = 0.0
    cache = MemoryTier(entries=2, ttl_s=10, clock=lambda: now)
    cache.put("a", torch.zeros(1))
    now = 9.9
    assert cache.get("a") is not None
    now = 10.0
    assert cache.get("a") is None
    assert len(cache) == 0


def test_a_row_does_not_keep_its_batch_alive() -> None:
    cache = MemoryTier(entries=2, ttl_s=10)
    batch = torch.zeros(1000, 8)
    cache.put("a", batch[3])
    found = cache.get("a")
    assert found is not None
    assert found.untyped_storage().nbytes() == 8 * 4
