"""The benchmark of encodes, run briefly."""

import pytest

from benchmarks import encode_throughput


def test_the_ratio_is_that_of_the_two_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_throughput, "BACKEND_SECONDS", 0.1)
    monkeypatch.setattr(encode_throughput, "WARM_UP_SECONDS", 0.1)
    # On a busy machine no client may be answered within a second.
    tries = (encode_throughput.measure_rates("edge", seconds) for seconds in (1.0, 8.0, 64.0))
    rates = next(rates for rates in tries if rates["served_per_s"])
    assert rates["clients"] == 64
    assert rates["best_batch"] in encode_throughput.BATCH_SIZES
    assert rates["ratio"] == pytest.approx(
        rates["served_per_s"] / rates["alone_per_s"], rel=0.05, abs=0.001
    )


@pytest.mark.parametrize("begin", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("seconds", [1.0, 1.3, 1.6])
def test_whole_batches_are_counted(begin: float, seconds: float) -> None:
    answers = [0.5 * batch + 0.001 * frame for batch in range(10) for frame in range(32)]
    rate = encode_throughput.answer_rate(answers, begin, begin + seconds)
    assert rate == pytest.approx(64)


def test_without_answers_in_time_the_rate_is_0() -> None:
    assert encode_throughput.answer_rate([0.5, 3.0], 1.0, 2.0) == 0
