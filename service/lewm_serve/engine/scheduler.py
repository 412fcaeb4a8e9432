"""What the engine does next: decided turn by turn, without a thread and by a given clock."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from lewm_serve.engine.encodes import BATCH_ROWS, EncodeJob, encode_next
from lewm_serve.engine.jobs import Job
from lewm_serve.engine.packing import fit_together, packed_rows, rollout_packed


class Scheduler:
    """Encodes and jobs that wait, and the order in which they are served.

    A turn encodes one batch of waiting frames, then does one step, of bounded size, of the most
    urgent job; where the backend gains from more rows, the next steps of other jobs are packed into
    the same roll-out, in the order of their urgency. Between two turns jobs join, leave, overtake
    and expire. A job whose deadline falls into a step of others is answered before it, in time.

    ``free_at`` is when the run of the model under way is expected to end.

    ``on_batch`` is told "encode" or "rollout", and the rows of each run of the model. Any thread
    may submit, and cancel a job's future; turns are taken by one.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[str, int], None] = lambda _kind, _rows: None,
    ) -> None:
        self._clock = clock
        self._on_batch = on_batch
        self._encodes: list[EncodeJob] = []
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self.free_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._encodes and not self._jobs

    def active(self, kind: type[Job]) -> int:
        """Jobs of a kind that have begun."""
        return sum(isinstance(job, kind) and job.started is not None for job in self._jobs)

    def submit(self, job: EncodeJob | Job) -> None:
        """Queue a job; its future is answered."""
        with self._lock:
            if isinstance(job, EncodeJob):
                self._encodes.append(job)
            else:
                job.submitted = self._clock()
                self._jobs.append(job)

    def abandon(self, error: Exception) -> None:
        """Answer all that waits with an error."""
        with self._lock:
            left: list[EncodeJob | Job] = [*self._encodes, *self._jobs]
            self._encodes, self._jobs = [], []
        for job in left:
            _answer_error(job.future, error)

    def turn(self) -> None:
        """Do the next piece of work of each kind."""
        self._turn_encodes()
        self._turn_jobs()

    def _turn_encodes(self) -> None:
        """One batch of whatever frames wait, of the backend that has waited longest."""
        with self._lock:
            self._encodes = [job for job in self._encodes if not job.future.cancelled()]
            jobs = [job for job in self._encodes if job.backend is self._encodes[0].backend]
        if not jobs:
            return
        frames = min(BATCH_ROWS, sum(len(job.frames) - job.encoded for job in jobs))
        self.free_at = self._clock() + jobs[0].pace.encode(frames)
        self._expire_by(self.free_at)
        try:
            self._encode(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
            else:
                # One of them spoils the batch: alone, it fails alone.
                for job in jobs:
                    try:
                        self._encode([job])
                    except Exception as own:
                        self._fail(job, own)
        for job in jobs:
            if job.finished:
                self._remove(job)
                _answer(job.future, job.result())

    def _encode(self, jobs: list[EncodeJob]) -> None:
        start = self._clock()
        frames = encode_next(jobs)
        jobs[0].pace.observe_encode(frames, self._clock() - start)
        self._on_batch("encode", frames)

    def _turn_jobs(self) -> None:
        """One step of the most urgent job, and of those packed with it."""
        with self._lock:
            self._jobs = [job for job in self._jobs if not job.future.cancelled()]
        self._expire_by(self._clock())
        group = self._choose()
        if not group:
            return
        start = self._clock()
        ticket, rows = group[0].ticket, packed_rows([job.rows for job in group])
        self.free_at = start + ticket.pace.estimate(rows, ticket.shape)
        self._expire_by(self.free_at, keep=group)
        for job in group:
            job.started = start if job.started is None else job.started
            job.ticket.begun = True
        if self._step(group):
            ticket.pace.observe(rows, ticket.shape, self._clock() - start)
            self._on_batch("rollout", rows)
        for job in group:
            if job.finished:
                self._finish(job)

    def _expire_by(self, time: float, keep: Sequence[Job] = ()) -> None:
        """Answer jobs whose deadline comes before the model is free again, with what they have."""
        for job in self._jobs:
            if job.ticket.deadline <= time and job not in keep:
                self._finish(job)

    def _choose(self) -> list[Job]:
        """The most urgent job that still has time for a step, and those packed with it."""
        group: list[Job] = []
        for job in sorted(self._jobs, key=lambda job: job.ticket.urgency):
            if group and packed_rows([*(one.rows for one in group), 1]) > job.ticket.pace.knee:
                break
            if group and not fit_together(group[0], job):
                continue
            try:
                ready = job.prepare(self._clock())
            except Exception as error:
                self._fail(job, error)
                if not group:
                    break  # what it did before took time: frames that wait come first
                continue
            if not ready:
                self._finish(job)
            elif not group or self._may_join(group, job):
                group.append(job)
        return group

    def _may_join(self, group: list[Job], job: Job) -> bool:
        """Whether one more plan fits below the knee, and makes nobody late."""
        joined = [*group, job]
        if packed_rows([one.rows for one in joined]) > job.ticket.pace.knee:
            return False
        now = self._clock()
        return all(one.ticket.in_time(now, share=len(joined)) for one in joined)

    def _step(self, group: list[Job]) -> bool:
        """Roll a group's next candidates out; False where the roll-out failed."""
        if len(group) == 1:
            return self._step_alone(group[0])
        try:
            parts = rollout_packed(group)
        except Exception:
            # One of them spoils the roll-out: alone, it fails alone.
            for job in group:
                self._step_alone(job)
            return False
        for job, predicted in zip(group, parts, strict=True):
            try:
                job.take(predicted)
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
            _answer_error(job.future, error)
        else:
            _answer(job.future, result)

    def _fail(self, job: EncodeJob | Job, error: Exception) -> None:
        self._remove(job)
        _answer_error(job.future, error)

    def _remove(self, job: EncodeJob | Job) -> None:
        with self._lock:
            self._encodes = [other for other in self._encodes if other is not job]
            self._jobs = [other for other in self._jobs if other is not job]


def _answer(future: Future[Any], result: object) -> None:
    # The client may go away, and cancel, at any moment.
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def _answer_error(future: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
