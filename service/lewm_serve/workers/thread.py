"""An engine in a thread of the process with the event loop: for debugging, and for small machines.

If its thread ends with an error, the engine does not run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lewm_serve.engine.engine import Engine
from lewm_serve.engine.jobs import EncodeJob, Job
from lewm_serve.engine.scheduler import Batch, Scheduler
from lewm_serve.engine.shared_numbers import Row
from lewm_serve.registry.loading import load_registry
from lewm_serve.registry.registry import LoadedModel, Registry
from lewm_serve.registry.reload import Reloaded, read_models_again
from lewm_serve.settings import Settings


class ThreadWorker:
    """See `Worker`."""

    can_restart = False
    dropped_log_lines = memory_bytes = 0
    processor_s = 0.0
    device = "auto"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = Engine(Scheduler(overdue_s=settings.default_deadline_ms / 1000))

    @property
    def free_at(self) -> float:
        """See `Worker`."""
        return self._engine.free_at

    @property
    def started_plans(self) -> int:
        """See `Worker`."""
        return self._engine.started_plans

    def new_row(self) -> Row:
        """See `Worker.new_row`."""
        return Row()

    async def load(self, earlier: Registry | None = None) -> Mapping[Path, LoadedModel]:
        """See `Worker.load`."""
        registry = await asyncio.to_thread(load_registry, self._settings)
        self._engine.start()
        return registry.by_folder

    async def load_more(self, models: Mapping[Path, LoadedModel]) -> Mapping[str, LoadedModel]:
        """There are no other engines beside it."""
        return {}

    async def reload(self, registry: Registry) -> Reloaded:
        """See `Worker.reload`."""
        return await asyncio.to_thread(read_models_again, registry, self._settings)

    def release(self, pin: str) -> None:
        """Nothing else holds the model."""

    def submit(self, job: EncodeJob | Job) -> Future[Any]:
        """See `Worker.submit`."""
        return self._engine.submit(job)

    def take_batches(self) -> Iterator[Batch]:
        """See `Worker.take_batches`."""
        return self._engine.take_batches()

    async def wait_lost(self) -> None:
        """See `Worker.wait_lost`."""
        await asyncio.wrap_future(self._engine.failure)

    def end(self) -> None:
        """It cannot be started again, so this is not called."""

    async def stop(self) -> None:
        """See `Worker.stop`."""
        await asyncio.to_thread(self._engine.stop, 0)
