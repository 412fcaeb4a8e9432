"""The models that are served now: loaded at the start, exchanged by reloads, released when old."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from lewm_serve.api.responses import ReloadReport
from lewm_serve.engine.engine import RELEASE_AFTER_S, release_freed_memory
from lewm_serve.errors import Draining
from lewm_serve.observability.logging import log
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.fallback import controller_names
from lewm_serve.planner.health import Monitor
from lewm_serve.registry.registry import VERSION_MARK, LoadedModel, Registry
from lewm_serve.settings import Settings
from lewm_serve.workers.worker import Worker

EXPIRY_SLACK_S = 0.1
"""Old models are dropped this much after their time, because timers may be early by a little."""


class ServedModels:
    """Holds the registry and exchanges it. Used only from the event loop.

    A version that is replaced or removed stays in the registry for `LEWM_KEEP_OLD_S`. Then, or when
    the last request that uses it has ended, its memory is released.

    Attributes:
        registry: the models that answer now; None before they are loaded.
        on_exchange: what is done before other models are served.
        on_release: what is done with the name and version of a model that is used no more.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, monitor: Monitor, worker: Worker
    ) -> None:
        self._settings = settings
        self._worker = worker
        self.on_exchange: Callable[[Registry], Awaitable[None]] = _do_nothing
        self.on_release: Callable[[str], None] = lambda pin: None
        self._metrics = metrics
        self._monitor = monitor
        self.registry: Registry | None = None
        self._turn = asyncio.Lock()
        self._running: asyncio.Task[ReloadReport] | None = None
        self._next: asyncio.Task[ReloadReport] | None = None
        self._shown: weakref.WeakSet[LoadedModel] = weakref.WeakSet()
        self._shown_labels: Counter[tuple[str, ...]] = Counter()

    async def load(self) -> None:
        """Load and warm up the models.

        Raises:
            ModelLoadError: a model, the default model or the device is not available.
            EngineStopped: the engine has died meanwhile.
        """
        self._exchange(Registry(await self._worker.load(), self._settings.default_model))

    async def load_again(self) -> None:
        """Load the models into an engine that has none, after its predecessor has died.

        Old versions are not served any more.

        Raises:
            ModelLoadError: a model, the default model or the device is not available.
            EngineStopped: the engine has died meanwhile.
        """
        async with self._turn:
            models = await self._worker.load(self.registry)
            registry = Registry(models, self._settings.default_model)
            self._exchange(registry)
            await self.on_exchange(registry)

    @property
    def device(self) -> str:
        """The device of the models."""
        assert self.registry is not None
        return self.registry.all()[0].backend.device

    async def reload(self) -> ReloadReport:
        """Read the model folders again, and serve what they hold.

        One reload runs at a time. A call during a reload waits for its end and starts another one,
        because the folders may have changed; all calls that wait share this one.

        Raises:
            Draining: the server stops.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._reload_in_turn())
        reload = self._next
        await asyncio.wait({reload})  # a caller that goes away does not cancel it
        if reload.cancelled():
            raise Draining
        return reload.result()

    def close(self) -> None:
        """Give up reloads: those who wait for them get `Draining`."""
        for reload in (self._running, self._next):
            if reload is not None:
                reload.cancel()

    async def _reload_in_turn(self) -> ReloadReport:
        async with self._turn:
            self._running, self._next = self._next, None
            assert self.registry is not None
            log.info("reading models again")
            try:
                reloaded = await self._worker.reload(self.registry)
            except Exception:
                log.exception("models not reloaded")  # whoever asked for it may have gone
                self._metrics.model_reloads_total.labels("failed").inc()
                raise
            keep_s = self._settings.keep_old_s
            until = time.monotonic() + keep_s if keep_s else -math.inf
            registry = self.registry.replaced(
                reloaded.models, self._settings.default_model, old_until=until
            )
            await self.on_exchange(registry)
            self._exchange(registry.without_expired(time.monotonic()))
            await self.on_exchange(self.registry)  # an engine may have started meanwhile
            loop = asyncio.get_running_loop()
            loop.call_later(keep_s + EXPIRY_SLACK_S, self._drop_expired)
        for model in reloaded.report:
            self._metrics.model_reloads_total.labels(model.result).inc()
            if model.result != "failed":  # failures were logged with their folder
                log.info("model reloaded", **vars(model))
        return ReloadReport(reloaded.report)

    def _drop_expired(self) -> None:
        assert self.registry is not None
        self.registry = self.registry.without_expired(time.monotonic())

    def _exchange(self, registry: Registry) -> None:
        """Serve these models from now on, and show their metrics."""
        self.registry = registry
        for model in registry.all():
            if model not in self._shown:
                self._show(model)
        self._monitor.watch(registry.all())

    def _show(self, model: LoadedModel) -> None:
        backend = model.backend
        labels = model.name, model.version, backend.name, backend.device, backend.precision
        self._shown.add(model)
        self._shown_labels[labels] += 1
        self._metrics.model_info.labels(*labels).set(1)
        self._metrics.add_fallback_controllers(model.name, controller_names(model))
        loop, this = asyncio.get_running_loop(), weakref.ref(self)
        weakref.finalize(model, _report_release, this, loop, labels).atexit = False

    def _release(self, pin: str) -> None:
        """Let engines forget a model, unless it is served with another backend now."""
        assert self.registry is not None
        if pin not in [model.pin for model in self.registry.loaded]:
            self.on_release(pin)

    def _on_released(self, labels: tuple[str, ...]) -> None:
        """Nothing uses a version any more."""
        self._shown_labels[labels] -= 1
        if not self._shown_labels[labels]:  # otherwise it was loaded again meanwhile
            self._metrics.model_info.remove(*labels)
            self._release(f"{labels[0]}{VERSION_MARK}{labels[1]}")
        log.info("model released", model=labels[0], version=labels[1])
        loop = asyncio.get_running_loop()
        # An engine in a thread may use the backend for a moment longer.
        loop.call_later(RELEASE_AFTER_S, loop.run_in_executor, None, release_freed_memory)


def _report_release(
    models: weakref.ref[ServedModels], loop: asyncio.AbstractEventLoop, labels: tuple[str, ...]
) -> None:
    """Tell the event loop that a model is no longer used. The last use may end on any thread."""
    served_models = models()
    if served_models is not None:
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(served_models._on_released, labels)


async def _do_nothing(_registry: Registry) -> None:
    """With one engine, there is nothing to prepare."""
