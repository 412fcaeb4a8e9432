"""Rows of numbers that two processes see: values, types, and rows that come back."""

import os

from lewm_serve.engine.queued_request import Client
from lewm_serve.engine.shared_numbers import ROW_NUMBERS, Row, RowTable, SharedNumber


class Example:
    share = SharedNumber(0, float)
    count = SharedNumber(1, int)
    done = SharedNumber(2, bool)

    def __init__(self, row: Row) -> None:
        self.row = row


def test_attributes_keep_their_types() -> None:
    example = Example(Row())
    assert (example.share, example.count, example.done) == (0.0, 0, False)
    example.share, example.count, example.done = 0.1, 2**50, True
    assert (example.share, example.count, example.done) == (0.1, 2**50, True)
    assert (type(example.count), type(example.done)) == (int, bool)


def test_another_process_sees_what_is_written_and_writes_too() -> None:
    table = RowTable(4)
    here = Example(table.take())
    here.count = 7
    assert here.row.index is not None
    pid = os.fork()
    if pid == 0:
        there = Example(table.see(here.row.index))
        there.share = float(there.count)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert here.share == 7.0


def test_a_dropped_row_is_taken_again_last_and_is_clean() -> None:
    table = RowTable(2)
    first, second = table.take(), table.take()
    first.numbers[3] = 5.0
    index = first.index
    del first
    again = table.take()
    assert again.index == index
    assert list(again.numbers) == [0.0] * ROW_NUMBERS
    assert second.index != again.index


def test_without_a_free_row_there_is_a_row_of_this_process_alone() -> None:
    table = RowTable(1)
    only, more = table.take(), table.take()
    assert (only.index, more.index) == (0, None)
    more.numbers[0] = 1.0
    assert only.numbers[0] == 0.0


def test_a_seen_row_does_not_return_when_it_is_dropped() -> None:
    table = RowTable(1)
    row = table.take()
    assert row.index is not None
    seen = table.see(row.index)
    del seen
    assert table.take().index is None


def test_a_client_of_the_engine_counts_for_that_of_admission() -> None:
    client = Client()
    seen = Client.on_row(client.row)
    client.share = 0.25
    seen.observe_use(0.2, best_effort=True)
    assert seen.share == 0.25
    assert client.use > 0.1
    assert client.served_at == seen.served_at > 0
