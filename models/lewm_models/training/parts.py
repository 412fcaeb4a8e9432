"""Work in parts: in this process or in several, and resumable after a kill.

A folder that is not complete holds `preparing.json`: what is being prepared, and the parts that are
done.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from lewm_models.training.prepared import replace_json

UNFINISHED = "preparing.json"

Work = Callable[[int], None]
"""Does the part of this number. It can be pickled, so that other processes can do parts."""


def do_parts(work: Work, parts: Sequence[int], *, processes: int, name: str) -> Iterator[int]:
    """Do parts, and yield the number of each that is done.

    Args:
        work: does one part.
        parts: the numbers of the parts.
        processes: with 1, this process does them in order.
        name: what the parts are of, for the error.

    Raises:
        ValueError: a process ended suddenly.
        Exception: whatever ``work`` raises.
    """
    if processes < 2:
        for part in parts:
            work(part)
            yield part
        return
    with ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),  # a fork would inherit the threads' locks
        initializer=_start_process,
        initargs=(work,),
    ) as pool:
        waiting = iter(parts)
        running = {pool.submit(_do_part, part): part for part in islice(waiting, 2 * processes)}
        try:
            while running:
                ready, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    future.result()
                    yield running.pop(future)
                    for part in islice(waiting, 1):
                        running[pool.submit(_do_part, part)] = part
        except BrokenProcessPool as error:
            raise ValueError(
                f"{name}: a process that prepares data ended suddenly; perhaps the memory is "
                "full. The same command continues"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_work: Work
"""What a process of the pool does."""


def _start_process(work: Work) -> None:
    global _work
    _work = work
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its processes."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _do_part(part: int) -> None:
    _work(part)


@dataclass
class PartsDone:
    """The parts that are done, kept in a folder.

    Attributes:
        folder: where the data are.
        made_from: what they are made from.
        numbers: the parts.
        saved: when they were last saved, on the monotonic clock.
    """

    folder: Path
    made_from: Mapping[str, Any]
    numbers: set[int] = field(default_factory=set)
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, folder: Path, made_from: Mapping[str, Any]) -> PartsDone | None:
        """What an interrupted preparation has done; None if no such preparation was begun."""
        try:
            unfinished = json.loads((folder / UNFINISHED).read_text())
            if unfinished["made_from"] != made_from:
                return None
            return cls(folder, made_from, set(unfinished["done"]))
        except (KeyError, OSError, TypeError, ValueError):
            return None

    def save(self) -> None:
        """Write the file. What the parts have written has to be on the disk."""
        content = {"made_from": self.made_from, "done": sorted(self.numbers)}
        replace_json(self.folder / UNFINISHED, content)
        self.saved = time.monotonic()


def forget_parts(folder: Path) -> None:
    """Remove the file, once the data are complete."""
    (folder / UNFINISHED).unlink(missing_ok=True)
