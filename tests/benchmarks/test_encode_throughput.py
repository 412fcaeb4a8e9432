"""The benchmark of encodes, run briefly: it measures what it says."""

import pytest

from benchmarks import encode_throughput


def test_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_throughput, "ALONE_S", 0.1)
    monkeypatch.setattr(encode_throughput, "WARM_UP_S", 0.1)
    # A busy machine may answer none of the clients in a second.
    served_s = (1.0, 8.0, 64.0)
    tried = (encode_throughput.measure("edge", seconds) for seconds in served_s)
    figures = next(figures for figures in tried if figures["served_per_s"])
    assert figures["clients"] == 64
    assert figures["best_batch"] in encode_throughput.BATCHES
    assert figures["ratio"] == pytest.approx(
        figures["served_per_s"] / figures["alone_per_s"], rel=0.05, abs=0.001
    )
