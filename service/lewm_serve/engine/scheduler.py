"""What the engine does next. It has no thread of its own, and its clock is given to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, NamedTuple

from lewm_serve.engine.batching import (
    MAX_ENCODE_BATCH,
    batch_rows,
    can_share_rollout,
    encode_batch,
    roll_out_batch,
)
from lewm_serve.engine.jobs import EncodeJob, Job

MAX_RECORDED_BATCHES = 4096
"""Batches that wait to be counted; the oldest are dropped."""


class Batch(NamedTuple):
    """One run of the model: "encode" or "rollout", and its rows."""

    kind: str
    rows: int


class Scheduler:
    """The waiting jobs, and the order in which they are done.

    A turn encodes one batch of waiting frames. Then it does one step of the most urgent job, or of
    several jobs in one batch where that increases the throughput. Jobs join, leave, overtake and
    expire between turns. A job whose deadline falls into the steps of others is answered before
    them, with the best result so far.

    Any thread may call `submit` and cancel a job's future. One thread, the engine's, takes the
    turns; it alone changes jobs and ``free_at``. ``_lock`` protects the lists of jobs.

    Attributes:
        free_at: when the run of the model that is in progress is expected to end.
        batches: the batches that ran and were not counted yet; `deque` operations are atomic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._encode_jobs: list[EncodeJob] = []
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self.free_at = 0.0
        self.batches: deque[Batch] = deque(maxlen=MAX_RECORDED_BATCHES)

    @property
    def idle(self) -> bool:
        """Whether no job waits."""
        return not self._encode_jobs and not self._jobs

    def started_jobs(self, kind: type[Job]) -> int:
        """The number of jobs of a kind that have started."""
        return sum(isinstance(job, kind) and job.started_at is not None for job in self._jobs)

    def submit(self, job: EncodeJob | Job) -> None:
        """Add a job. Its future will be set."""
        with self._lock:
            if isinstance(job, EncodeJob):
                self._encode_jobs.append(job)
            else:
                job.submitted_at = self._clock()
                self._jobs.append(job)

    def abandon(self, error: Exception) -> None:
        """Answer all waiting jobs with an error."""
        with self._lock:
            left: list[EncodeJob | Job] = [*self._encode_jobs, *self._jobs]
            self._encode_jobs, self._jobs = [], []
        for job in left:
            _set_exception(job.future, error)

    def run_turn(self) -> None:
        """Do the next piece of work of each kind."""
        self._run_encode_turn()
        self._run_job_turn()

    def _run_encode_turn(self) -> None:
        """Encode one batch for the backend that has waited longest."""
        with self._lock:
            self._encode_jobs = [job for job in self._encode_jobs if not job.future.cancelled()]
            jobs = [job for job in self._encode_jobs if job.backend is self._encode_jobs[0].backend]
        if not jobs:
            return
        frames = min(MAX_ENCODE_BATCH, sum(len(job.frames) - job.encoded for job in jobs))
        self.free_at = self._clock() + jobs[0].latency.encode_s(frames)
        self._finish_expired(self.free_at)
        try:
            self._encode(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
            else:
                # One of the jobs makes the batch fail. Alone, it fails alone.
                for job in jobs:
                    try:
                        self._encode([job])
                    except Exception as own_error:
                        self._fail(job, own_error)
        for job in jobs:
            if job.finished:
                self._remove(job)
                _set_result(job.future, job.result())

    def _encode(self, jobs: Sequence[EncodeJob]) -> None:
        start = self._clock()
        frames = encode_batch(jobs)
        jobs[0].latency.observe_encode(frames, self._clock() - start)
        self.batches.append(Batch("encode", frames))

    def _run_job_turn(self) -> None:
        """Do one step of the most urgent job, and of those in the same batch."""
        with self._lock:
            self._jobs = [job for job in self._jobs if not job.future.cancelled()]
        self._finish_expired(self._clock())
        batch = self._choose_batch()
        if not batch:
            return
        start = self._clock()
        request, rows = batch[0].request, batch_rows([job.rows for job in batch])
        self.free_at = start + request.latency.rollout_s(rows, request.shape)
        self._finish_expired(self.free_at, keep=batch)
        for job in batch:
            job.start_step(start)
        if self._step(batch):
            request.latency.observe_rollout(rows, request.shape, self._clock() - start)
            self.batches.append(Batch("rollout", rows))
        for job in batch:
            if job.finished:
                self._finish(job)

    def _finish_expired(self, until: float, keep: Sequence[Job] = ()) -> None:
        """Finish the jobs whose deadline comes before ``until``, except those in ``keep``."""
        for job in self._jobs:
            if job.request.deadline <= until and job not in keep:
                self._finish(job)

    def _choose_batch(self) -> list[Job]:
        """The most urgent job that has time for a step, and the jobs that share its batch.

        A job that fails or is found anomalous may have run a one-step prediction, which takes time.
        Then the turn ends, so that waiting frames are encoded before the next job is looked at.
        """
        batch: list[Job] = []
        for job in sorted(self._jobs, key=lambda job: job.request.urgency):
            max_rows = job.request.latency.max_batched_rows
            if batch and batch_rows([*(one.rows for one in batch), 1]) > max_rows:
                break
            if batch and not can_share_rollout(batch[0], job):
                continue
            try:
                has_time = job.prepare(self._clock())
            except Exception as error:
                self._fail(job, error)
                if not batch:
                    break
                continue
            if not has_time:
                self._finish(job)
                if job.anomalous and not batch:
                    break
            elif not batch or self._may_join(batch, job):
                batch.append(job)
        return batch

    def _may_join(self, batch: Sequence[Job], job: Job) -> bool:
        """Whether a job fits into a batch without making one of its jobs late."""
        joined = [*batch, job]
        if batch_rows([one.rows for one in joined]) > job.request.latency.max_batched_rows:
            return False
        now = self._clock()
        return all(one.request.in_time(now, batched_plans=len(joined)) for one in joined)

    def _step(self, batch: Sequence[Job]) -> bool:
        """Roll out the next candidates of a batch. False if the roll-out failed."""
        if len(batch) == 1:
            return self._step_alone(batch[0])
        try:
            predicted = roll_out_batch(batch)
        except Exception:
            # One of the jobs makes the batch fail. Alone, it fails alone.
            for job in batch:
                self._step_alone(job)
            return False
        for job, latents in zip(batch, predicted, strict=True):
            try:
                job.take(latents)
            except Exception as error:
                self._fail(job, error)
        return True

    def _step_alone(self, job: Job) -> bool:
        try:
            job.step()
        except Exception as error:
            self._fail(job, error)
            return False
        return True

    def _finish(self, job: Job) -> None:
        self._remove(job)
        try:
            result = job.result(self._clock())
        except Exception as error:
            _set_exception(job.future, error)
        else:
            _set_result(job.future, result)

    def _fail(self, job: EncodeJob | Job, error: Exception) -> None:
        self._remove(job)
        _set_exception(job.future, error)

    def _remove(self, job: EncodeJob | Job) -> None:
        with self._lock:
            self._encode_jobs = [other for other in self._encode_jobs if other is not job]
            self._jobs = [other for other in self._jobs if other is not job]


def _set_result(future: Future[Any], result: object) -> None:
    # The client may go away, which cancels the future, at any moment.
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def _set_exception(future: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
