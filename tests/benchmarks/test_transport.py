"""The benchmark of the transports, run briefly."""

import pytest

from benchmarks.transport import PARTS, WARM_UP_REQUESTS, measure_parts

KINDS = {"rest_rendered", "rest_photographs", "grpc_rendered", "grpc_photographs"}


def test_parts_add_up() -> None:
    results = measure_parts(seconds=0.0, threads=1)
    assert set(results) == KINDS
    for parts in results.values():
        assert parts["requests"] == 1  # the one after the warm-up
        assert set(parts) == {"requests", *PARTS}
        p50 = {part: parts[part]["p50"] for part in PARTS}
        assert p50["added"] == pytest.approx(p50["client"] - p50["encode"] - p50["solve"], abs=0.05)
        assert p50["client"] > p50["total"] > p50["solve"] > 0
    assert WARM_UP_REQUESTS > 0
