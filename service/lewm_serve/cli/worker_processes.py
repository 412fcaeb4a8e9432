"""Processes that work for this one, and end with it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_processes(
    count: int, prepare: Callable[[], None] | None = None
) -> Iterator[ProcessPoolExecutor]:
    """New processes that work for this one, and end with it even if it is killed.

    Each of them first calls ``prepare``. Work that has not begun at the end of the block is
    dropped.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(prepare,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(prepare: Callable[[], None] | None) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()


def _exit_with_parent() -> None:
    """End this process when its parent has ended; a killed parent cannot end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
