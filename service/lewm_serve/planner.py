"""The one way a request takes, whichever transport brought it: latents, then the engine."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Literal

from lewm_serve.cache.tiers import LatentCache
from lewm_serve.context import RequestContext
from lewm_serve.engine.admission import Admission
from lewm_serve.engine.engine import Engine
from lewm_serve.engine.jobs import PlanJob, Prediction, PredictJob
from lewm_serve.engine.pace import Shape
from lewm_serve.engine.scheduler import Scheduler
from lewm_serve.engine.ticket import Ticket
from lewm_serve.entrance import Entrance
from lewm_serve.errors import Draining, Failed, InvalidRequest, Loading
from lewm_serve.fallbacks.fallback import NONE, controllers_of
from lewm_serve.latents import LatentSource, fields_of, unseen
from lewm_serve.metrics import INFERENCE_ENDPOINTS, Metrics
from lewm_serve.monitor.monitor import Monitor
from lewm_serve.plans import Plans
from lewm_serve.registry import Registry
from lewm_serve.requests import EncodeRequest, PlanRequest, PredictRequest
from lewm_serve.resolution import check_frames, resolve_candidates, resolve_past
from lewm_serve.responses import (
    EncodedLatent,
    EncodeResponse,
    ModelDescription,
    PlanResponse,
    PredictResponse,
)
from lewm_serve.runner import Runner, timing
from lewm_serve.served import ServedModel
from lewm_serve.settings import Settings

State = Literal["loading", "ready", "draining", "failed"]


class Planner:
    """Encode, predict and plan for both transports. Lives on the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        scheduler = Scheduler(on_batch=self._count_batch)
        self._engine = Engine(scheduler)
        admission = Admission(settings.max_queue, free_at=lambda: scheduler.free_at)
        self._entrance = Entrance(self._engine, admission)
        self._cache = LatentCache.of(settings, metrics)
        self._latents = LatentSource(self._engine, self._cache, metrics, settings.max_pixels)
        self._runner = Runner(self._engine, metrics, settings.default_deadline_ms / 1000)
        self._monitor = Monitor(metrics)
        self._plans = Plans(
            settings, metrics, self._entrance, self._latents, self._runner, self._monitor
        )
        self._registry: Registry | None = None
        for endpoint in INFERENCE_ENDPOINTS:
            waiting = partial(self._entrance.waiting, endpoint)
            metrics.queued_requests.labels(endpoint).set_function(waiting)
        metrics.active_plans.set_function(lambda: scheduler.active(PlanJob))
        metrics.engine_up.set_function(lambda: not self._engine.failed)

    @property
    def state(self) -> State:
        """Where the planner is in its life."""
        if self._engine.failed:
            return "failed"
        if self._entrance.closed:
            return "draining"
        return "loading" if self._registry is None else "ready"

    async def start(self) -> None:
        """Load and warm up the models, start the engine.

        Raises:
            ModelLoadError: a model, the default or the device cannot be had.
        """
        self._cache.start()
        registry = await asyncio.to_thread(Registry.load, self._settings)
        for model in registry.all():
            backend = model.backend
            labels = (model.name, model.version, backend.name, backend.device, backend.precision)
            self._metrics.model_info.labels(*labels).set(1)
            self._monitor.watch(model)
            self._metrics.show_fallbacks(model.name, controllers_of(model))
        self._engine.start()
        self._registry = registry

    def drain(self) -> None:
        """Refuse what comes from now on."""
        self._entrance.closed = True

    async def stop(self, grace_s: float) -> None:
        """Finish what was admitted, for ``grace_s`` seconds at most."""
        self._entrance.closed = True
        await self._entrance.empty(grace_s)
        await asyncio.to_thread(self._engine.stop, 0)
        self._latents.close()
        await self._cache.close()

    def models(self) -> list[ModelDescription]:
        """All served models; raises `Loading` or `Failed`."""
        registry = self._loaded()
        return [registry.describe(model) for model in registry.all()]

    def model(self, name: str) -> ModelDescription:
        """One served model; raises `UnknownModel`, `Loading` or `Failed`."""
        registry = self._loaded()
        return registry.describe(registry.get(name))

    def label(self, asked: object) -> str | None:
        """The model that a request asks for, as logs call it, once models are loaded.

        See `Registry.label`.
        """
        return None if self._registry is None else self._registry.label(asked)

    def _loaded(self, *, even_failed: bool = False) -> Registry:
        if self._engine.failed and not even_failed:
            raise Failed
        if self._registry is None:
            raise Loading
        return self._registry

    def _serving(self, name: str | None, *, even_failed: bool = False) -> ServedModel:
        """The model of a request; raises `Draining` or as `model` does.

        ``even_failed``: the request can be answered without an engine.
        """
        if self._entrance.closed:
            raise Draining
        return self._loaded(even_failed=even_failed).get(name)

    async def encode(self, request: EncodeRequest, context: RequestContext) -> EncodeResponse:
        """Frames to latents."""
        model = self._serving(request.model)
        most = self._settings.max_frames
        if len(request.frames) > most:
            expected = f"at most {most} frames a request"
            raise InvalidRequest("out_of_range", "frames", len(request.frames), expected)
        ticket = Ticket(
            model.pace,
            context.received,
            deadline=context.until(),
            frames=unseen(request.frames),
        )
        with self._entrance.admitted(ticket, context):
            latents = await self._latents.latents(model, request.frames, fields_of(request.frames))
        scores = self._monitor.score(model, latents.values)
        values, cached = latents.values.numpy(), latents.cached
        encoded = zip(values, latents.ids, scores.norms, cached, scores.zscores, strict=True)
        return EncodeResponse(
            context.request_id,
            model.name,
            model.version,
            tuple(EncodedLatent(*each) for each in encoded),
            self._monitor.assess(model, scores, fresh=len(request.frames)),
            timing(context, latents),
        )

    async def predict(self, request: PredictRequest, context: RequestContext) -> PredictResponse:
        """Frames and actions to predicted latents."""
        model = self._serving(request.model)
        check_frames(model, len(request.frames))
        past = resolve_past(model, request.past_actions, len(request.frames))
        candidates = resolve_candidates(model, request, self._settings)
        ticket = Ticket(
            model.pace,
            context.received,
            deadline=context.until(),
            patience_s=self._runner.patience_s,
            frames=unseen(request.frames),
            rows=(len(candidates),),
            shape=Shape(candidates.shape[1], len(request.frames)),
        )
        with self._entrance.admitted(ticket, context):
            latents = await self._latents.latents(model, request.frames, fields_of(request.frames))
            ticket.frames = 0
            job = PredictJob(model.backend, ticket, latents.values, past, candidates)
            predicted: Prediction = await self._runner.outcome(self._runner.submit(job))
        values = predicted.latents.numpy()
        scores = self._monitor.score(model, latents.values)
        return PredictResponse(
            context.request_id,
            model.name,
            model.version,
            values if request.candidates is not None else values[0],
            self._monitor.assess(model, scores, scores.surprise(predicted.expected)),
            timing(context, latents, predicted),
        )

    async def plan(self, request: PlanRequest, context: RequestContext) -> PlanResponse:
        """Frames and a goal to actions: those of the search, or of the request's fallback."""
        wanted = request.fallback.controller
        model = self._serving(request.model, even_failed=wanted != NONE)
        return await self._plans.plan(model, request, context)

    def _count_batch(self, kind: str, rows: int) -> None:
        self._metrics.batch_rows.labels(kind).observe(rows)
