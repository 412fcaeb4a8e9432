"""The benchmark of the transports, run briefly: it measures what it says."""

import pytest

from benchmarks.transport import PARTS, WARM_UP, measure

WAYS = {"rest_rendered", "rest_photographs", "grpc_rendered", "grpc_photographs"}


def test_parts_add_up() -> None:
    figures = measure(seconds=0.0, threads=1)
    assert set(figures) == WAYS
    for parts in figures.values():
        assert parts["requests"] == 1  # the one after the warm-up
        assert set(parts) == {"requests", *PARTS}
        p50 = {part: parts[part]["p50"] for part in PARTS}
        assert p50["added"] == pytest.approx(p50["client"] - p50["encode"] - p50["solve"], abs=0.05)
        assert p50["client"] > p50["total"] > p50["solve"] > 0
    assert WARM_UP > 0
