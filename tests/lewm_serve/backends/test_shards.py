"""Rows among threads."""

import threading

import pytest

from lewm_serve.backends.shards import Shards
from tests.patience import PATIENCE_S


@pytest.mark.parametrize(
    ("threads", "rows", "sizes"),
    [(1, 100, [100]), (2, 100, [50, 50]), (3, 100, [33, 33, 34]), (4, 17, [8, 9]), (2, 1, [1])],
)
def test_rows_are_cut_by_their_number_alone(threads: int, rows: int, sizes: list[int]) -> None:
    shards = Shards(threads)
    parts = shards.map(lambda part: part, rows)
    assert [part.stop - part.start for part in parts] == sizes
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))


def test_parts_run_at_the_same_time() -> None:
    everyone = threading.Barrier(3)
    Shards(3, smallest=1).map(lambda _part: everyone.wait(PATIENCE_S), 3)


def test_an_error_of_any_part_is_raised() -> None:
    def fail(part: slice) -> None:
        if part.start:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Shards(2).map(fail, 16)
