"""The interface through which the planner reaches an engine, wherever that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lewm_serve.backends.backend import ThreadedBackend
from lewm_serve.engine.admission import Admission
from lewm_serve.engine.jobs import EncodeJob, Job
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.engine.scheduler import Batch
from lewm_serve.engine.shared_numbers import Row
from lewm_serve.registry.registry import LoadedModel, Registry
from lewm_serve.registry.reload import Reloaded


class Worker(Protocol):
    """An engine and the models that it holds. Used only from the event loop.

    Attributes:
        free_at: see `Scheduler.free_at`.
        started_plans: see `Scheduler.started_plans`.
        dropped_log_lines: log lines of the engine's own process that could not be written.
        memory_bytes: resident memory of the engine's own process; 0 without one.
        processor_s: seconds of processor time of the engine's own process; 0 without one.
        can_restart: whether `load` may be called again after the engine has died.
        device: its device, for metrics; `auto` if that is not known yet.
    """

    can_restart: bool
    device: str

    @property
    def free_at(self) -> float: ...

    @property
    def started_plans(self) -> int: ...

    @property
    def dropped_log_lines(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    @property
    def processor_s(self) -> float: ...

    def new_row(self) -> Row:
        """A row for the numbers that requests and clients share with the engine."""

    async def load(self, earlier: Registry | None = None) -> Mapping[Path, LoadedModel]:
        """Start the engine and load the models of the settings, by folder.

        Args:
            earlier: what a former engine held, or another engine holds. Models that are still the
                same take the same backends and are not measured again.

        Raises:
            ModelLoadError: a model or the device is not available.
            EngineStopped: the engine has died meanwhile.
        """

    async def load_more(self, models: Mapping[Path, LoadedModel]) -> Mapping[str, LoadedModel]:
        """Load models of another engine, beside its own. Returns them by name and version.

        Raises:
            ModelLoadError: a folder has another version.
            EngineStopped: the engine has died meanwhile.
        """

    async def reload(self, registry: Registry) -> Reloaded:
        """See `read_models_again`.

        Raises:
            EngineStopped: the engine has died meanwhile.
        """

    def release(self, pin: str) -> None:
        """Forget a model, by name and version, that is used no more."""

    def submit(self, job: EncodeJob | Job) -> Future[Any]:
        """Add a job. Its future gives the job's result.

        Raises:
            EngineStopped: the engine takes no work.
        """

    def take_batches(self) -> Iterator[Batch]:
        """The batches that ran since the last call."""

    async def wait_lost(self) -> None:
        """Wait until the engine has died."""

    def end(self) -> None:
        """End an engine that is to be started again. Then it is lost."""

    async def stop(self) -> None:
        """Stop the engine. What it has not finished gets `EngineStopped`."""


class Placement(NamedTuple):
    """The engine that does the work of a request, and the request's model there."""

    worker: Worker
    admission: Admission
    backend: ThreadedBackend
    latency: LatencyModel
