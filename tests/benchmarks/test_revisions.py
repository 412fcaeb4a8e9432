"""The comparison of two checkouts: differences in answers, and the arithmetic of its timings."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report import Target
from benchmarks.revisions import answers
from benchmarks.revisions.answers import ask_all, compare_answers, differing_fields, flatten
from benchmarks.revisions.timings import PairedTimes, alternate, markdown_table
from lewm_serve.cli.local_server import LocalServer, LocalServerError

MAX_RATIO = Target("at most", 1.03)


def test_fields_get_dotted_names_and_timing_is_left_out() -> None:
    response = {
        "request_id": "a",
        "timing_ms": {"total": 1.0},
        "health": {"status": "ok", "surprise": None},
        "latents": ({"cached": False}, {"cached": True}),
        "actions": [[1.0]],
    }
    assert flatten(response) == {
        "health.status": "ok",
        "health.surprise": None,
        "latents[0].cached": False,
        "latents[1].cached": True,
        "actions": [[1.0]],
    }


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"cost": 1.0}, {"cost": 1.0}, []),
        ({"cost": float("nan")}, {"cost": float("nan")}, []),
        ({"cost": 1.0}, {"cost": np.nextafter(1.0, 2)}, ["cost was 1.0, is"]),
        ({"cost": 0.0}, {"cost": -0.0}, ["cost was 0.0, is -0.0"]),
        ({"status": "completed"}, {"status": "converged"}, ["status was 'completed'"]),
        ({"seed": 1}, {"cost": 1.0}, ["seed is only in the old", "cost is only in the new"]),
        ({"actions": np.zeros(3)}, {"actions": np.zeros(3)}, []),
        ({"actions": np.zeros(3)}, {"actions": -np.zeros(3)}, ["actions differs by up to 0"]),
        ({"actions": np.zeros(3)}, {"actions": np.ones(3)}, ["actions differs by up to 1"]),
        ({"actions": np.zeros(3)}, {"actions": np.zeros(2)}, ["actions was (3,) float64, is (2,)"]),
    ],
)
def test_differences_are_found_to_the_last_bit(
    old: dict[str, object], new: dict[str, object], expected: list[str]
) -> None:
    found = list(differing_fields(old, new))
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def test_a_server_answers_all_requests_and_repeats_its_answers(quick_server: LocalServer) -> None:
    names, first = ask_all(quick_server)
    _, second = ask_all(quick_server)
    assert len(names) == len(first) == len(second)
    assert not [name for name, answer in zip(names, first, strict=True) if "error" in answer]
    differences = {
        difference.partition("[")[0]
        for before, after in zip(first, second, strict=True)
        for difference in differing_fields(before, after)
    }
    # The second time all frames are cached.
    assert differences == {"latents"}


def test_a_backend_that_one_checkout_lacks_is_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_in(*available: str) -> Callable[..., object]:
        class Server:
            def __init__(self, checkout: Path, _flags: object) -> None:
                if str(checkout) not in available:
                    raise LocalServerError("no compiler")

            def __enter__(self) -> None:
                pass

            def __exit__(self, *_error: object) -> None:
                pass

        return Server

    monkeypatch.setattr(answers, "checkout_server", only_in("old"))
    count, differences = compare_answers(Path("old"), Path("new"), "native")
    assert count == 0
    assert differences == ["only one of the two checkouts runs the backend native: no compiler"]
    monkeypatch.setattr(answers, "checkout_server", only_in())
    with pytest.raises(LocalServerError, match="no compiler"):
        compare_answers(Path("old"), Path("new"), "native")


def test_rounds_measure_both_in_random_order_and_the_first_is_not_counted() -> None:
    calls: list[tuple[str, int]] = []

    def measure(revision: str, number: int) -> float:
        calls.append((revision, number))
        return float(number)

    values = alternate(
        {
            "old": lambda number: measure("old", number),
            "new": lambda number: measure("new", number),
        },
        20,
        random.Random(0),
    )
    assert values == {"old": list(map(float, range(1, 21))), "new": list(map(float, range(1, 21)))}
    rounds = [calls[index : index + 2] for index in range(0, len(calls), 2)]
    assert [{number for _, number in pair} for pair in rounds] == [{n} for n in range(21)]
    assert {pair[0][0] for pair in rounds} == {"old", "new"}


def test_the_upper_end_of_the_interval_decides() -> None:
    old = [1.0, 2.0, 4.0, 1.0, 2.0, 4.0]
    same = PairedTimes("plans", old, [1.01 * value for value in old], target=MAX_RATIO)
    assert same.ratio == pytest.approx(1.01)
    assert same.interval == pytest.approx((1.01, 1.01))
    assert same.is_met
    noisy = PairedTimes("plans", old, [1.0, 2.0, 4.0, 1.1, 2.2, 4.4], target=MAX_RATIO)
    assert noisy.interval[1] == pytest.approx(1.1)
    assert not noisy.is_met
    rows = markdown_table([same, noisy]).splitlines()[2:]
    assert rows == [
        "| plans | 6 | 2000 ms | 2020 ms | 1.0100 | 1.0100 to 1.0100 | at most 1.03 | met |",
        "| plans | 6 | 2000 ms | 2100 ms | 1.0500 | 1.0000 to 1.1000 | at most 1.03 | missed |",
    ]
    assert same.to_json()["met"] is True
