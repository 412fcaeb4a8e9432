"""The engines: which of them does the work of a request, and what happens when one of them dies."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

from lewm_serve.engine.admission import Admission
from lewm_serve.engine.engine import EngineStopped
from lewm_serve.engine.latency_model import RolloutShape
from lewm_serve.engine.scheduler import Batch
from lewm_serve.observability.logging import log
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.served_models import ServedModels
from lewm_serve.registry.registry import LoadedModel, ModelLoadError, Registry
from lewm_serve.workers.worker import Placement, Worker

MAX_RESTARTS, RESTART_WINDOW_S = 5, 60.0
"""After this many restarts within this time, or in a row without success, an engine is not started
again."""

LOAD_LIMIT, MIN_LOAD_LIMIT_S = 10, 60.0
"""A restart may take this many times as long as the start before, and at least so many seconds."""

RETRY_S = 1.0
"""How long an attempt to start an engine waits after one that failed."""

SAME_END_S = 1e-3
"""Engines that are expected to be free at nearly the same time count as equal."""

EngineState = Literal["loading", "up", "restarting", "failed"]


class SupervisedEngine:
    """One engine as the planner sees it: its queue, its models, and its life.

    Attributes:
        worker: where it runs.
        admission: what waits for it.
        state: what it does.
        pins: the models that it holds, by name and version.
        copies: its own copies of them. The first engine has none: it holds the served models.
        device: its device, for metrics.
        load_s: how long it took to start.
        lost_at: when it died last.
        failed_starts: how often it was started since it was up.
    """

    def __init__(self, worker: Worker, max_queue: int) -> None:
        self.worker = worker
        self.admission = Admission(
            max_queue, free_at=lambda: worker.free_at, new_row=worker.new_row
        )
        self.state: EngineState = "loading"
        self.pins: set[str] = set()
        self.copies: dict[str, LoadedModel] = {}
        self.device = worker.device
        self.load_s = 0.0
        self.lost_at = 0.0
        self.failed_starts = 0
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)

    @property
    def retry_after_s(self) -> float:
        """In how many seconds it is expected to run again."""
        return max(0.0, self.lost_at + self.load_s - time.monotonic())

    def may_restart(self) -> bool:
        """Whether it may be started again; that is counted."""
        now = time.monotonic()
        is_often = len(self._restarts) == MAX_RESTARTS
        if is_often and now - self._restarts[0] < RESTART_WINDOW_S:
            return False
        self._restarts.append(now)
        self.failed_starts += 1
        return self.worker.can_restart and self.failed_starts <= MAX_RESTARTS

    def end_s(self, model: LoadedModel) -> float:
        """In how many seconds a usual plan of a model would end here."""
        latency, solver = self.copies.get(model.pin, model).latency, model.card.solver
        plan_s = solver.iterations * latency.rollout_s(solver.samples, RolloutShape(solver.horizon))
        return self.admission.work_s() + plan_s


class Engines:
    """All engines of the server. Used only from the event loop.

    The first engine reads the model folders, and its models are those that the server describes.
    The others load the same versions.
    """

    def __init__(
        self, workers: Sequence[Worker], models: ServedModels, metrics: Metrics, max_queue: int
    ) -> None:
        self._engines = [SupervisedEngine(worker, max_queue) for worker in workers]
        self._first = self._engines[0]
        self._models = models
        self._metrics = metrics
        self._changed = asyncio.Condition()
        self._supervised: dict[SupervisedEngine, asyncio.Task[None]] = {}
        models.on_exchange = self._hold_exchanged
        models.on_release = self._release
        metrics.active_plans.set_function(
            lambda: sum(engine.worker.started_plans for engine in self._engines)
        )
        metrics.dropped_log_lines_of_engine = lambda: sum(
            engine.worker.dropped_log_lines for engine in self._engines
        )

    @property
    def state(self) -> EngineState:
        """`up` if any engine is up, and `failed` if all of them have failed."""
        states = [engine.state for engine in self._engines]
        order: tuple[EngineState, ...] = ("up", "restarting", "loading", "failed")
        return next(state for state in order if state in states)

    @property
    def retry_after_s(self) -> float:
        """In how many seconds an engine is expected to run again."""
        restarting = [engine for engine in self._engines if engine.state == "restarting"]
        return min((engine.retry_after_s for engine in restarting), default=0.0)

    @property
    def is_idle(self) -> bool:
        """Whether no request is admitted."""
        return not any(len(engine.admission) for engine in self._engines)

    def place(self, model: LoadedModel, client: str) -> Placement:
        """The engine that is expected to be free first, of those that are up and hold the model.

        Of equal engines, a client always gets the same one. If none is up, the result is one that
        takes no work.
        """
        engines = [
            engine for engine in self._engines if engine.state == "up" and model.pin in engine.pins
        ] or [self._first]
        if len(engines) > 1:
            ends_s = [engine.end_s(model) for engine in engines]
            latest_s = min(ends_s) + SAME_END_S
            engines = [
                engine for engine, end_s in zip(engines, ends_s, strict=True) if end_s <= latest_s
            ]
        engine = engines[hash(client) % len(engines)]
        held = engine.copies.get(model.pin, model)
        return Placement(engine.worker, engine.admission, held.backend, held.latency)

    def take_batches(self) -> Iterator[Batch]:
        """The batches that ran since the last call."""
        for engine in self._engines:
            yield from engine.worker.take_batches()

    async def start(self) -> None:
        """Start the engines and load the models.

        Raises:
            ModelLoadError: a model, the default model or the device is not available.
        """
        try:
            started = time.monotonic()
            await self._models.load()
            self._first.load_s = time.monotonic() - started
            self._first.pins = {model.pin for model in self._registry.all()}
            if self._first.device == "auto":
                self._first.device = self._models.device
            await self._come_up(self._first)
            await asyncio.gather(*(self._start_beside(engine) for engine in self._engines[1:]))
        except EngineStopped:
            raise ModelLoadError("the engine's process ended while it loaded the models") from None

    async def _start_beside(self, engine: SupervisedEngine) -> None:
        """Start another engine than the first, with the models that are served."""
        started = time.monotonic()
        models = list((await engine.worker.load(self._registry)).values())
        engine.pins = {model.pin for model in models}
        engine.copies = {model.pin: model for model in models}
        await self._hold(engine, self._registry)  # the folders may have changed meanwhile
        engine.load_s = time.monotonic() - started
        await self._come_up(engine)

    async def _come_up(self, engine: SupervisedEngine) -> None:
        engine.failed_starts = 0
        await self._change(engine, "up")
        if engine not in self._supervised:
            worker = engine.worker
            self._metrics.engine_memory.labels(engine.device).set_function(
                lambda: worker.memory_bytes
            )
            self._metrics.engine_processor.labels(engine.device).set_function(
                lambda: worker.processor_s
            )
            self._supervised[engine] = asyncio.create_task(self._supervise(engine))

    @property
    def _registry(self) -> Registry:
        assert self._models.registry is not None
        return self._models.registry

    async def stop(self) -> None:
        """Stop all engines. What they have not finished gets `EngineStopped`."""
        self.close()
        for engine in self._engines:
            await engine.worker.stop()

    def close(self) -> None:
        """Do not start engines again."""
        for supervising in self._supervised.values():
            supervising.cancel()

    async def wait_until(self, *states: EngineState) -> None:
        """Wait for one of these states; see `state`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state in states)

    async def _change(self, engine: SupervisedEngine, state: EngineState) -> None:
        engine.state = state
        self._metrics.engine_up.labels(engine.device).set(state == "up")
        self._metrics.engine_restarts.labels(engine.device)
        async with self._changed:
            self._changed.notify_all()

    async def _supervise(self, engine: SupervisedEngine) -> None:
        """Start an engine again whenever it dies."""
        while True:
            await engine.worker.wait_lost()
            engine.lost_at = time.monotonic()
            engine.pins, engine.copies = set(), {}
            if not engine.may_restart():
                log.error(
                    "the engine is not started again; the server must be restarted",
                    device=engine.device,
                )
                await self._change(engine, "failed")
                return
            await self._change(engine, "restarting")
            self._metrics.engine_restarts.labels(engine.device).inc()
            await self._restart(engine)

    async def _restart(self, engine: SupervisedEngine) -> None:
        """Start an engine. If that fails, it is lost again."""
        try:
            async with asyncio.timeout(max(MIN_LOAD_LIMIT_S, LOAD_LIMIT * engine.load_s)):
                if engine is self._first:
                    await self._models.load_again()
                    await self._come_up(engine)
                else:
                    await self._start_beside(engine)
        except EngineStopped:
            return
        except Exception as error:
            log.error(
                "models not loaded by the new engine", device=engine.device, reason=repr(error)
            )
            await asyncio.sleep(RETRY_S)
            engine.worker.end()
            return
        engine.load_s = time.monotonic() - engine.lost_at
        log.info("engine restarted", device=engine.device, seconds=round(engine.load_s, 2))

    async def _hold_exchanged(self, registry: Registry) -> None:
        """Let all engines hold the models of a registry.

        An engine that cannot load one does no work of this model.
        """
        self._first.pins |= {model.pin for model in registry.all()}
        for engine in self._engines[1:]:
            if engine.state == "up":
                await self._hold(engine, registry)

    async def _hold(self, engine: SupervisedEngine, registry: Registry) -> None:
        """Let an engine load what it lacks of a registry."""
        missing = {
            folder: model
            for folder, model in registry.by_folder.items()
            if model.pin not in engine.pins
        }
        if not missing:
            return
        try:
            added = await engine.worker.load_more(missing)
        except Exception as error:
            log.error("models not loaded", device=engine.device, reason=str(error))
        else:
            engine.pins |= added.keys()
            engine.copies |= added

    def _release(self, pin: str) -> None:
        """Let all engines forget a model that is used no more."""
        for engine in self._engines:
            engine.pins.discard(pin)
            engine.copies.pop(pin, None)
            engine.worker.release(pin)
