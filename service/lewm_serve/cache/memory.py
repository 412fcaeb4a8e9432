"""The in-process tier: the newest latents, for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor


class MemoryCache:
    """At most ``entries`` latents, least recently used dropped first, each for ``ttl_s`` seconds.

    Used from one thread (the event loop). A key names a model's version as well as the frame, so
    that a latent of another model is never found.
    """

    def __init__(
        self, entries: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._entries = entries
        self._ttl_s = ttl_s
        self._clock = clock
        self._latents: OrderedDict[str, tuple[float, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._latents)

    def get(self, key: str) -> Tensor | None:
        """The latent (D,), or None when it was never there, is too old or was dropped."""
        entry = self._latents.get(key)
        if entry is None:
            return None
        put, latent = entry
        if put + self._ttl_s <= self._clock():
            del self._latents[key]
            return None
        self._latents.move_to_end(key)
        return latent

    def is_fresh(self, key: str, since: float) -> bool:
        """Whether a latent was put in the younger half of its time, and after ``since``."""
        entry = self._latents.get(key)
        return entry is not None and entry[0] > max(since, self._clock() - self._ttl_s / 2)

    def put(self, key: str, latent: Tensor) -> None:
        """Keep a latent (D,), copied so that no batch is kept alive by one of its rows."""
        self._latents[key] = (self._clock(), latent.to(torch.float32).clone())
        self._latents.move_to_end(key)
        while len(self._latents) > self._entries:
            self._latents.popitem(last=False)
