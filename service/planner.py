"""The one way a request takes, whichever transport brought it: latents, then the engine."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Literal, TypeVar

from torch import Tensor

from service.cache.memory import MemoryCache
from service.context import RequestContext
from service.engine.engine import Engine, EngineStopped
from service.engine.jobs import DeadlinePassed, Job, PlanJob, PlanOutcome, Prediction, PredictJob
from service.errors import (
    DeadlineExceeded,
    Draining,
    Failed,
    InvalidRequest,
    Loading,
    Overloaded,
)
from service.latents import Latents, LatentSource
from service.metrics import Metrics
from service.monitor.monitor import Monitor, norm_zscores
from service.planning.solvers import make_solver
from service.registry import Registry
from service.requests import EncodeRequest, Frame, PlanRequest, PredictRequest
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
    LatentIds,
    ModelDescription,
    PlanResponse,
    PredictResponse,
    Timing,
)
from service.served import ServedModel
from service.settings import Settings

State = Literal["loading", "ready", "draining", "failed"]
R = TypeVar("R", PlanOutcome, Prediction)


class Planner:
    """Encode, predict and plan for both transports. Lives on the event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._engine = Engine(self._count_batch)
        self._latents = LatentSource(
            self._engine,
            MemoryCache(settings.cache_entries, settings.cache_ttl_s),
            metrics,
            settings.max_pixels,
        )
        self._monitor = Monitor(metrics)
        self._registry: Registry | None = None
        self._draining = False
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        queues: dict[str, Callable[[], float]] = {
            "encode": lambda: self._engine.waiting_encodes,
            "predict": lambda: self._engine.queued(PredictJob),
            "plan": lambda: self._engine.queued(PlanJob),
        }
        for endpoint, count in queues.items():
            metrics.queued_requests.labels(endpoint).set_function(count)
        metrics.active_plans.set_function(lambda: self._engine.active(PlanJob))

    @property
    def state(self) -> State:
        """Where the planner is in its life."""
        if self._engine.failed:
            return "failed"
        if self._draining:
            return "draining"
        return "loading" if self._registry is None else "ready"

    async def start(self) -> None:
        """Load and warm up the models, start the engine.

        Raises:
            ModelLoadError: a model, the default or the device cannot be had.
        """
        registry = await asyncio.to_thread(Registry.load, self._settings)
        for model in registry.all():
            backend = model.backend
            labels = (model.name, model.version, backend.name, backend.device, backend.precision)
            self._metrics.model_info.labels(*labels).set(1)
            self._monitor.watch(model)
        self._engine.start()
        self._registry = registry

    def drain(self) -> None:
        """Refuse what comes from now on."""
        self._draining = True

    async def stop(self, grace_s: float) -> None:
        """Finish what was admitted, for ``grace_s`` seconds at most."""
        self._draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), grace_s)
        await asyncio.to_thread(self._engine.stop, 0)
        self._latents.close()

    def models(self) -> list[ModelDescription]:
        """All served models; raises `Loading` or `Failed`."""
        registry = self._loaded()
        return [registry.describe(model) for model in registry.all()]

    def model(self, name: str) -> ModelDescription:
        """One served model; raises `UnknownModel`, `Loading` or `Failed`."""
        registry = self._loaded()
        return registry.describe(registry.get(name))

    def _loaded(self) -> Registry:
        if self._engine.failed:
            raise Failed
        if self._registry is None:
            raise Loading
        return self._registry

    @contextmanager
    def _admitted(self, name: str | None, context: RequestContext) -> Iterator[ServedModel]:
        """The model of a request that may come in, which counts until it leaves.

        Raises:
            ServiceError: it may not, or the engine refused its work.
        """
        if self._draining:
            raise Draining
        model = self._loaded().get(name)
        if self._inside >= self._settings.max_queue:
            raise Overloaded(self._engine.retry_after_s)
        self._inside += 1
        self._empty.clear()
        try:
            yield model
        except EngineStopped:
            raise (Failed if self._engine.failed else Draining) from None
        except DeadlinePassed:
            waited = 1000 * (time.monotonic() - context.received)
            raise DeadlineExceeded(
                "deadline: no iteration can be done in time "
                f"({waited:.0f} ms have passed since the request arrived)"
            ) from None
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()

    async def encode(self, request: EncodeRequest, context: RequestContext) -> EncodeResponse:
        """Frames to latents."""
        with self._admitted(request.model, context) as model:
            most = self._settings.max_frames
            if len(request.frames) > most:
                expected = f"at most {most} frames a request"
                raise InvalidRequest("out_of_range", "frames", len(request.frames), expected)
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
        with self._admitted(request.model, context) as model:
            check_frames(model, len(request.frames))
            past = resolve_past(model, request.past_actions, len(request.frames))
            candidates = resolve_candidates(model, request, self._settings)
            latents = await self._latents.latents(model, request.frames, _fields(request.frames))
            job = PredictJob(model.backend, latents.values, past, candidates, context.deadline)
            ahead = self._expect(model, latents.values, past, job)
            predicted: Prediction = await self._run(job)
            expected = await _expected(ahead)
        values = predicted.latents.numpy()
        return PredictResponse(
            context.request_id,
            model.name,
            model.version,
            values if request.candidates is not None else values[0],
            self._monitor.assess(model, latents.values, predicted=expected),
            _timing(context, latents, predicted),
        )

    async def plan(self, request: PlanRequest, context: RequestContext) -> PlanResponse:
        """Frames and a goal to actions."""
        with self._admitted(request.model, context) as model:
            check_fallback(request.fallback)
            check_frames(model, len(request.frames))
            past = resolve_past(model, request.past_actions, len(request.frames))
            settings = resolve_solver(model, request.solver, self._settings)
            problem = resolve_problem(model, settings, request.warm_start)
            seed = secrets.randbits(63) if request.seed is None else request.seed
            frames, fields = (*request.frames, request.goal), (*_fields(request.frames), "goal")
            latents = await self._latents.latents(model, frames, fields)
            own, goal = latents.values[:-1], latents.values[-1]
            job = PlanJob(
                model.backend,
                model.pace,
                make_solver(settings, problem, seed),
                own,
                past,
                goal,
                request.priority,
                _deadline(request, context),
                "trajectory" in request.include,
            )
            ahead = self._expect(model, own, past, job)
            outcome: PlanOutcome = await self._run(job)
            expected = await _expected(ahead)
        self._count_plan(model, outcome, len(request.frames))
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
            health=self._monitor.assess(model, own, goal, expected),
            fallback=None,
            timing_ms=_timing(context, latents, outcome),
            trajectory=None if outcome.trajectory is None else outcome.trajectory.numpy(),
        )

    def _expect(
        self, model: ServedModel, latents: Tensor, past: Tensor, job: Job
    ) -> Future[Prediction] | None:
        """Have the newest of latents (H, D) predicted from those before it, where there are any.

        One candidate and one step, as urgent as the request's own job and ahead of it.
        """
        if len(latents) == 1:
            return None
        step = past[-1:].unsqueeze(0)
        ahead = PredictJob(model.backend, latents[:-1], past[:-1], step, None)
        ahead.priority, ahead.deadline = job.priority, job.deadline
        return self._engine.submit(ahead)

    async def _run(self, job: Job) -> R:
        outcome: R = await asyncio.wrap_future(self._engine.submit(job))
        self._metrics.stage_duration.labels("queue").observe(outcome.queue_s)
        self._metrics.stage_duration.labels("solve").observe(outcome.solve_s)
        return outcome

    def _count_batch(self, kind: str, rows: int) -> None:
        self._metrics.batch_rows.labels(kind).observe(rows)

    def _count_plan(self, model: ServedModel, outcome: PlanOutcome, context: int) -> None:
        config, horizon = model.card.config, len(outcome.actions)
        windows = (min(config.history, step) for step in range(context, context + horizon))
        self._metrics.plan_status_total.labels(outcome.status).inc()
        self._metrics.plan_iterations.observe(outcome.iterations)
        self._metrics.candidates_total.inc(outcome.candidates)
        self._metrics.predictor_tokens_total.inc(outcome.candidates * sum(windows))


async def _expected(ahead: Future[Prediction] | None) -> Tensor | None:
    """The latent (D,) that was predicted; None without history, or where time ran out for it."""
    if ahead is None:
        return None
    try:
        return (await asyncio.wrap_future(ahead)).latents[0, 0]
    except DeadlinePassed:
        return None


def _fields(frames: Sequence[Frame]) -> list[str]:
    """The paths of a request's frames, for errors."""
    return [f"frames[{index}]" for index in range(len(frames))]


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
