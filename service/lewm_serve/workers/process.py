"""An engine in a process of its own, as the process with the event loop sees it."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from lewm_serve.engine.engine import EngineStopped
from lewm_serve.engine.jobs import EncodeJob, Job
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.engine.scheduler import MAX_RECORDED_BATCHES, Batch
from lewm_serve.engine.shared_numbers import Row, RowTable, SharedNumber
from lewm_serve.observability.logging import log
from lewm_serve.registry.controllers import load_controllers
from lewm_serve.registry.registry import LoadedModel, Registry
from lewm_serve.registry.reload import Reloaded
from lewm_serve.settings import Settings
from lewm_serve.workers.engine_main import (
    BEAT_S,
    ModelOffer,
    RegistryState,
    ReloadOffer,
    SignOfLife,
    run_engine,
)
from lewm_serve.workers.launcher import Launcher
from lewm_serve.workers.wire import Call, Cancel, MessageReader, Reference, Result, decode, encode

SHARED_ROWS = 65_536
"""Rows of the engines, of the requests and clients at once, and of the shapes of roll-outs."""

STUCK_FACTOR = 10
"""A step that ends so many timeouts later than expected never ends. An engine can give signs of
life during such a step."""

LATE_WATCH_S = 1.0
"""If the event loop itself was late by this much, the machine was frozen, not the engine."""

KILL_WAIT_S = 1.0
"""How long a process that was killed may take to end."""

STATUS_WAIT_S = 0.5
"""How long the log line of a death waits for the status of the process."""


class EngineProcesses:
    """What starts the processes of engines, and the memory that they share with this one.

    Make it before the process has threads.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.devices = settings.device.split(",")
        self.table = RowTable(SHARED_ROWS)
        self.rows = [self.table.take() for _ in self.devices]
        self._launcher = Launcher(self._run_engine)

    def workers(self) -> list[ProcessWorker]:
        """One for each device of the settings."""
        return [ProcessWorker(self, index) for index in range(len(self.devices))]

    def start(self, index: int) -> tuple[int, socket.socket]:
        """See `Launcher.start`."""
        return self._launcher.start(index)

    def exit_status(self, pid: int) -> int | None:
        """See `Launcher.exit_status`."""
        return self._launcher.exit_status(pid)

    def _run_engine(self, index: int, connection: socket.socket) -> None:
        row_index = self.rows[index].index
        assert row_index is not None
        device = self.devices[index]
        if device == "cpu" and len(self.devices) > 1:
            os.sched_setaffinity(0, self._cores_of(index))
        settings = self.settings.model_copy(update={"device": device})
        run_engine(connection, self.table, row_index, settings)

    def _cores_of(self, index: int) -> set[int]:
        """An equal share of the cores for each engine on the CPU, and at least one."""
        cores = sorted(os.sched_getaffinity(0))
        on_cpu = [i for i, device in enumerate(self.devices) if device == "cpu"]
        place = on_cpu.index(index)
        return set(cores[place :: len(on_cpu)]) or {cores[place % len(cores)]}


class _PendingCall(NamedTuple):
    """A call without an answer. It is kept because the engine still uses the rows of its job."""

    call: Call
    future: Future[Any]


