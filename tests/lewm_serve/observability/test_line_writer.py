"""Lines are written by a thread: no reader blocks the caller, and what is lost is counted."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lewm_serve.observability.logging import MAX_PENDING_BYTES, LineWriter
from tests.patience import PATIENCE_S, wait_until

LINE = "x" * 1023 + "\n"


@dataclass
class Pipe:
    """Both ends of a pipe, and a writer."""

    reader: int
    descriptor: int
    writer: LineWriter

    def read_all(self) -> bytes:
        """What was written, until now."""
        self.writer.flush(PATIENCE_S)
        return os.read(self.reader, 1 << 20)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    reader, descriptor = os.pipe()
    yield Pipe(reader, descriptor, LineWriter(descriptor))
    os.close(reader)


def test_lines_arrive_whole_and_in_order(pipe: Pipe) -> None:
    def write(name: str) -> None:
        for number in range(100):
            pipe.writer.write(f"{name} {number}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = pipe.read_all().decode().splitlines()
    for name in "abc":
        own = [line for line in lines if line.startswith(name)]
        assert own == [f"{name} {number}" for number in range(100)]
    assert (len(lines), pipe.writer.dropped) == (300, 0)


def test_a_reader_that_does_not_read_costs_lines_and_no_time(pipe: Pipe) -> None:
    """The queue is full after four thousand lines. All others are dropped and counted."""
    for _ in range(10_000):
        pipe.writer.write(LINE)
    dropped = pipe.writer.dropped
    held = MAX_PENDING_BYTES // len(LINE)
    assert 10_000 - held - 200 < dropped <= 10_000 - held  # a pipe holds 64 lines
    started = time.monotonic()
    pipe.writer.flush(0.1)
    assert time.monotonic() - started < PATIENCE_S / 2
    received = 0
    while received < (10_000 - dropped) * len(LINE):
        received += len(os.read(pipe.reader, 1 << 20))
    pipe.writer.write("after\n")
    assert pipe.read_all() == b"after\n"
    assert pipe.writer.dropped == dropped


def test_the_lines_of_a_dead_reader_are_counted_and_the_next_reader_gets_the_next_lines(
    tmp_path: Path,
) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = LineWriter(os.open(path, os.O_WRONLY))
    os.close(reader)
    for _ in range(3):
        writer.write("lost\n")
    writer.flush(PATIENCE_S)
    assert writer.dropped == 3
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.write("found\n")
    writer.flush(PATIENCE_S)
    assert os.read(reader, 1 << 16) == b"found\n"
    os.close(reader)


def test_a_full_disk() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(descriptor)
    writer.write("one\ntwo\n")
    writer.flush(PATIENCE_S)
    assert writer.dropped == 2


def test_a_line_that_an_error_has_cut_does_not_spoil_the_next(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    attempts: list[int] = []

    def fail_in_the_middle(descriptor: int, data: bytes) -> int:
        if descriptor != pipe.descriptor:
            return write(descriptor, data)
        attempts.append(len(data))
        if len(attempts) == 1:
            return write(descriptor, data[:6])
        if len(attempts) == 2:
            raise OSError("no space left")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", fail_in_the_middle)
    pipe.writer.write("one\ntwo\nthree\n")
    pipe.writer.flush(PATIENCE_S)
    pipe.writer.write("four\n")
    assert pipe.read_all() == b"one\ntw\nfour\n"
    assert pipe.writer.dropped == 2


def test_a_non_blocking_descriptor_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.descriptor, False)
    for _ in range(1000):
        pipe.writer.write(LINE)
    received = b""
    while len(received) < 1000 * len(LINE):
        received += os.read(pipe.reader, 1 << 16)
    assert received == LINE.encode() * 1000
    assert pipe.writer.dropped == 0


def test_text_that_is_not_unicode_is_escaped(pipe: Pipe) -> None:
    pipe.writer.write("\udce4 ä\n")
    assert pipe.read_all().decode() == "\\udce4 ä\n"


def test_a_line_that_is_too_long_for_the_queue_is_dropped(pipe: Pipe) -> None:
    pipe.writer.write("x" * MAX_PENDING_BYTES + "\n")
    pipe.writer.write("short\n")
    wait_until(lambda: pipe.writer.dropped == 1)
    assert pipe.read_all() == b"short\n"
