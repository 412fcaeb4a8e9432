"""Encode, predict and plan: the path of a request, whichever transport brought it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest, RequestContext
from lewm_serve.api.responses import (
    EncodedLatent,
    EncodeResponse,
    FallbackReport,
    FloatArray,
    GoalDistance,
    Health,
    LatentIds,
    ModelDescription,
    ModelList,
    PlanResponse,
    PlanStates,
    PredictResponse,
    ReloadReport,
    Timing,
)
from lewm_serve.backends.backend import hidden_states
from lewm_serve.constants import (
    INFERENCE_ENDPOINTS,
    Endpoint,
    FallbackReason,
    PlanStatus,
    ServerState,
)
from lewm_serve.engine.admission import DeadlinePassed, QueueTooLong
from lewm_serve.engine.engine import EngineStopped
from lewm_serve.engine.jobs import (
    EncodeJob,
    PlanJob,
    PlanOutcome,
    Prediction,
    PredictJob,
    ProbeJob,
    Search,
)
from lewm_serve.engine.latency_model import RolloutShape
from lewm_serve.engine.queued_request import Client, QueuedRequest
from lewm_serve.errors import (
    DeadlineExceeded,
    Draining,
    Failed,
    Loading,
    Overloaded,
    ReloadFailed,
    Restarting,
    ServiceError,
    UnknownModel,
)
from lewm_serve.frames.latent_cache import LatentCache
from lewm_serve.frames.latent_source import (
    FrameLatents,
    LatentSource,
    count_images,
    expected_decode_s,
    frame_fields,
)
from lewm_serve.objectives.latent import LATENT
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.engines import Engines
from lewm_serve.planner.fallback import (
    NO_FALLBACK,
    AnomalousFrames,
    compute_fallback,
    fallback_reason_or_raise,
    finish_in_time,
    search_deadline,
)
from lewm_serve.planner.health import LatentScores, Monitor
from lewm_serve.planner.served_models import ServedModels
from lewm_serve.planner.state_goals import name_states
from lewm_serve.planner.validation import (
    require_finite,
    validate_encode,
    validate_plan,
    validate_predict,
)
from lewm_serve.registry.registry import LoadedModel, Registry
from lewm_serve.settings import Settings
from lewm_serve.solvers import SOLVERS
from lewm_serve.workers.thread import ThreadWorker
from lewm_serve.workers.worker import Placement, Worker

if TYPE_CHECKING:
    from lewm_serve.planner.history import PlanHistory

VIEWER = "viewer"
"""The client that rolls out what people look at. No address and no key looks like this."""

MAX_RETRY_AFTER_S = 30.0
"""`Retry-After` is not longer, because requests come and go that the forecast does not know."""

NO_GOAL = torch.empty(0)
"""The latent of a goal by states."""

EngineResult = TypeVar("EngineResult", PlanOutcome, Prediction)


class Planner:
    """Answers the requests of all transports. Used only from the event loop.

    Args:
        settings: the server's settings.
        metrics: what it measures.
        workers: the engines; none: one in a thread of this process.
        history: what keeps the last plans; None: nothing does.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        workers: Sequence[Worker] = (),
        history: PlanHistory | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._history = history
        workers = workers or [ThreadWorker(settings)]
        self._cache = LatentCache.from_settings(settings, metrics)
        self._latents = LatentSource(self._cache, metrics=metrics, max_pixels=settings.max_pixels)
        self._monitor = Monitor(metrics)
        self._models = ServedModels(settings, metrics, self._monitor, workers[0])
        self._engines = Engines(workers, self._models, metrics, settings.max_queue)
        self._leaving = False
        self._draining = False
        self._stopped = False
        self._admitted_by_endpoint: dict[Endpoint, set[QueuedRequest]] = defaultdict(set)
        self._no_admitted_requests = asyncio.Event()
        self._no_admitted_requests.set()
        for endpoint in INFERENCE_ENDPOINTS:
            metrics.queued_requests.labels(endpoint).set_function(
                partial(self._count_queued, endpoint)
            )

    @property
    def state(self) -> ServerState:
        """Where the planner is in its life."""
        if self._engines.state == "failed":
            return "failed"
        if self._draining:
            return "draining"
        if self._engines.state == "restarting":
            return "restarting"
        if self._leaving:
            return "leaving"
        return "loading" if self._models.registry is None else "ready"

    async def start(self) -> None:
        """Start the engines, and let them load and warm up the models.

        Raises:
            ModelLoadError: a model, the default model or the device is not available.
        """
        self._cache.start()
        await self._engines.start()

    async def reload_models(self) -> ReloadReport:
        """Read the model folders again, and serve what they hold; see `ServedModels.reload`.

        Raises:
            ReloadFailed: a model could not be loaded. The others are served.
            Loading, Restarting, Draining, Failed: the planner cannot do that.
        """
        if self._draining:
            raise Draining
        self._loaded_registry()
        try:
            report = await self._models.reload()
        except EngineStopped:
            raise self._engine_error() from None
        if any(model.result == "failed" for model in report.models):
            raise ReloadFailed([vars(model) for model in report.models])
        return report

    def leave(self) -> None:
        """Be unready from now on. Requests are still answered."""
        self._leaving = True

    def drain(self) -> None:
        """Refuse requests from now on."""
        self._draining = True
        self._engines.close()
        self._models.close()

    async def stop(self, grace_s: float) -> None:
        """Finish the admitted requests, for at most ``grace_s`` seconds, and stop."""
        self.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._no_admitted_requests.wait(), grace_s)
        self._stopped = True
        await self._engines.stop()
        self._latents.close()
        await self._cache.close()

    async def wait_failed(self) -> None:
        """Wait until the engine has failed for good."""
        await self._engines.wait_until("failed")

    async def wait_engine(self, *, up: bool) -> None:
        """Wait until the engine runs, or until it does not."""
        await self._engines.wait_until(*(("up",) if up else ("restarting", "failed")))

    def count_batches(self) -> None:
        """Count the batches that the engine has run since the last call."""
        for batch in self._engines.take_batches():
            self._metrics.batch_rows.labels(batch.kind).observe(batch.rows)

    def describe_models(self) -> ModelList:
        """All models.

        Raises:
            Loading, Failed: the planner cannot answer.
        """
        return self._registry_to_describe().describe_all()

    def describe_model(self, name: str) -> ModelDescription:
        """One model, or one version of it.

        Raises:
            UnknownModel: there is none of this name and version.
            Loading, Failed: the planner cannot answer.
        """
        registry = self._registry_to_describe()
        return registry.describe(registry.get(name))

    def log_label(self, requested_model: object) -> str | None:
        """What log lines call the model of a request; see `Registry.log_label`."""
        registry = self._models.registry
        return None if registry is None else registry.log_label(requested_model)

    async def encode(self, request: EncodeRequest, context: RequestContext) -> EncodeResponse:
        """The latents of frames."""
        model = self._loaded_model(request.model)
        validate_encode(request, self._settings)
        placement = self._engines.place(model, context.client)
        queued = QueuedRequest(
            placement.latency,
            context.received,
            client=placement.admission.client(context.client),
            deadline=context.earliest_deadline(),
            frames_to_encode=count_images(request.frames),
            decode_s=expected_decode_s(request.frames, model.latency),
            row=placement.worker.new_row(),
        )
        with self._admitted(queued, model, context, placement):
            latents = await self._latents.latents_of(
                request.frames,
                model,
                fields=frame_fields(request.frames),
                queued=queued,
                placement=placement,
                client=context.client,
            )
        scores = self._monitor.score(model, latents.values)
        frames = zip(frame_fields(request.frames), request.frames, strict=True)
        require_finite("latents", np.asarray(scores.norms), frames=frames)
        health = self._monitor.record(model, scores, new_frames=len(request.frames))
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
        model = self._loaded_model(request.model)
        inputs = validate_predict(
            model, request, self._settings, max_answer_values=context.max_answer_values
        )
        candidate_count, horizon, _ = inputs.candidates.shape
        placement = self._engines.place(model, context.client)
        queued = QueuedRequest(
            placement.latency,
            context.received,
            client=placement.admission.client(context.client),
            deadline=context.earliest_deadline(),
            frames_to_encode=count_images(request.frames),
            decode_s=expected_decode_s(request.frames, model.latency),
            row=placement.worker.new_row(),
            candidates_per_iteration=(candidate_count,),
            shape=RolloutShape(horizon=horizon, context=len(request.frames)),
        )
        with self._admitted(queued, model, context, placement):
            latents = await self._latents.latents_of(
                request.frames,
                model,
                fields=frame_fields(request.frames),
                queued=queued,
                placement=placement,
                client=context.client,
            )
            queued.mark_frames_ready()
            job = PredictJob(
                backend=placement.backend,
                queued=queued,
                latents=latents.values,
                past_actions=inputs.past_actions,
                candidates=inputs.candidates,
            )
            prediction: Prediction = await self._result(placement.worker.submit(job))
        predicted = prediction.latents.numpy()
        frames = zip(frame_fields(request.frames), request.frames, strict=True)
        require_finite("latents", predicted, frames=frames)
        scores = self._monitor.score(model, latents.values)
        health = self._monitor.record(model, scores, surprise=prediction.surprise)
        return PredictResponse(
            request_id=context.request_id,
            model=model.name,
            model_version=model.version,
            latents=predicted if request.candidates is not None else predicted[0],
            health=health,
            timing_ms=_timing(context, latents, prediction),
        )

    async def plan(self, request: PlanRequest, context: RequestContext) -> PlanResponse:
        """Actions that lead from the frames to the goal, or those of the request's fallback.

        1. Validate the request, and compute its fallback's actions.
        2. Get the latents. With a fallback: stop if they are anomalous.
        3. Search. With a fallback: stop if the surprise is anomalous.
        4. Assess the health of the frames, whatever came of the search.
        5. Answer with the plan, or with the fallback's actions and the reason.
        """
        # A request with a fallback gets an answer even if the engine has failed.
        needs_engine = request.fallback.controller == NO_FALLBACK
        model = self._loaded_model(request.model, needs_engine=needs_engine)
        inputs = validate_plan(model, request, self._settings)
        solver_settings = inputs.solver_settings
        fallback = compute_fallback(
            model,
            request.fallback,
            warm_start=request.warm_start,
            rows=solver_settings.horizon * model.card.config.action_block,
        )
        seed = secrets.randbits(63) if request.seed is None else request.seed
        solver_class = SOLVERS[solver_settings.name]
        deadline = context.earliest_deadline(request.deadline_ms)
        goal_is_frame = request.goal.state is None
        frames_and_goal = (*request.frames, request.goal) if goal_is_frame else request.frames
        frame_count = len(request.frames)  # without the goal
        history = self._history
        placement = self._engines.place(model, context.client)
        queued = QueuedRequest(
            placement.latency,
            context.received,
            client=placement.admission.client(context.client),
            deadline=deadline if fallback is None else search_deadline(deadline),
            priority=request.priority,
            frames_to_encode=count_images(frames_and_goal),
            decode_s=expected_decode_s(frames_and_goal, model.latency),
            candidates_per_iteration=inputs.candidates_per_iteration,
            shape=inputs.shape,
            min_iterations=request.min_iterations,
            search_bytes=solver_class.memory_bytes(solver_settings, model.card.config.block_width),
            row=placement.worker.new_row(),
        )
        # With a fallback, waiting ends early enough for its answer to arrive in time.
        wait_in_time = partial(
            finish_in_time, queued=queued, answer_by=None if fallback is None else deadline
        )

        latents: FrameLatents | None = None
        scores: LatentScores | None = None
        health: Health | None = None
        outcome: PlanOutcome | None = None
        reason: FallbackReason | None = None
        actions: FloatArray
        trajectory: FloatArray | None
        distance: GoalDistance | None
        states: PlanStates | None = None
        violations: tuple[int, ...] = ()
        try:
            with self._admitted(queued, model, context, placement):
                latents = await wait_in_time(
                    self._latents.latents_of(
                        frames_and_goal,
                        model,
                        fields=_frame_and_goal_fields(request),
                        queued=queued,
                        placement=placement,
                        client=context.client,
                    )
                )
                queued.mark_frames_ready()
                if fallback is not None:
                    scores = self._monitor.score(model, latents.values, frame_count)
                    if scores.anomalies:
                        raise AnomalousFrames
                searching = placement.worker.submit(
                    PlanJob(
                        backend=placement.backend,
                        queued=queued,
                        latents=latents.values[:frame_count],
                        past_actions=inputs.past_actions,
                        committed_actions=inputs.committed_actions,
                        goal=latents.values[-1] if goal_is_frame else NO_GOAL,
                        search=Search(
                            solver_settings=solver_settings,
                            search_space=inputs.search_space,
                            seed=seed,
                            objective=inputs.objective,
                            distance=model.distance if goal_is_frame else None,
                            starts_at_proposal=inputs.starts_at_proposal,
                        ),
                        with_trajectory="trajectory" in request.include,
                        max_surprise=None if fallback is None else model.max_surprise,
                        with_trace=history is not None and history.takes_trace(context),
                    )
                )
                if frame_count == 1:
                    # One frame has no surprise. Its health is assessed while the engine searches.
                    health = self._assess_plan(
                        model, latents, frame_count=frame_count, scores=scores
                    )
                outcome = await wait_in_time(self._result(searching))
                assert outcome is not None
                if outcome.status == "anomalous":
                    raise AnomalousFrames
                actions, trajectory, distance = _finite_plan(model, outcome, request)
                if outcome.states is not None:
                    states, violations = (
                        name_states(model, outcome.states),
                        outcome.states.violations,
                    )
        except Exception as error:
            if fallback is None:
                raise
            reason = fallback_reason_or_raise(error, context.request_id)
        finally:
            # Also after an error: the health metrics count the frames of every search.
            if health is None:
                health = self._assess_plan(
                    model, latents, frame_count=frame_count, scores=scores, outcome=outcome
                )

        report: FallbackReport | None = None
        status: PlanStatus
        timing = _timing(context, latents, outcome)
        trace = None if outcome is None else outcome.trace
        if fallback is not None and reason is not None:
            actions, status = fallback.actions, "fallback"
            trajectory, distance, states, violations = None, None, None, ()
            report = FallbackReport(fallback.controller, reason)
            outcome = None  # what the search found, if anything, is not used
        else:
            assert outcome is not None  # without an outcome, a reason is set
            assert outcome.status != "anomalous"
            status = outcome.status
        self._count_plan(model, queued.shape, status=status, outcome=outcome, report=report)
        response = PlanResponse(
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
            candidates=0 if outcome is None else outcome.scored_candidates,
            solver=solver_class.all_settings(solver_settings),
            seed=seed,
            latent_ids=None if latents is None else _latent_ids(latents, frame_count),
            health=health,
            fallback=report,
            timing_ms=timing,
            trajectory=trajectory,
            distance=distance,
            states=states,
            violations=violations,
        )
        if history is not None:
            values = None if latents is None else latents.values
            history.add(request, context, response, latents=values, trace=trace)
        return response

    async def imagine(
        self, name: str, *, latents: Tensor, past_actions: Tensor, candidates: Tensor
    ) -> Tensor:
        """Where candidates lead, for pictures: roll-outs after all other work, without records.

        Args:
            name: of the model, or of one version of it.
            latents: (H, D) of the context.
            past_actions: (H − 1, A) between them.
            candidates: (S, T, A).

        Returns:
            The latents (S, T, D).

        Raises:
            ServiceError: the engine has no time, or there is no such model.
        """
        model = self._loaded_model(name)
        now = time.monotonic()
        context = RequestContext(
            request_id="", endpoint="predict", protocol="rest", received=now, client=VIEWER
        )
        placement = self._engines.place(model, VIEWER)
        queued = QueuedRequest(
            placement.latency,
            now,
            client=placement.admission.client(VIEWER),
            priority=0,
            candidates_per_iteration=(len(candidates),),
            shape=RolloutShape(horizon=candidates.shape[1], context=len(latents)),
            row=placement.worker.new_row(),
        )
        with self._admitted(queued, model, context, placement):
            job = PredictJob(
                backend=placement.backend,
                queued=queued,
                latents=latents,
                past_actions=past_actions,
                candidates=candidates,
            )
            prediction: Prediction = await asyncio.wrap_future(placement.worker.submit(job))
        return prediction.latents

    def model_and_folder(self, name: str) -> tuple[LoadedModel, Path]:
        """A current model and its folder.

        Raises:
            UnknownModel: there is no current one of this name and version.
            Loading, Failed: the planner cannot answer.
        """
        registry = self._registry_to_describe()
        model = registry.get(name)
        for folder, loaded in registry.by_folder.items():
            if loaded is model:
                return model, folder
        raise UnknownModel(name, [loaded.pin for loaded in registry.by_folder.values()])

    def _registry_to_describe(self) -> Registry:
        """The models. They are still there while the engine is started again."""
        if self._engines.state == "failed":
            raise Failed
        return self._loaded_registry(needs_engine=False)

    def _loaded_registry(self, *, needs_engine: bool = True) -> Registry:
        if self._engines.state == "restarting" and needs_engine:
            raise self._engine_error()
        if self._engines.state == "failed" and needs_engine:
            raise Failed
        registry = self._models.registry
        if registry is None:
            raise Loading
        return registry

    def _loaded_model(self, name: str | None, *, needs_engine: bool = True) -> LoadedModel:
        """The model of a request. Without ``needs_engine``, a failed engine is no error."""
        if self._draining:
            raise Draining
        return self._loaded_registry(needs_engine=needs_engine).get(name)

    @contextmanager
    def _admitted(
        self,
        queued: QueuedRequest,
        model: LoadedModel,
        context: RequestContext,
        placement: Placement,
    ) -> Iterator[None]:
        """Admit a request for the duration of the block, before any work is done for it.

        Errors of the engine become errors for clients.

        Raises:
            ServiceError: the request is not admitted, or its work failed.
        """
        if self._draining:
            raise Draining
        try:
            placement.admission.admit(queued)
        except QueueTooLong as error:
            retry_after_s = min(error.retry_after_s, MAX_RETRY_AFTER_S)
            raise Overloaded(retry_after_s, str(error)) from None
        except DeadlinePassed:
            self._probe(queued, model, placement)
            raise _deadline_exceeded(context) from None
        admitted = self._admitted_by_endpoint[context.endpoint]
        admitted.add(queued)
        self._no_admitted_requests.clear()
        try:
            yield
        except EngineStopped:
            raise self._engine_error() from None
        except DeadlinePassed:
            raise _deadline_exceeded(context) from None
        finally:
            admitted.remove(queued)
            placement.admission.leave(queued)
            if self._engines.is_idle:
                self._no_admitted_requests.set()
            self.count_batches()

    def _engine_error(self) -> ServiceError:
        """Why there is no engine."""
        if self._stopped:
            return Draining()
        if self._engines.state == "failed":
            return Failed()
        return Restarting(self.retry_after_s)

    @property
    def retry_after_s(self) -> float:
        """In how many seconds an engine that is started again is expected to run."""
        return min(max(1.0, self._engines.retry_after_s), MAX_RETRY_AFTER_S)

    def _probe(self, refused: QueuedRequest, model: LoadedModel, placement: Placement) -> None:
        """Measure how long a frame and a roll-out of a refused request take now, when due."""
        config, latency, shape = model.card.config, placement.latency, refused.shape
        if not latency.needs_probe(shape):
            return
        now = time.monotonic()
        with suppress(EngineStopped):
            frame = torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
            worker, row = placement.worker, placement.worker.new_row
            client = Client(row=row())
            queued = QueuedRequest(latency, now, client=client, frames_to_encode=1, row=row())
            given = config.state_input
            worker.submit(
                EncodeJob(
                    backend=placement.backend,
                    frames=frame,
                    queued=queued,
                    states=None if given is None else hidden_states(given, 1),
                )
            )
            if refused.candidates_per_iteration:
                candidates = min(refused.max_candidates, refused.max_part_size)
                queued = QueuedRequest(
                    latency,
                    now,
                    client=client,
                    candidates_per_iteration=(candidates,),
                    shape=shape,
                    row=row(),
                )
                worker.submit(
                    ProbeJob(
                        backend=placement.backend,
                        queued=queued,
                        latents=torch.zeros(shape.context, config.latent_dim),
                        past_actions=torch.zeros(shape.context - 1, config.block_width),
                        candidates=torch.zeros(candidates, shape.horizon, config.block_width),
                        objective=model.objectives.get(
                            shape.objective, LATENT if shape.gradients else None
                        ),
                    )
                )

    def _count_queued(self, endpoint: Endpoint) -> int:
        """The number of admitted requests whose search has not started.

        An encode request has no search, so it counts until it ends.
        """
        return sum(not queued.started for queued in tuple(self._admitted_by_endpoint[endpoint]))

    async def _result(self, future: Future[EngineResult]) -> EngineResult:
        """Wait for a job. Cancelling this coroutine drops the job."""
        result: EngineResult = await asyncio.wrap_future(future)
        self._metrics.stage_duration.labels("queue").observe(result.queue_s)
        self._metrics.stage_duration.labels("solve").observe(result.solve_s)
        return result

    def _assess_plan(
        self,
        model: LoadedModel,
        latents: FrameLatents | None,
        *,
        frame_count: int,
        scores: LatentScores | None,
        outcome: PlanOutcome | None = None,
    ) -> Health:
        """The health of a plan's frames; `unknown` without latents. The metrics count it."""
        if latents is None:
            reasons = ("a fallback answered before the frames were seen",)
            return Health(status="unknown", reasons=reasons)
        if scores is None:
            scores = self._monitor.score(model, latents.values, frame_count)
        surprise = None if outcome is None else outcome.surprise
        return self._monitor.record(model, scores, surprise=surprise)

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
            metrics.candidates_total.inc(outcome.scored_candidates)
            metrics.predictor_tokens_total.inc(outcome.scored_candidates * tokens_per_candidate)
        if report is not None:
            metrics.fallbacks_total.labels(model.name, report.controller, report.reason).inc()
        metrics.plan_status_total.labels(status).inc()


