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


@pytest.mark.parametrize("begin", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("seconds", [1.0, 1.3, 1.6])
def test_batches_are_counted_whole(begin: float, seconds: float) -> None:
    moments = [0.5 * batch + 0.001 * frame for batch in range(10) for frame in range(32)]
    assert encode_throughput.rate(moments, begin, begin + seconds) == pytest.approx(64)


def test_nothing_answered_in_time_is_no_rate() -> None:
    assert encode_throughput.rate([0.5, 3.0], 1.0, 2.0) == 0
