"""The thread that owns the accelerator: it takes the scheduler's turns while there is work."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from lewm_serve.engine.jobs import EncodeJob, Job
from lewm_serve.engine.scheduler import Batch, Scheduler

logger = logging.getLogger(__name__)


RELEASE_AFTER_S = 1.0
"""After gradients were computed and no work came for so long, freed memory is released."""


class EngineStopped(RuntimeError):
    """The engine takes no more work: it was stopped, or its thread ended with an error."""


class Engine:
    """Runs a scheduler on one thread. Any thread may call its methods.

    ``_changed`` protects ``_stopping`` and wakes the thread.

    Attributes:
        failure: done when the thread has ended with an error; only that thread sets it.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.failure: Future[None] = Future()
        self.failure.set_running_or_notify_cancel()  # a caller that waits for it must not cancel it

    @property
    def failed(self) -> bool:
        """Whether the thread has ended with an error."""
        return self.failure.done()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Let submitted work run for at most ``timeout_s``. The rest gets `EngineStopped`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._scheduler.abandon(EngineStopped())

    def submit(self, job: EncodeJob | Job) -> Future[Any]:
        """Add a job. Its future gives the job's result.

        Raises:
            EngineStopped: the engine takes no more work.
        """
        with self._changed:
            if self._stopping or self.failed:
                raise EngineStopped
            self._scheduler.submit(job)
            self._changed.notify()
        return job.future

    @property
    def free_at(self) -> float:
        """See `Scheduler.free_at`."""
        return self._scheduler.free_at

    @property
    def started_plans(self) -> int:
        """See `Scheduler.started_plans`."""
        return self._scheduler.started_plans

    def take_batches(self) -> Iterator[Batch]:
        """The batches that ran since the last call."""
        return self._scheduler.take_batches()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._scheduler.run_turn()
                self._pause()
        except BaseException:
            logger.exception("the engine's thread died")
            with self._changed:
                self.failure.set_result(None)
            self._scheduler.abandon(EngineStopped())

    def _pause(self) -> None:
        """Wait for urgent work, see `Scheduler.pause_s`."""
        with self._changed:
            while (left_s := self._scheduler.pause_s()) > 0 and not self._stopping:
                self._changed.wait(left_s)

    def _wait_for_work(self) -> bool:
        """Sleep until there is work. False if the engine is to stop and no work is left."""

        def may_go_on() -> bool:
            return not self._scheduler.idle or self._stopping

        with self._changed:
            timeout_s = RELEASE_AFTER_S if self._scheduler.used_gradients else None
            is_work = self._changed.wait_for(may_go_on, timeout_s)
        if not is_work:
            self._scheduler.used_gradients = False
            release_freed_memory()
        with self._changed:
            self._changed.wait_for(may_go_on)
            return not self._scheduler.idle


def release_freed_memory() -> None:
    """Return memory that the allocator keeps for later allocations to the system.

    Computing gradients frees gigabytes in small pieces. The allocator would keep most of them.
    """
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "malloc_trim"):  # the GNU C library has it
        allocator.malloc_trim(0)
