"""Waiting for what must happen: no test knows how fast the machine is, or what else runs on it."""

import time
from collections.abc import Callable

PATIENCE_S = 300.0
"""Bounds what would otherwise hang. A test that passes never gets near it."""

POLL_S = 0.02


def wait_until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Return once the condition holds; `AssertionError` when patience ends."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(POLL_S)
