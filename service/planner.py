"""The one way a request takes, whichever transport brought it: latents, then the engine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Literal, TypeVar

import torch

from service.cache.memory import MemoryCache
from service.context import RequestContext
from service.engine.engine import Engine, EngineStopped, QueueFull
from service.engine.jobs import DeadlinePassed, Job, PlanJob, PlanOutcome, Prediction, PredictJob
from service.errors import (
    DeadlineExceeded,
    Draining,
    Failed,
    InvalidRequest,
    Loading,
    Overloaded,
    UnknownModel,
)
from service.latents import Latents, LatentSource
from service.metrics import Metrics
from service.monitor.health import assess
from service.planning.solvers import make_solver
from service.requests import EncodeRequest, PlanRequest, PredictRequest
from service.resolution import (
    check_fallback,
    check_frames,
    resolve_candidates,
    resolve_past,
    resolve_problem,
    resolve_solver,
)
from service.responses import (
    EncodedLatent,
    EncodeResponse,
    Health,
    LatentIds,
    ModelDescription,
    PlanResponse,
    PredictResponse,
    Timing,
)
from service.served import ModelLoadError, ServedModel, load_models, resolve_device
from service.settings import Settings

__all__ = ["ModelLoadError", "Planner"]

State = Literal["loading", "ready", "draining", "failed"]
R = TypeVar("R", PlanOutcome, Prediction)


class Planner:
    """Encode, predict and plan for both transports. Lives on the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._engine = Engine(
            settings.max_queue, lambda rows: metrics.batch_rows.labels("encode").observe(rows)
        )
        self._latents = LatentSource(
            self._engine,
            MemoryCache(settings.cache_entries, settings.cache_ttl_s),
            metrics,
            settings.max_pixels,
        )
        self._models: dict[str, ServedModel] = {}
        self._default: str | None = None
        self._ready = False
        self._draining = False
        metrics.active_plans.set_function(lambda: self._engine.active(PlanJob))
        for endpoint, count in self._queues().items():
            metrics.queued_requests.labels(endpoint).set_function(count)

    def _queues(self) -> dict[str, Callable[[], float]]:
        return {
            "encode": lambda: self._engine.waiting_encodes,
            "predict": lambda: self._engine.queued(PredictJob),
            "plan": lambda: self._engine.queued(PlanJob),
        }

    @property
    def state(self) -> State:
        """Where the planner is in its life."""
        if self._engine.failed:
            return "failed"
        if self._draining:
            return "draining"
        return "ready" if self._ready else "loading"

    async def start(self) -> None:
        """Load and warm up the models, start the engine.

        Raises:
            ModelLoadError: a model, the default or the device cannot be had.
        """
        if self._settings.threads is not None:
            torch.set_num_threads(self._settings.threads)
        device = resolve_device(self._settings.device)
        self._models = await asyncio.to_thread(load_models, self._settings.models, device)
        self._default = self._choose_default()
        for model in self._models.values():
            backend = model.backend
            labels = (model.name, model.version, backend.name, backend.device, backend.precision)
            self._metrics.model_info.labels(*labels).set(1)
        self._engine.start()
        self._ready = True

    def _choose_default(self) -> str | None:
        wanted = self._settings.default_model
        if wanted is not None and wanted not in self._models:
            known = ", ".join(self._models)
            raise ModelLoadError(f"LEWM_DEFAULT_MODEL is {wanted}: the models are {known}")
        return next(iter(self._models)) if len(self._models) == 1 else wanted

    def drain(self) -> None:
        """Refuse what comes from now on."""
        self._draining = True

    async def stop(self, grace_s: float) -> None:
        """Finish what was admitted, for ``grace_s`` seconds at most."""
        self._draining = True
        await asyncio.to_thread(self._engine.stop, grace_s)
        self._latents.close()

    def models(self) -> list[ModelDescription]:
        """All served models."""
        return [self._describe(model) for model in self._models.values()]

    def model(self, name: str) -> ModelDescription:
        """One served model; raises `UnknownModel`."""
        return self._describe(self._model(name))

    def _describe(self, model: ServedModel) -> ModelDescription:
        backend = model.backend
        return ModelDescription(
            model.name,
            model.version,
            model.name == self._default,
            backend.name,
            backend.device,
            backend.precision,
            model.card.to_json(),
        )

    def _model(self, name: str | None) -> ServedModel:
        match self.state:
            case "loading":
                raise Loading
            case "failed":
                raise Failed
        known = ", ".join(self._models)
        if name is None:
            if self._default is None:
                raise InvalidRequest("missing_field", "model", None, f"one of {known}")
            name = self._default
        if name not in self._models:
            raise UnknownModel(name, self._models)
        return self._models[name]

    def _admit(self, name: str | None) -> ServedModel:
        if self.state == "draining":
            raise Draining
        return self._model(name)

    async def encode(self, request: EncodeRequest, context: RequestContext) -> EncodeResponse:
        """Frames to latents."""
        model = self._admit(request.model)
        most = self._settings.max_frames
        if len(request.frames) > most:
            expected = f"at most {most} frames a request"
            raise InvalidRequest("out_of_range", "frames", len(request.frames), expected)
        fields = [f"frames[{index}]" for index in range(len(request.frames))]
        with _engine_errors(context):
            latents = await self._latents.latents(model, request.frames, fields)
        norms = latents.values.norm(dim=-1).tolist()
        encoded = zip(latents.values, latents.ids, norms, latents.cached, strict=True)
        return EncodeResponse(
            context.request_id,
            model.name,
            model.version,
            tuple(EncodedLatent(value.numpy(), *rest) for value, *rest in encoded),
            self._health(model, latents, len(request.frames)),
            _timing(context, latents),
        )

    async def predict(self, request: PredictRequest, context: RequestContext) -> PredictResponse:
        """Frames and actions to predicted latents."""
        model = self._admit(request.model)
        check_frames(model, len(request.frames))
        past = resolve_past(model, request.past_actions, len(request.frames))
        field, rows = "candidates", request.candidates
        if rows is None:
            assert request.actions is not None
            field, rows = "actions", request.actions[None]
        candidates = resolve_candidates(model, field, rows, self._settings)
        fields = [f"frames[{index}]" for index in range(len(request.frames))]
        with _engine_errors(context):
            latents = await self._latents.latents(model, request.frames, fields)
            job = PredictJob(model.backend, latents.values, past, candidates, context.deadline)
            predicted: Prediction = await self._run(job)
        values = predicted.latents.numpy()
        return PredictResponse(
            context.request_id,
            model.name,
            model.version,
            values if request.candidates is not None else values[0],
            self._health(model, latents, len(request.frames)),
            _timing(context, latents, predicted),
        )

    async def plan(self, request: PlanRequest, context: RequestContext) -> PlanResponse:
        """Frames and a goal to actions."""
        model = self._admit(request.model)
        check_fallback(request.fallback)
        check_frames(model, len(request.frames))
        past = resolve_past(model, request.past_actions, len(request.frames))
        settings = resolve_solver(model, request.solver, self._settings)
        problem = resolve_problem(model, settings, request.warm_start)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        fields = [*(f"frames[{index}]" for index in range(len(request.frames))), "goal"]
        with _engine_errors(context):
            latents = await self._latents.latents(model, (*request.frames, request.goal), fields)
            job = PlanJob(
                model.backend,
                make_solver(settings, problem, seed),
                latents.values[:-1],
                past,
                latents.values[-1],
                request.priority,
                _deadline(request, context),
                "trajectory" in request.include,
            )
            outcome: PlanOutcome = await self._run(job)
        self._count(model, outcome, len(request.frames))
        return PlanResponse(
            request_id=context.request_id,
            model=model.name,
            model_version=model.version,
            backend=model.backend.name,
            precision=model.backend.precision,
            actions=model.to_rows(outcome.actions),
            action_block=model.card.config.action_block,
            cost=outcome.cost,
            status=outcome.status,
            iterations=outcome.iterations,
            candidates=outcome.candidates,
            solver=asdict(settings),
            seed=seed,
            latent_ids=LatentIds(latents.ids[:-1], latents.ids[-1]),
            health=self._health(model, latents, len(request.frames)),
            fallback=None,
            timing_ms=_timing(context, latents, outcome),
            trajectory=None if outcome.trajectory is None else outcome.trajectory.numpy(),
        )

    async def _run(self, job: Job) -> R:
        outcome: R = await asyncio.wrap_future(self._engine.submit(job))
        self._metrics.stage_duration.labels("queue").observe(outcome.queue_s)
        self._metrics.stage_duration.labels("solve").observe(outcome.solve_s)
        return outcome

    def _count(self, model: ServedModel, outcome: PlanOutcome, context: int) -> None:
        config, horizon = model.card.config, len(outcome.actions)
        windows = (min(config.history, step) for step in range(context, context + horizon))
        self._metrics.plan_status_total.labels(outcome.status).inc()
        self._metrics.plan_iterations.observe(outcome.iterations)
        self._metrics.candidates_total.inc(outcome.candidates)
        self._metrics.predictor_tokens_total.inc(outcome.candidates * sum(windows))

    def _health(self, model: ServedModel, latents: Latents, count: int) -> Health:
        """The health of the request's own ``count`` frames; a goal is not one of them."""
        own = latents.values[:count]
        health = assess(model.card.calibration, own)
        for norm in own.norm(dim=-1).tolist():
            self._metrics.latent_norm.labels(model.name).observe(norm)
        if health.latent_norm_zscore is not None:
            self._metrics.latent_norm_zscore.labels(model.name).set(health.latent_norm_zscore)
        if health.status == "anomalous":
            self._metrics.anomalies_total.labels(model.name, "norm").inc()
        return health


def _deadline(request: PlanRequest, context: RequestContext) -> float | None:
    own = None if request.deadline_ms is None else context.received + request.deadline_ms / 1000
    given = [deadline for deadline in (own, context.deadline) if deadline is not None]
    return min(given, default=None)


def _timing(
    context: RequestContext, latents: Latents, work: PlanOutcome | Prediction | None = None
) -> Timing:
    queue_s, solve_s = (0.0, 0.0) if work is None else (work.queue_s, work.solve_s)
    total_s = time.monotonic() - context.received
    seconds = (queue_s, latents.decode_s, latents.encode_s, solve_s, total_s)
    return Timing(*(1000 * value for value in seconds))


@contextmanager
def _engine_errors(context: RequestContext) -> Iterator[None]:
    """What the engine refuses, in the client's terms."""
    try:
        yield
    except QueueFull as error:
        raise Overloaded(error.retry_after_s) from None
    except EngineStopped:
        raise Draining from None
    except DeadlinePassed:
        waited = 1000 * (time.monotonic() - context.received)
        raise DeadlineExceeded(
            f"no iteration could be done within the deadline ({waited:.0f} ms since arrival)"
        ) from None
