"""Encode, predict and plan: the path of a request, whichever transport brought it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from lewm_serve.api.context import RequestContext
from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest
from lewm_serve.api.responses import (
    EncodedLatent,
    EncodeResponse,
    FallbackReport,
    FloatArray,
    Health,
    LatentIds,
    ModelDescription,
    PlanResponse,
    PredictResponse,
    Timing,
)
from lewm_serve.constants import (
    INFERENCE_ENDPOINTS,
    Endpoint,
    FallbackReason,
    PlanStatus,
    ServerState,
)
from lewm_serve.engine.admission import (
    Admission,
    DeadlinePassed,
    QueuedRequest,
    QueueTooLong,
)
from lewm_serve.engine.engine import Engine, EngineStopped
from lewm_serve.engine.jobs import PlanJob, PlanOutcome, Prediction, PredictJob, Search
from lewm_serve.engine.latency_model import RolloutShape
from lewm_serve.engine.scheduler import Scheduler
from lewm_serve.errors import DeadlineExceeded, Draining, Failed, Loading, Overloaded
from lewm_serve.frames.latent_cache import LatentCache
from lewm_serve.frames.latent_source import (
    FrameLatents,
    LatentSource,
    count_images,
    frame_fields,
)
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.fallback import (
    NO_FALLBACK,
    AnomalousFrames,
    controller_names,
    fallback_reason,
    finish_in_time,
    prepare_fallback,
    search_deadline,
)
from lewm_serve.planner.health import LatentScores, Monitor
from lewm_serve.planner.validation import validate_encode, validate_plan, validate_predict
from lewm_serve.registry.registry import LoadedModel, Registry
from lewm_serve.settings import Settings
from lewm_serve.solvers import SOLVERS

EngineResult = TypeVar("EngineResult", PlanOutcome, Prediction)


class Planner:
    """Answers the requests of all transports. Lives on the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        scheduler = Scheduler()
        self._engine = Engine(scheduler)
        self._admission = Admission(settings.max_queue, free_at=lambda: scheduler.free_at)
        self._cache = LatentCache.from_settings(settings, metrics)
        self._latents = LatentSource(self._engine, self._cache, metrics, settings.max_pixels)
        self._monitor = Monitor(metrics)
        self._registry: Registry | None = None
        self._draining = False
        self._admitted_by_endpoint: dict[Endpoint, set[QueuedRequest]] = defaultdict(set)
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        for endpoint in INFERENCE_ENDPOINTS:
            queued = partial(self._count_queued, endpoint)
            metrics.queued_requests.labels(endpoint).set_function(queued)
        metrics.active_plans.set_function(lambda: self._engine.started_jobs(PlanJob))
        metrics.engine_up.set_function(lambda: not self._engine.failed)

    @property
    def state(self) -> ServerState:
        """Where the planner is in its life."""
        if self._engine.failed:
            return "failed"
        if self._draining:
            return "draining"
        return "loading" if self._registry is None else "ready"

    async def start(self) -> None:
        """Load and warm up the models, and start the engine.

        Raises:
            ModelLoadError: a model, the default model or the device is not available.
        """
        self._cache.start()
        registry = await asyncio.to_thread(Registry.load, self._settings)
        for model in registry.all():
            backend = model.backend
            self._metrics.model_info.labels(
                model=model.name,
                version=model.version,
                backend=backend.name,
                device=backend.device,
                precision=backend.precision,
            ).set(1)
            self._metrics.add_fallback_controllers(model.name, controller_names(model))
            self._monitor.watch(model)
        self._engine.start()
        self._registry = registry

    def drain(self) -> None:
        """Refuse requests from now on."""
        self._draining = True

    async def stop(self, grace_s: float) -> None:
        """Finish the admitted requests, for at most ``grace_s`` seconds, and stop."""
        self.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_empty.wait(), grace_s)
        await asyncio.to_thread(self._engine.stop, 0)
        self._latents.close()
        await self._cache.close()

    async def wait_failed(self) -> None:
        """Wait until the engine fails."""
        await asyncio.wrap_future(self._engine.death)

    def count_batches(self) -> None:
        """Count the batches that the engine has run since the last call."""
        for batch in self._engine.drain_batches():
            self._metrics.batch_rows.labels(batch.kind).observe(batch.rows)

    def models(self) -> list[ModelDescription]:
        """All models.

        Raises:
            Loading, Failed: the planner cannot answer.
        """
        registry = self._loaded_registry()
        return [registry.describe(model) for model in registry.all()]

    def model(self, name: str) -> ModelDescription:
        """One model.

        Raises:
            UnknownModel: there is none of this name.
            Loading, Failed: the planner cannot answer.
        """
        registry = self._loaded_registry()
        return registry.describe(registry.get(name))

    def log_label(self, requested_model: object) -> str | None:
        """What log lines call the model of a request; see `Registry.log_label`."""
        return None if self._registry is None else self._registry.log_label(requested_model)

    async def encode(self, request: EncodeRequest, context: RequestContext) -> EncodeResponse:
        """The latents of frames."""
        model = self._model(request.model)
        validate_encode(request, self._settings)
        queued = QueuedRequest(
            model.latency,
            context.received,
            deadline=context.earliest_deadline(),
            frames=count_images(request.frames),
        )
        with self._admitted(queued, context):
            fields = frame_fields(request.frames)
            latents = await self._latents.latents(model, request.frames, fields, queued)
        scores = self._monitor.score(model, latents.values)
        health = self._monitor.assess(model, scores, new_frames=len(request.frames))
        values = latents.values.numpy()
        return EncodeResponse(
            request_id=context.request_id,
            model=model.name,
            model_version=model.version,
            latents=tuple(
                EncodedLatent(
                    latent=values[index],
                    latent_id=latents.ids[index],
                    norm=scores.norms[index],
                    cached=latents.cached[index],
                    norm_zscore=scores.zscores[index],
                )
                for index in range(len(values))
            ),
            health=health,
            timing_ms=_timing(context, latents),
        )

    async def predict(self, request: PredictRequest, context: RequestContext) -> PredictResponse:
        """The latents that follow from frames and actions."""
        model = self._model(request.model)
        inputs = validate_predict(model, request, self._settings)
        frames, candidates = request.frames, inputs.candidates
        queued = QueuedRequest(
            model.latency,
            context.received,
            deadline=context.earliest_deadline(),
            queue_deadline_s=self._settings.default_deadline_ms / 1000,
            frames=count_images(frames),
            candidates=(len(candidates),),
            shape=RolloutShape(horizon=candidates.shape[1], context=len(frames)),
        )
        with self._admitted(queued, context):
            latents = await self._latents.latents(model, frames, frame_fields(frames), queued)
            queued.frames = 0
            job = PredictJob(
                backend=model.backend,
                request=queued,
                latents=latents.values,
                past_actions=inputs.past_actions,
                candidates=candidates,
            )
            prediction: Prediction = await self._result(self._engine.submit(job))
        scores = self._monitor.score(model, latents.values)
        health = self._monitor.assess(model, scores, surprise=prediction.surprise)
        predicted = prediction.latents.numpy()
        return PredictResponse(
            request_id=context.request_id,
            model=model.name,
            model_version=model.version,
            latents=predicted if request.candidates is not None else predicted[0],
            health=health,
            timing_ms=_timing(context, latents, prediction),
        )

    async def plan(self, request: PlanRequest, context: RequestContext) -> PlanResponse:
        """Actions that lead from the frames to the goal, or those of the request's fallback."""
        needs_engine = request.fallback.controller == NO_FALLBACK
        model = self._model(request.model, needs_engine=needs_engine)
        inputs = validate_plan(model, request, self._settings)
        rows = inputs.solver.horizon * model.card.config.action_block
        fallback = prepare_fallback(model, request.fallback, request.warm_start, rows)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        solver = SOLVERS[inputs.solver.name]
        deadline = context.earliest_deadline(request.deadline_ms)
        frames, frame_count = (*request.frames, request.goal), len(request.frames)
        queued = QueuedRequest(
            model.latency,
            context.received,
            deadline=deadline if fallback is None else search_deadline(deadline),
            priority=request.priority,
            queue_deadline_s=self._settings.default_deadline_ms / 1000,
            frames=count_images(frames),
            candidates=solver.candidates_per_ask(inputs.solver),
            shape=RolloutShape(inputs.solver.horizon, frame_count, inputs.solver.name),
            min_iterations=request.min_iterations,
        )
        wait_for = partial(
            finish_in_time, request=queued, answer_by=None if fallback is None else deadline
        )
        latents: FrameLatents | None = None
        scores: LatentScores | None = None
        health: Health | None = None
        outcome: PlanOutcome | None = None
        reason: FallbackReason | None = None
        try:
            with self._admitted(queued, context):
                fields = (*frame_fields(request.frames), "goal")
                latents = await wait_for(self._latents.latents(model, frames, fields, queued))
                queued.frames = 0
                if fallback is not None:
                    scores = self._monitor.score(model, latents.values, frame_count)
                    if scores.anomalies:
                        raise AnomalousFrames
                search = self._engine.submit(
                    PlanJob(
                        backend=model.backend,
                        request=queued,
                        latents=latents.values[:-1],
                        past_actions=inputs.past_actions,
                        goal=latents.values[-1],
                        search=Search(inputs.solver, inputs.problem, seed),
                        with_trajectory="trajectory" in request.include,
                        max_surprise=None if fallback is None else model.max_surprise,
                    )
                )
                if frame_count == 1:
                    # One frame has no surprise. Its health is assessed while the engine searches.
                    health = self._plan_health(model, latents, frame_count, scores)
                outcome = await wait_for(self._result(search))
                assert outcome is not None
                if outcome.status == "anomalous":
                    raise AnomalousFrames
        except Exception as error:
            if fallback is None:
                raise
            reason = fallback_reason(error, context.request_id)
        finally:
            # The health metrics count the frames, whatever became of the search.
            if health is None:
                health = self._plan_health(model, latents, frame_count, scores, outcome)

        report: FallbackReport | None = None
        trajectory: FloatArray | None = None
        status: PlanStatus
        if fallback is not None and reason is not None:
            actions, status = fallback.actions, "fallback"
            report = FallbackReport(fallback.controller, reason)
        else:
            assert outcome is not None  # otherwise there is a reason
            assert outcome.status != "anomalous"
            assert outcome.actions is not None
            actions, status = model.to_rows(outcome.actions), outcome.status
            if outcome.trajectory is not None:
                trajectory = outcome.trajectory.numpy()
        self._count_plan(model, queued.shape, status=status, outcome=outcome, report=report)
        return PlanResponse(
            request_id=context.request_id,
            model=model.name,
            model_version=model.version,
            backend=model.backend.name,
            precision=model.backend.precision,
            actions=actions,
            action_block=model.card.config.action_block,
            cost=None if outcome is None else outcome.cost,
            status=status,
            iterations=0 if outcome is None else outcome.iterations,
            candidates=0 if outcome is None else outcome.candidates,
            solver=solver.resolved(inputs.solver),
            seed=seed,
            latent_ids=None if latents is None else LatentIds(latents.ids[:-1], latents.ids[-1]),
            health=health,
            fallback=report,
            timing_ms=_timing(context, latents, outcome),
            trajectory=trajectory,
        )

    def _loaded_registry(self, *, needs_engine: bool = True) -> Registry:
        if self._engine.failed and needs_engine:
            raise Failed
        if self._registry is None:
            raise Loading
        return self._registry

    def _model(self, name: str | None, *, needs_engine: bool = True) -> LoadedModel:
        """The model of a request. ``needs_engine``: nothing else can answer the request."""
        if self._draining:
            raise Draining
        return self._loaded_registry(needs_engine=needs_engine).get(name)

    @contextmanager
    def _admitted(self, queued: QueuedRequest, context: RequestContext) -> Iterator[None]:
        """Admit a request before any work is done for it. It leaves at the end of the block.

        Errors of the engine become errors for clients.

        Raises:
            ServiceError: the request is not admitted, or its work failed.
        """
        if self._draining:
            raise Draining
        try:
            self._admission.admit(queued)
        except QueueTooLong as error:
            raise Overloaded(error.retry_after_s, str(error)) from None
        except DeadlinePassed:
            raise _deadline_exceeded(context) from None
        admitted = self._admitted_by_endpoint[context.endpoint]
        admitted.add(queued)
        self._is_empty.clear()
        try:
            yield
        except EngineStopped:
            raise (Failed if self._engine.failed else Draining) from None
        except DeadlinePassed:
            raise _deadline_exceeded(context) from None
        finally:
            admitted.remove(queued)
            self._admission.leave(queued)
            if not self._admission:
                self._is_empty.set()
            self.count_batches()

    def _count_queued(self, endpoint: Endpoint) -> int:
        """Admitted requests whose search the engine has not started; encodes until they end."""
        return sum(not queued.started for queued in tuple(self._admitted_by_endpoint[endpoint]))

    async def _result(self, future: Future[EngineResult]) -> EngineResult:
        """Wait for a job. Cancelling this coroutine drops the job."""
        result: EngineResult = await asyncio.wrap_future(future)
        self._metrics.stage_duration.labels("queue").observe(result.queue_s)
        self._metrics.stage_duration.labels("solve").observe(result.solve_s)
        return result

    def _plan_health(
        self,
        model: LoadedModel,
        latents: FrameLatents | None,
        frames: int,
        scores: LatentScores | None,
        outcome: PlanOutcome | None = None,
    ) -> Health:
        """The health of a plan's frames, counted; `unknown` if their latents are not known."""
        if latents is None:
            reasons = ("a fallback answered before the frames were seen",)
            return Health(status="unknown", reasons=reasons)
        if scores is None:
            scores = self._monitor.score(model, latents.values, frames)
        surprise = None if outcome is None else outcome.surprise
        return self._monitor.assess(model, scores, surprise=surprise)

    def _count_plan(
        self,
        model: LoadedModel,
        shape: RolloutShape,
        *,
        status: PlanStatus,
        outcome: PlanOutcome | None,
        report: FallbackReport | None,
    ) -> None:
        metrics = self._metrics
        if outcome is not None and outcome.actions is not None:
            history = model.card.config.history
            steps = range(shape.context, shape.context + shape.horizon)
            tokens_per_candidate = sum(min(history, step) for step in steps)
            metrics.plan_iterations.observe(outcome.iterations)
            metrics.candidates_total.inc(outcome.candidates)
            metrics.predictor_tokens_total.inc(outcome.candidates * tokens_per_candidate)
        if report is not None:
            metrics.fallbacks_total.labels(model.name, report.controller, report.reason).inc()
        metrics.plan_status_total.labels(status).inc()


def _deadline_exceeded(context: RequestContext) -> DeadlineExceeded:
    elapsed_ms = 1000 * (time.monotonic() - context.received)
    return DeadlineExceeded(
        "deadline: received one that leaves no time for the iterations asked for, "
        f"expected a later one ({elapsed_ms:.0f} ms have passed since the request arrived)"
    )


def _timing(
    context: RequestContext,
    latents: FrameLatents | None,
    result: PlanOutcome | Prediction | None = None,
) -> Timing:
    """The time that each stage of a request took. Stages that did not happen took none."""
    return Timing(
        queue=0.0 if result is None else 1000 * result.queue_s,
        decode=0.0 if latents is None else 1000 * latents.decode_s,
        encode=0.0 if latents is None else 1000 * latents.encode_s,
        solve=0.0 if result is None else 1000 * result.solve_s,
        total=1000 * (time.monotonic() - context.received),
    )
