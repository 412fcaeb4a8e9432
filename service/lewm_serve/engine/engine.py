"""The thread that owns the accelerator: takes the scheduler's turns while there is work."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from lewm_serve.backends.backend import Backend
from lewm_serve.engine.encodes import EncodeJob
from lewm_serve.engine.jobs import Job
from lewm_serve.engine.pace import Pace
from lewm_serve.engine.scheduler import Scheduler

logger = logging.getLogger(__name__)


class EngineStopped(RuntimeError):
    """The engine takes no work any more: it was stopped, or its thread died."""


class Engine:
    """Runs a scheduler on one thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.failed = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Finish what was submitted, for ``timeout_s`` at most; the rest gets `EngineStopped`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._scheduler.abandon(EngineStopped())

    def encode(self, backend: Backend, pace: Pace, frames: Tensor) -> Future[Tensor]:
        """Frames (N, size, size, 3) uint8 → a future of latents (N, D).

        Raises:
            EngineStopped: the engine takes no work.
        """
        job = EncodeJob(backend, pace, frames)
        self._submit(job)
        return job.future

    def submit(self, job: Job) -> Future[Any]:
        """Queue a job; its future is answered with `Job.result`. Raises as `encode` does."""
        self._submit(job)
        return job.future

    def _submit(self, job: EncodeJob | Job) -> None:
        with self._changed:
            if self._stopping or self.failed:
                raise EngineStopped
            self._scheduler.submit(job)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait():
                self._scheduler.turn()
        except BaseException:
            logger.exception("the engine's thread died")
            with self._changed:
                self.failed = True
            self._scheduler.abandon(EngineStopped())

    def _wait(self) -> bool:
        """Sleep until there is work; False when asked to stop and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._scheduler.idle or self._stopping)
            return not self._scheduler.idle
