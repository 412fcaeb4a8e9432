"""The thread that owns the accelerator: batches encodes, runs jobs step by step by urgency."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from torch import Tensor

from service.backends.backend import Backend
from service.engine.encodes import EncodeJob, encode_next
from service.engine.jobs import Job

logger = logging.getLogger(__name__)


class EngineStopped(RuntimeError):
    """The engine takes no work any more: it was stopped, or its thread died."""


class Engine:
    """Runs encodes and jobs on one thread.

    Between two steps of a job, waiting frames are encoded, one batch of them; expired jobs are
    answered with what they have, cancelled ones are dropped, and the most urgent job is chosen
    anew. ``on_batch`` is told "encode" or "rollout", and the rows of each run of the model.
    """

    def __init__(self, on_batch: Callable[[str, int], None] = lambda _kind, _rows: None) -> None:
        self._on_batch = on_batch
        self._encodes: list[EncodeJob] = []
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._job_s = 0.0
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
        self._give_up()

    @property
    def retry_after_s(self) -> float:
        """When about half of what waits will have been served, in seconds."""
        return self._job_s * (len(self._encodes) + len(self._jobs)) / 2

    @property
    def waiting_encodes(self) -> int:
        """Encodes that wait for the thread."""
        return len(self._encodes)

    def queued(self, kind: type[Job]) -> int:
        """Jobs of a kind that have not begun."""
        return sum(isinstance(job, kind) and job.started is None for job in self._jobs)

    def active(self, kind: type[Job]) -> int:
        """Jobs of a kind that have begun."""
        return sum(isinstance(job, kind) and job.started is not None for job in self._jobs)

    def encode(self, backend: Backend, frames: Tensor) -> Future[Tensor]:
        """Frames (N, size, size, 3) uint8 → a future of latents (N, D).

        Raises:
            EngineStopped: the engine takes no work.
        """
        job = EncodeJob(backend, frames)
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
            if isinstance(job, EncodeJob):
                self._encodes.append(job)
            else:
                self._jobs.append(job)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait():
                self._run_encodes()
                self._run_job()
        except BaseException:
            logger.exception("the engine's thread died")
            self.failed = True
            self._give_up()

    def _wait(self) -> bool:
        """Sleep until there is work; False when asked to stop and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._encodes or self._jobs or self._stopping)
            return bool(self._encodes or self._jobs)

    def _run_encodes(self) -> None:
        """One batch of whatever frames wait, of the backend that has waited longest."""
        with self._changed:
            self._encodes = [job for job in self._encodes if not job.future.cancelled()]
            jobs = [job for job in self._encodes if job.backend is self._encodes[0].backend]
        if not jobs:
            return
        try:
            self._on_batch("encode", encode_next(jobs))
        except Exception as error:
            if len(jobs) == 1:
                self._drop(jobs[0])
                _answer_error(jobs[0].future, error)
            else:
                # One of them spoils the batch: alone, it fails alone.
                self._encode_alone(jobs)
        for job in jobs:
            if job.finished:
                self._drop(job)
                _answer(job.future, job.result())

    def _encode_alone(self, jobs: list[EncodeJob]) -> None:
        for job in jobs:
            try:
                self._on_batch("encode", encode_next([job]))
            except Exception as error:
                self._drop(job)
                _answer_error(job.future, error)

    def _drop(self, job: EncodeJob) -> None:
        with self._changed:
            self._encodes = [other for other in self._encodes if other is not job]

    def _run_job(self) -> None:
        for job in self._expired():
            self._finish(job)
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.future.cancelled()]
            if not self._jobs:
                return
            job = min(self._jobs, key=lambda job: job.urgency)
        try:
            rows = job.run()
        except Exception as error:
            self._remove(job)
            _answer_error(job.future, error)
            return
        if rows:
            self._on_batch("rollout", rows)
        if job.finished:
            self._finish(job)

    def _expired(self) -> list[Job]:
        now = time.monotonic()
        with self._changed:
            return [job for job in self._jobs if job.deadline <= now]

    def _finish(self, job: Job) -> None:
        self._remove(job)
        try:
            result = job.result()
        except Exception as error:
            _answer_error(job.future, error)
        else:
            _answer(job.future, result)
        if job.started is not None:
            self._job_s += 0.1 * (time.monotonic() - job.started - self._job_s)

    def _remove(self, job: Job) -> None:
        # `_give_up` may have emptied the list meanwhile.
        with self._changed:
            self._jobs = [other for other in self._jobs if other is not job]

    def _give_up(self) -> None:
        with self._changed:
            left: list[Future[Any]] = [job.future for job in self._encodes]
            left += [job.future for job in self._jobs]
            self._encodes, self._jobs = [], []
        for future in left:
            _answer_error(future, EngineStopped())


def _answer(future: Future[Any], result: object) -> None:
    # The client may go away, and cancel, at any moment.
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def _answer_error(future: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
