"""The one way a request takes, whichever transport brought it: latents, then the engine."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from service.cache.tiers import LatentCache
from service.context import RequestContext
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.engine.jobs import Job, PlanJob, PlanOutcome, Prediction, PredictJob
from service.engine.pace import Shape
from service.engine.scheduler import Scheduler
from service.engine.ticket import Ticket
from service.entrance import Entrance
from service.errors import Draining, Failed, InvalidRequest, Loading
from service.fallbacks.fallback import NONE, controllers_of, prepare_fallback
from service.fallbacks.triggers import failure_of
from service.latents import Latents, LatentSource
from service.metrics import INFERENCE_ENDPOINTS, Metrics
from service.monitor.monitor import Monitor, norm_zscores
from service.planning.solvers import make_solver
from service.registry import Registry
from service.requests import EncodeRequest, Frame, PlanRequest, PredictRequest
from service.resolution import (
    check_frames,
    check_min_iterations,
    resolve_candidates,
    resolve_past,
    resolve_problem,
    resolve_solver,
)
from service.responses import (
    EncodedLatent,
    EncodeResponse,
    FallbackReport,
    FloatArray,
    Health,
    LatentIds,
    ModelDescription,
    PlanResponse,
    PlanStatus,
    PredictResponse,
    Timing,
)
from service.search import Search
from service.served import ServedModel
from service.settings import Settings


@dataclass(frozen=True)
class _Acts:
    """What a robot is told to do: ``actions`` (R, action_dim), and what is known of them."""

    actions: FloatArray
    status: PlanStatus
    cost: float | None = None
    trajectory: FloatArray | None = None
    report: FallbackReport | None = None


State = Literal["loading", "ready", "draining", "failed"]
R = TypeVar("R", PlanOutcome, Prediction)


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
        self._patience_s = settings.default_deadline_ms / 1000
        self._monitor = Monitor(metrics)
        self._registry: Registry | None = None
        for endpoint in INFERENCE_ENDPOINTS:
            waiting = partial(self._entrance.waiting, endpoint)
            metrics.queued_requests.labels(endpoint).set_function(waiting)
        metrics.active_plans.set_function(lambda: scheduler.active(PlanJob))

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
            deadline=_deadline(context),
            frames=_unseen(request.frames),
        )
        with self._entrance.admitted(ticket, context):
            latents = await self._latents.latents(model, request.frames, _fields(request.frames))
        norms = latents.values.norm(dim=-1).tolist()
        zscores = norm_zscores(model, latents.values)
        encoded = zip(latents.values, latents.ids, norms, latents.cached, zscores, strict=True)
        return EncodeResponse(
            context.request_id,
            model.name,
            model.version,
            tuple(EncodedLatent(value.numpy(), *rest) for value, *rest in encoded),
            self._monitor.assess(model, latents.values, fresh=len(request.frames)),
            _timing(context, latents),
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
            deadline=_deadline(context),
            patience_s=self._patience_s,
            frames=_unseen(request.frames),
            rows=(len(candidates),),
            shape=Shape(candidates.shape[1], len(request.frames)),
        )
        with self._entrance.admitted(ticket, context):
            latents = await self._latents.latents(model, request.frames, _fields(request.frames))
            ticket.frames = 0
            job = PredictJob(model.backend, ticket, latents.values, past, candidates)
            predicted: Prediction = await self._run(job)
        values = predicted.latents.numpy()
        return PredictResponse(
            context.request_id,
            model.name,
            model.version,
            values if request.candidates is not None else values[0],
            self._monitor.assess(model, latents.values, predicted=predicted.expected),
            _timing(context, latents, predicted),
        )

    async def plan(self, request: PlanRequest, context: RequestContext) -> PlanResponse:
        """Frames and a goal to actions: those of the search, or of the request's fallback."""
        wanted = request.fallback.controller
        model = self._serving(request.model, even_failed=wanted != NONE)
        check_frames(model, len(request.frames))
        past = resolve_past(model, request.past_actions, len(request.frames))
        settings = resolve_solver(model, request.solver, self._settings)
        check_min_iterations(request.min_iterations, settings)
        problem = resolve_problem(model, settings, request.warm_start)
        rows = settings.horizon * model.card.config.action_block
        fallback = prepare_fallback(model, request.fallback, request.warm_start, rows)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        solver = make_solver(settings, problem, seed)
        ticket = Ticket(
            model.pace,
            context.received,
            deadline=_deadline(context, request.deadline_ms),
            priority=request.priority,
            patience_s=self._patience_s,
            frames=_unseen((*request.frames, request.goal)),
            rows=solver.workload(),
            shape=Shape(settings.horizon, len(request.frames), settings.name),
            least=request.min_iterations,
        )
        search = Search(model, ticket, solver, past)
        reason = None
        if fallback is None:
            await self._search(search, request, context)
        else:
            working = self._search(search, request, context)
            reason = await failure_of(working, ticket, context.request_id)
        health = self._health(search)
        if fallback is not None and reason is None and health.status == "anomalous":
            reason = "anomalous"
        latents, outcome = search.latents, search.outcome
        if outcome is not None:
            self._count_search(model, outcome, len(request.frames))
        if fallback is not None and reason is not None:
            acts = _Acts(
                fallback.actions, "fallback", report=FallbackReport(fallback.controller, reason)
            )
            self._metrics.fallbacks_total.labels(model.name, fallback.controller, reason).inc()
        else:
            assert outcome is not None  # or there was a reason
            trajectory = None if outcome.trajectory is None else outcome.trajectory.numpy()
            acts = _Acts(model.to_rows(outcome.actions), outcome.status, outcome.cost, trajectory)
        self._metrics.plan_status_total.labels(acts.status).inc()
        return PlanResponse(
            request_id=context.request_id,
            model=model.name,
            model_version=model.version,
            backend=model.backend.name,
            precision=model.backend.precision,
            actions=acts.actions,
            action_block=model.card.config.action_block,
            cost=acts.cost,
            status=acts.status,
            iterations=0 if outcome is None else outcome.iterations,
            candidates=0 if outcome is None else outcome.candidates,
            solver=solver.resolved(),
            seed=seed,
            latent_ids=None if latents is None else LatentIds(latents.ids[:-1], latents.ids[-1]),
            health=health,
            fallback=acts.report,
            timing_ms=_timing(context, latents, outcome),
            trajectory=acts.trajectory,
        )

    async def _search(self, search: Search, request: PlanRequest, context: RequestContext) -> None:
        """Search for a plan, and leave in ``search`` how far it came."""
        model, ticket = search.model, search.ticket
        frames, fields = (*request.frames, request.goal), (*_fields(request.frames), "goal")
        with self._entrance.admitted(ticket, context):
            latents = await self._latents.latents(model, frames, fields)
            ticket.frames = 0
            search.latents = latents
            own, goal = latents.values[:-1], latents.values[-1]
            with_trajectory = "trajectory" in request.include
            job = PlanJob(
                model.backend, ticket, search.solver, own, search.past, goal, with_trajectory
            )
            search.outcome = await self._run(job)

    async def _run(self, job: Job) -> R:
        outcome: R = await asyncio.wrap_future(self._engine.submit(job))
        self._metrics.stage_duration.labels("queue").observe(outcome.queue_s)
        self._metrics.stage_duration.labels("solve").observe(outcome.solve_s)
        return outcome

    def _count_batch(self, kind: str, rows: int) -> None:
        self._metrics.batch_rows.labels(kind).observe(rows)

    def _health(self, search: Search) -> Health:
        """The health of the frames, where the search came so far that they could be looked at."""
        if search.latents is None:
            return Health("unknown", reasons=("a fallback answered before the frames were seen",))
        own, goal = search.latents.values[:-1], search.latents.values[-1]
        expected = None if search.outcome is None else search.outcome.expected
        return self._monitor.assess(search.model, own, goal, expected)

    def _count_search(self, model: ServedModel, outcome: PlanOutcome, context: int) -> None:
        config, horizon = model.card.config, len(outcome.actions)
        windows = (min(config.history, step) for step in range(context, context + horizon))
        self._metrics.plan_iterations.observe(outcome.iterations)
        self._metrics.candidates_total.inc(outcome.candidates)
        self._metrics.predictor_tokens_total.inc(outcome.candidates * sum(windows))


def _fields(frames: Sequence[Frame]) -> list[str]:
    """The paths of a request's frames, for errors."""
    return [f"frames[{index}]" for index in range(len(frames))]


def _unseen(frames: Sequence[Frame]) -> int:
    """How many frames have to be decoded and encoded, if the cache holds none of them."""
    return sum(frame.image is not None or frame.pixels is not None for frame in frames)


def _deadline(context: RequestContext, deadline_ms: float | None = None) -> float:
    """The earlier of the transport's and the request's own, infinitely far if there is none."""
    transport = math.inf if context.deadline is None else context.deadline
    return min(
        transport, math.inf if deadline_ms is None else context.received + deadline_ms / 1000
    )


def _timing(
    context: RequestContext, latents: Latents | None, work: PlanOutcome | Prediction | None = None
) -> Timing:
    queue_s, solve_s = (0.0, 0.0) if work is None else (work.queue_s, work.solve_s)
    decode_s, encode_s = (0.0, 0.0) if latents is None else (latents.decode_s, latents.encode_s)
    total_s = time.monotonic() - context.received
    seconds = (queue_s, decode_s, encode_s, solve_s, total_s)
    return Timing(*(1000 * value for value in seconds))
