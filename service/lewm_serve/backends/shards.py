"""Rows split among threads: each takes one part from the beginning to the end.

Threads that share each operation wait for each other after each of them; here they meet once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SMALLEST = 8
"""Rows below which another thread is not worth waking."""


class Shards:
    """A caller's thread and ``threads`` − 1 others, which end with it."""

    def __init__(self, threads: int, smallest: int = SMALLEST) -> None:
        self.threads = threads
        self._smallest = smallest
        self._pool = ThreadPoolExecutor(threads - 1, "shard") if threads > 1 else None

    def map(self, function: Callable[[slice], T], rows: int) -> list[T]:
        """What a function gives for contiguous parts, cut by the number of rows alone."""
        count = max(1, min(self.threads, rows // self._smallest))
        cuts = [rows * index // count for index in range(count + 1)]
        parts = [slice(*pair) for pair in itertools.pairwise(cuts)]
        if self._pool is None:
            return [function(parts[0])]
        others = [self._pool.submit(function, part) for part in parts[1:]]
        return [function(parts[0]), *(other.result() for other in others)]
