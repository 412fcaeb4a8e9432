"""What the process of an engine does: it holds the models, and answers the calls that it gets.

The main thread receives calls between the turns of the scheduler. Loading models has a thread of
its own, so that plans go on meanwhile.
"""

from __future__ import annotations

import math
import resource
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from lewm_serve.backends.backend import ThreadedBackend
from lewm_serve.engine.admission import DeadlinePassed
from lewm_serve.engine.engine import RELEASE_AFTER_S, EngineStopped, release_freed_memory
from lewm_serve.engine.jobs import EncodeJob, Job
from lewm_serve.engine.latency_model import LatencyModel, Measurements
from lewm_serve.engine.scheduler import Scheduler
from lewm_serve.engine.shared_numbers import Row, RowTable, SharedNumber
from lewm_serve.observability.logging import dropped_log_lines, flush_logs, log, restart_log_thread
from lewm_serve.registry.loading import load_registry
from lewm_serve.registry.registry import LoadedModel, ModelLoadError, OldModel, Registry
from lewm_serve.registry.reload import load_beside_others, read_models_again
from lewm_serve.settings import Settings
from lewm_serve.workers.wire import (
    BlockingChannel,
    Call,
    Cancel,
    Reference,
    RemoteBackend,
    RemoteDistance,
    RemoteProbe,
    Result,
    decode,
)

BEAT_S = 0.25
"""How often an engine's process gives a sign of life."""

STATM, PAGE_BYTES = Path("/proc/self/statm"), resource.getpagesize()

NO_CALL = 2**64 - 1
"""The number of results that answer no call."""


class SignOfLife:
    """What an engine's process shows of itself on the row of its scheduler.

    Attributes:
        beat_at: when its interpreter ran last.
        dropped_log_lines: its log lines that could not be written.
        turn_began_at: when the scheduler's turn began; infinity between two turns.
        memory_bytes: its resident memory.
        processor_s: seconds of processor time that it has used.
    """

    beat_at = SharedNumber(2, float)
    dropped_log_lines = SharedNumber(3, int)
    turn_began_at = SharedNumber(4, float)
    memory_bytes = SharedNumber(5, int)
    processor_s = SharedNumber(6, float)

    def __init__(self, row: Row) -> None:
        self.row = row


class ModelOffer(NamedTuple):
    """A model of an engine's process, as the process with the event loop sees it.

    Attributes:
        model: the model, without its controllers, with a remote backend, distance and probe.
        measurements: those of its latency model.
        latency_of: the name and version of an earlier model whose latency model it shares, if any.
    """

    model: LoadedModel
    measurements: Measurements
    latency_of: str | None


class RegistryState(NamedTuple):
    """A registry by the names and versions of its models."""

    by_folder: Mapping[Path, str]
    default: str | None
    old: Sequence[tuple[str, float]]


class ReloadOffer(NamedTuple):
    """What a reload has found.

    Attributes:
        by_folder: the current models by their names and versions.
        new: those that were not loaded before.
        report: what became of each model.
    """

    by_folder: Mapping[Path, str]
    new: Mapping[str, ModelOffer]
    report: Sequence[Any]