def _finite_plan(
    model: LoadedModel, outcome: PlanOutcome, request: PlanRequest
) -> tuple[FloatArray, FloatArray | None, GoalDistance | None]:
    """The rows of actions, the trajectory and the distance of a search that found something.

    Raises:
        InvalidRequest, NonFiniteResult: see `require_finite`.
    """
    assert outcome.actions is not None
    assert outcome.cost is not None
    actions = model.to_rows(outcome.actions)
    trajectory = None if outcome.trajectory is None else outcome.trajectory.numpy()
    # A goal by states is not among them: it has no field and no latent to blame.
    frames = list(
        zip(_frame_and_goal_fields(request), (*request.frames, request.goal), strict=False)
    )
    require_finite("costs", outcome.cost, frames=frames)
    require_finite("actions", actions, frames=frames)
    if trajectory is not None:
        require_finite("latents", trajectory, frames=frames)
    if outcome.distances is None:
        return actions, trajectory, None
    steps = model.card.config.action_block
    start, end = steps * outcome.distances.start, steps * outcome.distances.end
    require_finite("distances", np.array([start, end]), frames=frames)
    return actions, trajectory, GoalDistance(start=start, end=end)


def _frame_and_goal_fields(request: PlanRequest) -> list[str]:
    """The paths of the frames in a request, and that of a goal that is a frame."""
    fields = frame_fields(request.frames)
    return [*fields, "goal"] if request.goal.state is None else fields


def _latent_ids(latents: FrameLatents, frame_count: int) -> LatentIds:
    """The ids of the frames, and that of a goal that is a frame."""
    goal = latents.ids[frame_count:]
    return LatentIds(latents.ids[:frame_count], goal[0] if goal else "")


def _deadline_exceeded(context: RequestContext) -> DeadlineExceeded:
    elapsed_ms = 1000 * (time.monotonic() - context.received)
    return DeadlineExceeded(
        "deadline: it leaves no time for the iterations that the request needs; choose a later one "
        f"({elapsed_ms:.0f} ms have passed since the request arrived)"
    )


def _timing(
    context: RequestContext,
    latents: FrameLatents | None,
    result: PlanOutcome | Prediction | None = None,
) -> Timing:
    """The time that each stage of a request took; 0 for a stage that did not happen."""
    return Timing(
        queue=0.0 if result is None else 1000 * result.queue_s,
        decode=0.0 if latents is None else 1000 * latents.decode_s,
        encode=0.0 if latents is None else 1000 * latents.encode_s,
        solve=0.0 if result is None else 1000 * result.solve_s,
        total=1000 * (time.monotonic() - context.received),
    )
