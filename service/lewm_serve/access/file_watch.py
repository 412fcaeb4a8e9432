"""Files that are read again when they change: the keys, and the certificates of both ports."""

from __future__ import annotations

import os
import time
from pathlib import Path

READ_AGAIN_S = 1.0
"""How often the files are looked at for changes, if somebody asks."""


class FileWatch:
    """Says when one of some files has changed. Only one thread at a time may use it.

    Make it before the files are read, so that no change between is missed.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._versions = self._current_versions()
        self._look_at = time.monotonic() + READ_AGAIN_S

    def has_changed(self) -> bool:
        """Whether a file has changed since the last change that this reported, or the start."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + READ_AGAIN_S
        before, self._versions = self._versions, self._current_versions()
        return self._versions != before

    def _current_versions(self) -> list[tuple[int, ...]]:
        return [_version(path) for path in self._paths]


def _version(path: Path) -> tuple[int, ...]:
    """What changes with a file's content or rights; empty without a file."""
    try:
        status = os.stat(path)  # noqa: PTH116  (this is called once a second)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode
