"""What the engine does next. It has no thread of its own, and its clock is given to it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, NamedTuple, TypeVar

from lewm_serve.constants import BatchKind
from lewm_serve.engine.admission import OVERDUE_SHARE, DeadlinePassed
from lewm_serve.engine.batching import (
    batch_rows,
    can_share_rollout,
    encode_batch,
    encode_batch_size,
    roll_out_batch,
)
from lewm_serve.engine.device_jobs import DevicePlanJob, on_device, run_on_device
from lewm_serve.engine.jobs import EncodeJob, Job, PlanJob
from lewm_serve.engine.shared_numbers import Row, SharedNumber

JobT = TypeVar("JobT", EncodeJob, Job)

FOLLOW_UP_S = 0.005
"""How long best-effort work waits for the search of an urgent request whose frames are encoded."""

RECENT_S = 1.0
"""After urgent work, best-effort work has short parts for this long."""

LONG_PART_S = 0.01
"""After a part that took longer, best-effort work pauses for as long if urgent work came recently.
Such parts cannot be shorter: gradients take as long for one candidate. Without the pauses, urgent
work would nearly always come during such a part."""

DEFAULT_OVERDUE_S = 10.0
"""A best-effort job that has waited this long is overdue."""

MAX_RECORDED_BATCHES = 4096
"""Batches that wait to be counted; the oldest are dropped."""


class Batch(NamedTuple):
    """One run of the model, and its rows: frames, or candidates with the padding."""

    kind: BatchKind
    rows: int


class Scheduler:
    """The waiting jobs, and the order in which they are done.

    A turn encodes one batch of waiting frames. Then it runs one part of the most urgent job, or of
    several jobs in one batch where that increases the throughput. Between turns, jobs are added,
    overtaken and cancelled. If a job's deadline comes during the work of others, the job is
    answered before this work, with the best result so far, or as too late if there is none.

    Best-effort work is done while no urgent work waits. So that it ends some day even under a
    constant stream of urgent work, what has waited for ``overdue_s`` is done meanwhile too, for
    `OVERDUE_SHARE` of the time.

    Any thread may call `submit` and cancel a job's future. One thread, the engine's, takes the
    turns; it alone changes jobs and ``free_at``. ``_lock`` protects the lists of jobs.

    Args:
        clock: gives the time in seconds.
        overdue_s: after this waiting time best-effort work is overdue.
        row: a new row for ``free_at`` and ``started_plans``; None: only this process needs them.

    Attributes:
        free_at: when the run of the model that is in progress is expected to end, or when the last
            one ended.
        started_plans: how many plans have started and are not answered.
        batches: the batches that ran and were not counted yet; `deque` operations are atomic.
        used_gradients: whether gradients were computed, which leaves much freed memory.
    """

    free_at = SharedNumber(0, float)
    started_plans = SharedNumber(1, int)

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        overdue_s: float = DEFAULT_OVERDUE_S,
        row: Row | None = None,
    ) -> None:
        self.row = Row() if row is None else row
        self._clock = clock
        self._overdue_s = overdue_s
        self._next_overdue_at = 0.0
        self._urgent_at = -math.inf
        self._paused_until = -math.inf
        self._follow_ups: dict[tuple[str, int], float] = {}
        self._encode_jobs: list[EncodeJob] = []
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self.batches: deque[Batch] = deque(maxlen=MAX_RECORDED_BATCHES)
        self.used_gradients = False

    @property
    def idle(self) -> bool:
        """Whether no job waits."""
        return not self._encode_jobs and not self._jobs

    def take_batches(self) -> Iterator[Batch]:
        """The batches that ran since the last call. Any thread may call it."""
        with contextlib.suppress(IndexError):  # there are no more
            while True:
                yield self.batches.popleft()

    def submit(self, job: EncodeJob | Job) -> None:
        """Add a job. Its future will be set."""
        with self._lock:
            if isinstance(job, EncodeJob):
                self._encode_jobs.append(job)
            else:
                if isinstance(job, PlanJob) and job.backend.device_rollouts is not None:
                    job = on_device(job)
                job.submitted_at = self._clock()
                self._jobs.append(job)
                self._follow_ups.pop(job.queued.key, None)

    def abandon(self, error: Exception) -> None:
        """Answer all waiting jobs with an error."""
        with self._lock:
            waiting: list[EncodeJob | Job] = [*self._encode_jobs, *self._jobs]
            self._encode_jobs, self._jobs = [], []
        self._count_started_plans()
        for job in waiting:
            _set_exception(job.future, error)

    def _count_started_plans(self) -> None:
        self.started_plans = sum(
            isinstance(job, PlanJob) and job.started_at is not None for job in self._jobs
        )

    def run_turn(self) -> None:
        """Encode one batch of frames, and roll out one batch of candidates."""
        self._run_encode_turn()
        self._run_job_turn()
        self._count_started_plans()

    def pause_s(self) -> float:
        """How long the next turn should wait for urgent work; 0 or less if it should not.

        After the frames of an urgent request are encoded, its search is about to be submitted. If
        best-effort work began in between, the request would have to wait for it. For the pauses
        after long parts, see `LONG_PART_S`.
        """
        with self._lock:
            if self._encode_jobs or any(job.queued.is_urgent for job in self._jobs):
                return 0.0
            now = self._clock()
            if self._follow_ups and max(self._follow_ups.values()) <= now:
                self._follow_ups.clear()
            return max([self._paused_until, *self._follow_ups.values()]) - now

    def _run_encode_turn(self) -> None:
        """Encode one batch of frames of one backend."""
        with self._lock:
            self._encode_jobs = [job for job in self._encode_jobs if not job.future.cancelled()]
            waiting = self._in_order(self._encode_jobs)
        jobs = [job for job in waiting if job.backend is waiting[0].backend]
        if not jobs:
            return
        latency = jobs[0].queued.latency
        frame_count = min(
            encode_batch_size(latency), sum(len(job.frames) - job.encoded for job in jobs)
        )
        best_effort = not jobs[0].queued.is_urgent
        start = self._clock()
        self.free_at = start + latency.encode_s(frame_count)
        self._finish_expired(self.free_at, keep=jobs)
        self._encode(jobs)
        self._end_work(jobs, self._clock() - start, best_effort=best_effort)
        for job in jobs:
            if job.finished:
                self._remove(job)
                self._expect_follow_up(job)
                _set_result(job.future, job.result())

    def _expect_follow_up(self, job: EncodeJob) -> None:
        if job.queued.is_urgent and job.queued.candidates_per_iteration:
            with self._lock:
                self._follow_ups[job.queued.key] = self._clock() + FOLLOW_UP_S

    def _in_order(self, jobs: Sequence[JobT]) -> list[JobT]:
        """The jobs that may run now, most urgent first. An overdue job comes before all."""
        ordered: list[JobT] = sorted(jobs, key=lambda job: job.queued.urgency)
        waiting: list[EncodeJob | Job] = [*self._encode_jobs, *self._jobs]
        now = self._clock()
        if not any(job.queued.is_urgent for job in waiting):
            return ordered
        self._urgent_at = now
        urgent: list[JobT] = [job for job in ordered if job.queued.is_urgent]
        if now >= self._next_overdue_at:
            for job in ordered[len(urgent) :]:
                if now - job.queued.waiting_since >= self._overdue_s:
                    urgent.insert(0, job)
                    break
        return urgent

    def _end_work(
        self, jobs: Sequence[EncodeJob | Job], seconds: float, *, best_effort: bool
    ) -> None:
        """Count the engine's time for the clients of these jobs, when their work has ended."""
        self.free_at = self._clock()
        for job in jobs:
            job.queued.client.observe_use(seconds / len(jobs), best_effort=best_effort)
        if best_effort:
            self._next_overdue_at = self.free_at + seconds * (1 / OVERDUE_SHARE - 1)
            if seconds > LONG_PART_S and self.free_at - self._urgent_at < RECENT_S:
                self._paused_until = self.free_at + seconds

    def _encode(self, jobs: Sequence[EncodeJob]) -> None:
        """Encode one batch for these jobs. If that fails, encode one batch for each job."""
        if len(jobs) > 1:
            try:
                self._encode_batch(jobs)
                return
            except Exception:
                pass  # only the job that makes the batch fail gets the error
        self._run_one_by_one(jobs, lambda job: self._encode_batch([job]))

    def _encode_batch(self, jobs: Sequence[EncodeJob]) -> None:
        start = self._clock()
        latency = jobs[0].queued.latency
        frame_count = encode_batch(jobs, encode_batch_size(latency))
        latency.observe_encode(frame_count, self._clock() - start)
        self.batches.append(Batch("encode", frame_count))

    def _run_job_turn(self) -> None:
        """Run one part of the most urgent job, and of the jobs in the same batch."""
        with self._lock:
            self._jobs = [job for job in self._jobs if not job.future.cancelled()]
        self._finish_expired(self._clock())
        batch = self._next_batch()
        if not batch:
            return
        best_effort = not batch[0].queued.is_urgent
        self.used_gradients |= batch[0].queued.shape.gradients
        start = self._clock()
        queued, rows = batch[0].queued, batch_rows([job.candidate_count for job in batch])
        part_s = queued.latency.rollout_s(rows, queued.shape)
        parts = min(job.parts_in_turn(start, part_s) for job in batch)
        self.free_at = start + parts * part_s
        self._finish_expired(self.free_at, keep=batch)
        for job in batch:
            job.start_part(start)
        self._count_started_plans()
        if self._run_parts(batch, parts):
            queued.latency.observe_rollout(rows, queued.shape, (self._clock() - start) / parts)
            self.batches.extend([Batch("rollout", rows)] * parts)
        self._end_work(batch, self._clock() - start, best_effort=best_effort)
        for job in batch:
            if job.finished:
                self._finish(job)

    def _finish_expired(self, until: float, keep: Sequence[EncodeJob | Job] = ()) -> None:
        """Finish the jobs whose deadline comes before ``until``, except those in ``keep``.

        Frames that are not encoded by then are of no use: these jobs fail.
        """
        for job in self._jobs:
            if job.queued.deadline <= until and job not in keep:
                self._finish(job)
        for encode_job in self._encode_jobs:
            if encode_job.queued.deadline <= until and encode_job not in keep:
                self._fail(encode_job, DeadlinePassed())

    def _next_batch(self) -> list[Job]:
        """The most urgent job that can go on, and the jobs that share its batch.

        Makes their next candidates. Finishes the jobs that cannot go on, and fails those that raise
        an error.

        A job that fails or is found anomalous may have run a one-step prediction, which takes time.
        Then the batch is empty, so that waiting frames are encoded before the next job is tried.
        """
        batch: list[Job] = []
        ordered = self._in_order(self._jobs)
        is_urgent_time = self._clock() - self._urgent_at < RECENT_S
        for job in ordered:
            job.short_parts = is_urgent_time and not job.queued.is_urgent
            max_rows = job.queued.latency.max_batched_rows
            counts = [batched.candidate_count for batched in batch]
            if batch and batch_rows([*counts, 1]) > max_rows:
                break  # not even a plan of one candidate fits
            if batch and not can_share_rollout(batch[0], job):
                continue
            try:
                can_go_on = job.next_candidates_in_time(self._clock())
            except Exception as error:
                self._fail(job, error)
                if not batch:
                    break
                continue
            if not can_go_on:
                self._finish(job)
                if job.anomalous and not batch:
                    break
            elif not batch or self._may_join(batch, job):
                batch.append(job)
        return batch

    def _may_join(self, batch: Sequence[Job], job: Job) -> bool:
        """Whether a job fits into a batch without making itself or a job of the batch late."""
        joined = [*batch, job]
        rows = batch_rows([batched.candidate_count for batched in joined])
        if rows > job.queued.latency.max_batched_rows:
            return False
        now = self._clock()
        return all(batched.queued.in_time(now, batched_plans=len(joined)) for batched in joined)

    def _run_parts(self, batch: Sequence[Job], parts: int) -> bool:
        """Roll out the next candidates of a batch in one run of the model.

        Searches on the device run ``parts`` iterations. If the run fails, each job runs alone.
        Returns whether the one run succeeded.
        """
        on_device = isinstance(batch[0], DevicePlanJob)
        if len(batch) == 1 and not on_device:
            return self._run_one_by_one(batch, lambda job: job.run_part())
        try:
            if on_device:
                run_on_device(batch, parts)
                return True
            predicted = roll_out_batch(batch)
        except Exception:  # only the job that makes the batch fail gets the error
            left = [job for job in batch if not job.finished]
            self._run_one_by_one(left, lambda job: job.run_part())
            return False
        for job, latents in zip(batch, predicted, strict=True):
            try:
                job.take(latents)
            except Exception as error:
                self._fail(job, error)
        return True

    def _run_one_by_one(self, jobs: Sequence[JobT], run: Callable[[JobT], None]) -> bool:
        """Run each job. A job that raises an error gets it. Returns whether all succeeded."""
        succeeded = True
        for job in jobs:
            try:
                run(job)
            except Exception as error:
                self._fail(job, error)
                succeeded = False
        return succeeded

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
    # The client may disconnect at any moment, which cancels the future.
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def _set_exception(future: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
