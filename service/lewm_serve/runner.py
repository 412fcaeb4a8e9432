"""What requests have the engine do, and what operators see of it."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import TypeVar

from lewm_serve.context import RequestContext
from lewm_serve.engine.engine import Engine
from lewm_serve.engine.jobs import Job, PlanOutcome, Prediction
from lewm_serve.latents import Latents
from lewm_serve.metrics import Metrics
from lewm_serve.responses import Timing

R = TypeVar("R", PlanOutcome, Prediction)


class Runner:
    """Hands jobs to the engine and counts their time. Lives on the event loop."""

    def __init__(self, engine: Engine, metrics: Metrics, patience_s: float) -> None:
        self._engine = engine
        self._metrics = metrics
        self.patience_s = patience_s

    def submit(self, job: Job) -> Future[R]:
        """Queue a job; cancelling its future drops it. Raises `EngineStopped`."""
        return self._engine.submit(job)

    async def outcome(self, running: Future[R]) -> R:
        """Wait for a job; raises what it ended with."""
        outcome: R = await asyncio.wrap_future(running)
        self._metrics.stage_duration.labels("queue").observe(outcome.queue_s)
        self._metrics.stage_duration.labels("solve").observe(outcome.solve_s)
        return outcome


def timing(
    context: RequestContext, latents: Latents | None, work: PlanOutcome | Prediction | None = None
) -> Timing:
    """Where a request's time went; what did not happen took none."""
    queue_s, solve_s = (0.0, 0.0) if work is None else (work.queue_s, work.solve_s)
    decode_s, encode_s = (0.0, 0.0) if latents is None else (latents.decode_s, latents.encode_s)
    total_s = time.monotonic() - context.received
    seconds = (queue_s, decode_s, encode_s, solve_s, total_s)
    return Timing(*(1000 * value for value in seconds))
