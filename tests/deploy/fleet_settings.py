"""What docs/deploy.md proposes for the servers of a fleet."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "deploy.md"


def drain_lag_s() -> float:
    """The proposed drain lag."""
    (value,) = set(re.findall(r"^LEWM_DRAIN_LAG_S=([\d.]+)$", GUIDE.read_text(), re.MULTILINE))
    return float(value)