class EngineProcess:
    """The models and the engine of one process.

    Args:
        connection: the socket to the process with the event loop.
        table: the rows that both processes see.
        row_index: the row of the scheduler.
        settings: the server's settings, with the device of this engine.
    """

    def __init__(
        self, connection: socket.socket, table: RowTable, row_index: int, settings: Settings
    ) -> None:
        self._settings = settings
        self._table = table
        row = table.see(row_index)
        self._sign_of_life = SignOfLife(row)
        self._sign_of_life.turn_began_at = math.inf
        self._scheduler = Scheduler(overdue_s=settings.default_deadline_ms / 1000, row=row)
        self._channel = BlockingChannel(connection)
        self._models: dict[str, LoadedModel] = {}
        self._latencies: dict[int, LatencyModel] = {}
        self._running: dict[int, Future[Any]] = {}

    def run(self) -> None:
        """Answer calls, and take the scheduler's turns, until the other process has gone."""
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        scheduler = self._scheduler
        while True:
            try:
                self._receive(self._wait_s())
            except (EOFError, ConnectionError):
                return
            if not scheduler.idle and scheduler.pause_s() <= 0:
                self._sign_of_life.turn_began_at = time.monotonic()
                scheduler.run_turn()
                self._sign_of_life.turn_began_at = math.inf

    def _wait_s(self) -> float | None:
        """How long the next turn may wait for calls; None: until one comes."""
        if not self._scheduler.idle:
            return max(0.0, self._scheduler.pause_s())
        return RELEASE_AFTER_S if self._scheduler.used_gradients else None

    def _receive(self, timeout_s: float | None) -> None:
        """Take the calls that have come, or that come first within a time."""
        is_idle = True
        for number, data in self._channel.receive(timeout_s):
            is_idle = False
            try:
                self._take(number, decode(data, self._resolve))
            except Exception as error:
                self._channel.send(number, Result(error=portable(error)))
        if is_idle and self._scheduler.idle and self._scheduler.used_gradients:
            self._scheduler.used_gradients = False
            release_freed_memory()

    def _beat(self) -> None:
        while True:
            self._sign_of_life.beat_at = time.monotonic()
            self._sign_of_life.dropped_log_lines = dropped_log_lines()
            self._sign_of_life.memory_bytes = PAGE_BYTES * int(STATM.read_text().split()[1])
            self._sign_of_life.processor_s = time.process_time()
            if batches := tuple(self._scheduler.take_batches()):  # of plans in progress, too
                self._channel.send(NO_CALL, Result(batches=batches))
            time.sleep(BEAT_S)

    def _take(self, number: int, message: Call | Cancel) -> None:
        if isinstance(message, Cancel):
            if (future := self._running.get(number)) is not None:
                future.cancel()
        elif message.name == "run":
            self._run_job(number, *message.arguments)
        elif message.name in ("load", "load_more", "reload"):
            answer = partial(self._answer, number, message)
            threading.Thread(target=answer, name=message.name, daemon=True).start()
        else:
            self._answer(number, message)

    def _run_job(self, number: int, job: EncodeJob | Job) -> None:
        self._running[number] = job.future
        job.future.add_done_callback(partial(self._send_result, number))
        self._scheduler.submit(job)

    def _send_result(self, number: int, future: Future[Any]) -> None:
        del self._running[number]
        batches = tuple(self._scheduler.take_batches())
        if future.cancelled():
            result = Result(batches=batches)
        elif (error := future.exception()) is not None:
            result = Result(error=portable(error), batches=batches)
        else:
            result = Result(future.result(), batches=batches)
        self._send(number, result)

    def _send(self, number: int, result: Result) -> None:
        """Send a result, or why that is not possible."""
        try:
            self._channel.send(number, result)
        except Exception as error:
            self._channel.send(number, Result(error=portable(error)))

    def _answer(self, number: int, call: Call) -> None:
        handlers: dict[str, Callable[..., Any]] = {
            "load": self._load,
            "load_more": self._load_more,
            "reload": self._reload,
            "adopt": self._adopt,
            "release": self._release,
        }
        try:
            result = Result(handlers[call.name](*call.arguments))
        except BaseException as error:  # a controller of a model may raise anything
            result = Result(error=portable(error))
        self._send(number, result)

    def _load(self, earlier: Mapping[Path, ModelOffer]) -> Mapping[Path, ModelOffer]:
        """Load the models; those that were served before take the same backends as ``earlier``."""
        before = {path: _with_measurements(offer) for path, offer in earlier.items()}
        registry = load_registry(self._settings, before)
        self._models = {model.pin: model for model in registry.all()}
        return {path: self._offer(model) for path, model in registry.by_folder.items()}

    def _load_more(self, served: Mapping[Path, ModelOffer]) -> Mapping[str, ModelOffer]:
        """Load models that other engines serve."""
        loaded = {}
        for folder, offer in served.items():
            pin = offer.model.pin
            earlier = _with_measurements(offer)
            loaded[pin] = load_beside_others(folder, pin, self._settings, earlier=earlier)
        self._models |= loaded
        return {pin: self._offer(model) for pin, model in loaded.items()}

    def _reload(self, state: RegistryState) -> ReloadOffer:
        pins = {*state.by_folder.values(), *(pin for pin, _ in state.old)}
        known = {pin: model for pin, model in self._models.items() if pin in pins}
        by_folder = {path: known[pin] for path, pin in state.by_folder.items() if pin in known}
        names = [model.name for model in by_folder.values()]
        registry = Registry(
            by_folder,
            state.default if state.default in names else None,
            [OldModel(known[pin], until) for pin, until in state.old if pin in known],
        )
        reloaded = read_models_again(registry, self._settings)
        new = {model.pin: model for model in reloaded.models.values() if model.pin not in known}
        self._models |= new
        return ReloadOffer(
            by_folder={path: model.pin for path, model in reloaded.models.items()},
            new={pin: self._offer(model) for pin, model in new.items()},
            report=reloaded.report,
        )

    def _offer(self, model: LoadedModel) -> ModelOffer:
        backend = model.backend
        remote = RemoteBackend(
            pin=model.pin,
            name=backend.name,
            device=backend.device,
            precision=backend.precision,
            encode_precision=backend.encode_precision,
            rows_are_independent=backend.rows_are_independent,
            threads=backend.threads,
        )
        shares_latency = (
            other.pin
            for other in self._models.values()
            if other.latency is model.latency and other is not model
        )
        offered = replace(
            model,
            backend=cast(ThreadedBackend, remote),
            latency=cast(LatencyModel, None),  # its measurements are beside it
            distance=None if model.distance is None else RemoteDistance(model.pin),
            probe=None if model.probe is None else RemoteProbe(model.pin),
            controllers={},
        )
        return ModelOffer(offered, model.latency.measurements, next(shares_latency, None))

    def _adopt(self, pin: str, rows: tuple[Row, Row]) -> None:
        """Let a model's latency model write to rows of the other process."""
        latency = self._models[pin].latency
        latency.adopt(latency.measurements, rows)
        index = rows[0].index
        assert index is not None
        self._latencies[index] = latency

    def _release(self, pin: str) -> None:
        """Forget a model that is used no more."""
        model = self._models.pop(pin, None)
        threading.Timer(RELEASE_AFTER_S, release_freed_memory).start()
        if model is None or any(other.latency is model.latency for other in self._models.values()):
            return
        self._latencies = {
            index: latency
            for index, latency in self._latencies.items()
            if latency is not model.latency
        }

    def _resolve(self, reference: Reference) -> Any:
        """What a reference means.

        Raises:
            EngineStopped: it means something that an earlier engine had.
        """
        kind, key = reference
        if kind == "row":
            return self._table.see(key)
        if kind == "latency":
            meant: Any = self._latencies.get(key)
        else:
            model = self._models.get(key)
            meant = model and getattr(model, kind)  # its backend, distance or probe
        if meant is None:
            raise EngineStopped
        return meant


def run_engine(
    connection: socket.socket, table: RowTable, row_index: int, settings: Settings
) -> None:
    """Be the process of an engine until the other process closes the connection."""
    restart_log_thread()
    try:
        EngineProcess(connection, table, row_index, settings).run()
    except BaseException:
        log.exception("the engine died")
        raise
    finally:
        flush_logs()


def portable(error: BaseException) -> BaseException:
    """An error as another process can read it. Its traceback is in its notes.

    Errors that the planner knows keep their class. Of others, the other process may lack the class.
    """
    text = "".join(traceback.format_exception(error))
    if type(error) not in (DeadlinePassed, EngineStopped, ModelLoadError):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(text)
    return error


def _with_measurements(offer: ModelOffer) -> LoadedModel:
    latency = LatencyModel()
    latency.adopt(offer.measurements)
    return replace(offer.model, latency=latency)