class ProcessWorker:
    """See `Worker`."""

    can_restart = True
    free_at = SharedNumber(0, float)
    started_plans = SharedNumber(1, int)

    def __init__(self, processes: EngineProcesses, index: int) -> None:
        self._processes = processes
        self._index = index
        device = processes.devices[index]
        is_one_of_several = processes.devices.count(device) > 1
        self.device = f"{device}:{index}" if is_one_of_several else device
        self._timeout_s = processes.settings.engine_timeout_s
        self.row = processes.rows[index]
        self._sign_of_life = SignOfLife(self.row)
        self._dropped_before = 0
        self._pid = 0
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, _PendingCall] = {}
        self._next_number = 0
        self._batches: deque[Batch] = deque(maxlen=MAX_RECORDED_BATCHES)
        self._lost = asyncio.Event()
        self._is_stopping = False
        self._watching: asyncio.Task[None] | None = None

    @property
    def dropped_log_lines(self) -> int:
        """See `Worker`."""
        return self._dropped_before + self._sign_of_life.dropped_log_lines

    @property
    def memory_bytes(self) -> int:
        """See `Worker`."""
        return self._sign_of_life.memory_bytes

    @property
    def processor_s(self) -> float:
        """See `Worker`."""
        return self._sign_of_life.processor_s

    def new_row(self) -> Row:
        """See `Worker.new_row`."""
        return self._processes.table.take()

    async def load(self, earlier: Registry | None = None) -> Mapping[Path, LoadedModel]:
        """See `Worker.load`."""
        await self._start()
        before = {} if earlier is None else earlier.by_folder
        offers: Mapping[Path, ModelOffer] = await self._call(
            "load", {path: _offer(model) for path, model in before.items()}
        )
        models: dict[Path, LoadedModel] = {}
        for path, offer in offers.items():
            known = before.get(path)
            if self._index == 0 and known is not None and _is_same(known, offer):
                models[path] = known
                await self._call("adopt", known.pin, known.latency.rows)
            else:
                models[path] = await self._take(offer, {})
        return models

    async def load_more(self, models: Mapping[Path, LoadedModel]) -> Mapping[str, LoadedModel]:
        """See `Worker.load_more`."""
        added: Mapping[str, ModelOffer] = await self._call(
            "load_more", {path: _offer(model) for path, model in models.items()}
        )
        return {pin: await self._take(offer, {}) for pin, offer in added.items()}

    async def reload(self, registry: Registry) -> Reloaded:
        """See `Worker.reload`."""
        known = {model.pin: model for model in registry.loaded}
        state = RegistryState(
            by_folder={path: model.pin for path, model in registry.by_folder.items()},
            default=registry.default,
            old=[(old.model.pin, old.until) for old in registry.old],
        )
        reloaded: ReloadOffer = await self._call("reload", state)
        for pin, offer in reloaded.new.items():
            known[pin] = await self._take(offer, known)
        models = {path: known[pin] for path, pin in reloaded.by_folder.items()}
        return Reloaded(models, list(reloaded.report))

    def release(self, pin: str) -> None:
        """See `Worker.release`."""
        with suppress(EngineStopped):
            self._send("release", pin)

    def submit(self, job: EncodeJob | Job) -> Future[Any]:
        """See `Worker.submit`."""
        number = self._write(Call("run", (job,)), job.future)
        job.future.add_done_callback(partial(self._cancel_if_unwanted, number))
        return job.future

    def take_batches(self) -> Iterator[Batch]:
        """See `Worker.take_batches`."""
        while self._batches:
            yield self._batches.popleft()

    async def wait_lost(self) -> None:
        """See `Worker.wait_lost`."""
        await self._lost.wait()

    def end(self) -> None:
        """See `Worker.end`."""
        if self._transport is not None:
            self._transport.abort()

    async def stop(self) -> None:
        """See `Worker.stop`."""
        self._is_stopping = True
        if self._watching is not None:
            self._watching.cancel()
        self.end()
        self._forget_calls(EngineStopped())

    async def _start(self) -> None:
        """Start the process.

        Raises:
            EngineStopped: it cannot be started.
        """
        self._dropped_before = self.dropped_log_lines
        self.row.clear()
        self._sign_of_life.beat_at = time.monotonic()
        self._sign_of_life.turn_began_at = math.inf
        self._lost.clear()
        try:
            self._pid, connection = self._processes.start(self._index)
        except OSError as error:
            log.error("the engine's process cannot be started", reason=str(error))
            self._lost.set()
            raise EngineStopped from None
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(
            lambda: _Receiver(self._receive, self._on_lost), connection
        )
        self._transport = transport
        log.info("engine started", pid=self._pid)
        self._watching = asyncio.create_task(self._watch(self._pid))

    async def _watch(self, pid: int) -> None:
        """Kill the process if it gives no sign of life."""
        interval_s = min(BEAT_S, self._timeout_s / 4)
        while True:
            before = time.monotonic()
            await asyncio.sleep(interval_s)
            now = time.monotonic()
            silent_s = now - self._sign_of_life.beat_at
            late_s = now - max(self.free_at, self._sign_of_life.turn_began_at)
            if now - before > interval_s + LATE_WATCH_S:
                continue
            if silent_s > self._timeout_s or late_s > STUCK_FACTOR * self._timeout_s:
                log.error(
                    "the engine hangs and is killed",
                    pid=pid,
                    silent_s=round(silent_s, 1),
                    late_s=max(0.0, round(late_s, 1)),
                )
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(KILL_WAIT_S)
                self.end()  # a process that waits for a device may not end
                return

    async def _call(self, name: str, *arguments: Any) -> Any:
        return await asyncio.wrap_future(self._send(name, *arguments))

    def _send(self, name: str, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._write(Call(name, arguments), future)
        return future

    def _write(self, call: Call, future: Future[Any]) -> int:
        if self._transport is None or self._is_stopping:
            raise EngineStopped
        number, self._next_number = self._next_number, self._next_number + 1
        data = encode(number, call, models_by_reference=call.name == "run")
        self._calls[number] = _PendingCall(call, future)
        self._transport.write(data)
        return number

    def _cancel_if_unwanted(self, number: int, future: Future[Any]) -> None:
        if future.cancelled() and number in self._calls and self._transport is not None:
            self._transport.write(encode(number, Cancel()))

    def _receive(self, number: int, data: bytes) -> None:
        try:
            result: Result = decode(data, self._resolve)
        except Exception as error:
            result = Result(error=error)
        self._batches.extend(result.batches)
        pending = self._calls.pop(number, None)
        if pending is None or pending.future.cancelled():
            return
        future = pending.future
        if result.error is not None:
            future.set_exception(result.error)
        else:
            future.set_result(result.value)

    def _resolve(self, reference: Reference) -> Row:
        _, index = reference
        return self._processes.table.see(index)

    def _on_lost(self) -> None:
        self._transport = None
        if self._watching is not None:
            self._watching.cancel()
        self.started_plans = 0
        if not self._is_stopping:
            asyncio.get_running_loop().create_task(self._report_end(self._pid))
        self._forget_calls(EngineStopped())
        self._lost.set()

    async def _report_end(self, pid: int) -> None:
        end = time.monotonic() + STATUS_WAIT_S
        while (status := self._processes.exit_status(pid)) is None and time.monotonic() < end:
            await asyncio.sleep(STATUS_WAIT_S / 50)
        name = None
        if status is not None and status < 0:
            name = signal.Signals(-status).name
        log.error("the engine's process has ended", pid=pid, status=status, signal=name)

    def _forget_calls(self, error: EngineStopped) -> None:
        calls, self._calls = self._calls, {}
        for pending in calls.values():
            if not pending.future.cancelled():
                pending.future.set_exception(error)

    async def _take(self, offer: ModelOffer, known: Mapping[str, LoadedModel]) -> LoadedModel:
        """Make a model of this process from one of the engine's."""
        if offer.latency_of in known:
            latency = known[cast(str, offer.latency_of)].latency
        else:
            latency = LatencyModel(new_row=self.new_row)
            latency.adopt(offer.measurements)
            await self._call("adopt", offer.model.pin, latency.rows)
        card = offer.model.card
        controllers = load_controllers(card.name, card.controllers)
        return replace(offer.model, latency=latency, controllers=controllers)


class _Receiver(asyncio.Protocol):
    """Passes messages on, and the end of the connection."""

    def __init__(self, receive: Callable[[int, bytes], None], on_lost: Callable[[], None]) -> None:
        self._reader = MessageReader()
        self._receive = receive
        self._on_lost = on_lost

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        for number, message in self._reader.feed(data):
            self._receive(number, message)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended."""
        self._on_lost()


def _offer(model: LoadedModel) -> ModelOffer:
    """A model as the engine that is started again needs it to load the same."""
    without = replace(model, latency=cast(LatencyModel, None), controllers={})
    return ModelOffer(without, model.latency.measurements, None)


def _is_same(known: LoadedModel, offer: ModelOffer) -> bool:
    """Whether a model that was loaded again is what it was, with the same backend."""
    one, other = known.backend, offer.model.backend
    return known.pin == offer.model.pin and (one.name, one.precision, one.device) == (
        other.name,
        other.precision,
        other.device,
    )
