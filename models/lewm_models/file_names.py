"""The order of files whose names have numbers."""

from __future__ import annotations

import re
from pathlib import Path

NaturalKey = tuple[tuple[str | int, ...], str]


def natural_key(path: Path) -> NaturalKey:
    """A sort key: as people count, `2.png` comes before `10.png`."""
    # The parts with odd indices are the numbers, so that text is never compared with a number.
    parts = re.split(r"(\d+)", path.name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), path.name
