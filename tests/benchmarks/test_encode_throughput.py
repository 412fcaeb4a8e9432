"""The benchmark of encodes, run briefly: it measures what it says."""

import pytest

from benchmarks import encode_throughput


def test_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_throughput, "ALONE_S", 0.1)
    monkeypatch.setattr(encode_throughput, "WARM_UP_S", 0.1)
    figures = encode_throughput.measure("edge", served_s=1.0)
    assert figures["clients"] == 64
    assert figures["best_batch"] in encode_throughput.BATCHES
    assert figures["served_per_s"] > 0
    assert figures["ratio"] == pytest.approx(
        figures["served_per_s"] / figures["alone_per_s"], rel=0.05
    )
