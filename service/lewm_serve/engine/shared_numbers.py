"""Numbers that the event loop and an engine both see, without a lock and without messages.

Each number has one writer. The numbers are aligned, so a reader sees a number as it was before or
after a change, never a mixture. Numbers that belong together may be read while only some of them
have changed; whatever uses them tolerates that.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import Any, Generic, TypeVar, overload

NumberT = TypeVar("NumberT", float, int, bool)

ROW_NUMBERS = 8
"""Numbers of one row."""

NUMBER_BYTES = 8
ROW_BYTES = ROW_NUMBERS * NUMBER_BYTES


class Row:
    """Eight float64 numbers, all 0 at first. A row of a table returns to it when it is dropped.

    Attributes:
        numbers: the numbers.
        index: which row of its table it is; None: it belongs to none, and only this process sees
            it.
    """

    __slots__ = ("_table", "index", "numbers")

    def __init__(self, table: RowTable | None = None, index: int | None = None) -> None:
        if table is None or index is None:
            self.numbers = memoryview(bytearray(ROW_BYTES)).cast("d")
        else:
            self.numbers = table.numbers[ROW_NUMBERS * index : ROW_NUMBERS * (index + 1)]
        self._table = table
        self.index = index

    def clear(self) -> None:
        """Set all numbers to 0."""
        for index in range(ROW_NUMBERS):
            self.numbers[index] = 0.0

    def __del__(self) -> None:
        if self._table is not None and self.index is not None:
            self._table.put_back(self.index)


class RowTable:
    """Rows in memory that a process shares with those that it forks.

    Only the process that hands out rows (the one with the event loop) calls `take`. The others
    `see` the rows whose index they are told.

    Args:
        rows: how many there are. Memory that no row has used costs nothing.
    """

    def __init__(self, rows: int) -> None:
        self.numbers = memoryview(mmap.mmap(-1, rows * ROW_BYTES)).cast("d")
        self._unused = deque(range(rows))

    def take(self) -> Row:
        """A row that nothing else uses, all 0. Without one, a row that only this process sees."""
        if not self._unused:
            return Row()
        row = Row(self, self._unused.popleft())
        row.clear()
        return row

    def put_back(self, index: int) -> None:
        """Let a row be taken again: the one that was free for longest comes first."""
        self._unused.append(index)

    def see(self, index: int) -> Row:
        """A row that another process has taken."""
        row = Row()
        row.index = index
        row.numbers = self.numbers[ROW_NUMBERS * index : ROW_NUMBERS * (index + 1)]
        return row


class SharedNumber(Generic[NumberT]):
    """An attribute that is a number of the object's ``row``."""

    def __init__(self, index: int, number_type: type[NumberT]) -> None:
        self._index = index
        self._type: Any = number_type

    @overload
    def __get__(self, instance: None, owner: type) -> SharedNumber[NumberT]: ...

    @overload
    def __get__(self, instance: Any, owner: type) -> NumberT: ...

    def __get__(self, instance: Any, owner: type) -> SharedNumber[NumberT] | NumberT:
        if instance is None:
            return self
        number: NumberT = self._type(instance.row.numbers[self._index])
        return number

    def __set__(self, instance: Any, value: NumberT) -> None:
        instance.row.numbers[self._index] = value
