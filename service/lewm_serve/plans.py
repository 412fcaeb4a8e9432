"""A plan's way: the search, or the fallback in its place where that comes to nothing."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from lewm_serve.context import RequestContext
from lewm_serve.engine.jobs import PlanJob, PlanOutcome
from lewm_serve.engine.pace import Shape
from lewm_serve.engine.ticket import Ticket
from lewm_serve.entrance import Entrance
from lewm_serve.fallbacks.fallback import PreparedFallback, prepare_fallback
from lewm_serve.fallbacks.triggers import Anomalous, Reason, failure_of, search_deadline
from lewm_serve.latents import LatentSource, fields_of, unseen
from lewm_serve.metrics import Metrics
from lewm_serve.monitor.health import Scores
from lewm_serve.monitor.monitor import Monitor
from lewm_serve.planning.solvers import make_solver
from lewm_serve.requests import PlanRequest
from lewm_serve.resolution import (
    check_frames,
    check_min_iterations,
    resolve_past,
    resolve_problem,
    resolve_solver,
)
from lewm_serve.responses import (
    FallbackReport,
    FloatArray,
    Health,
    LatentIds,
    PlanResponse,
    PlanStatus,
)
from lewm_serve.runner import Runner, timing
from lewm_serve.search import Search
from lewm_serve.served import ServedModel
from lewm_serve.settings import Settings


@dataclass(frozen=True)
class _Acts:
    """What a robot is told to do: ``actions`` (R, action_dim), and what is known of them."""

    actions: FloatArray
    status: PlanStatus
    cost: float | None = None
    trajectory: FloatArray | None = None
    report: FallbackReport | None = None


class Plans:
    """Answers plan requests. Lives on the event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        entrance: Entrance,
        latents: LatentSource,
        runner: Runner,
        monitor: Monitor,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._entrance = entrance
        self._latents = latents
        self._runner = runner
        self._monitor = monitor

    async def plan(
        self, model: ServedModel, request: PlanRequest, context: RequestContext
    ) -> PlanResponse:
        """Frames and a goal to actions: those of the search, or of the request's fallback."""
        check_frames(model, len(request.frames))
        past = resolve_past(model, request.past_actions, len(request.frames))
        settings = resolve_solver(model, request.solver, self._settings)
        check_min_iterations(request.min_iterations, settings)
        problem = resolve_problem(model, settings, request.warm_start)
        rows = settings.horizon * model.card.config.action_block
        fallback = prepare_fallback(model, request.fallback, request.warm_start, rows)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        solver = make_solver(settings, problem, seed)
        deadline = context.until(request.deadline_ms)
        ticket = Ticket(
            model.pace,
            context.received,
            deadline=deadline if fallback is None else search_deadline(deadline),
            priority=request.priority,
            patience_s=self._runner.patience_s,
            frames=unseen((*request.frames, request.goal)),
            rows=solver.workload(),
            shape=Shape(settings.horizon, len(request.frames), settings.name),
            least=request.min_iterations,
        )
        search = Search(model, ticket, solver, past, guarded=fallback is not None)
        working = self._search(search, request, context)
        reason: Reason | None = None
        try:
            if fallback is None:
                await working
            else:
                reason = await failure_of(working, ticket, deadline, context.request_id)
        finally:
            # Which counts: what was seen was seen, whatever came of it.
            health = self._health(search)
        acts = self._acts(search, fallback, reason)
        latents, outcome = search.latents, search.outcome
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
            timing_ms=timing(context, latents, outcome),
            trajectory=acts.trajectory,
        )

    async def _search(self, search: Search, request: PlanRequest, context: RequestContext) -> None:
        """Search for a plan, and leave in ``search`` how far it came.

        Raises:
            Anomalous: a fallback is to answer; nothing was searched.
        """
        model, ticket = search.model, search.ticket
        frames, fields = (*request.frames, request.goal), (*fields_of(request.frames), "goal")
        with self._entrance.admitted(ticket, context):
            search.latents = await self._latents.latents(model, frames, fields)
            ticket.frames = 0
            if search.guarded:
                self._check(search)
            own, goal = search.latents.values[:-1], search.latents.values[-1]
            job = PlanJob(
                *(model.backend, ticket, search.solver, own, search.past, goal),
                with_trajectory="trajectory" in request.include,
                guard=partial(self._check, search) if search.guarded else None,
            )
            running = self._runner.submit(job)
            if len(own) == 1:  # nothing more will be known of the frames: look while it searches
                search.health = self._monitor.assess(model, self._scores(search))
            search.outcome = await self._runner.outcome(running)

    def _check(self, search: Search, expected: Tensor | None = None) -> None:
        """Raise `Anomalous` as soon as that is known of a search which a fallback would replace.

        ``expected`` (D,) is what the newest frame's latent was predicted to be.
        """
        scores = self._scores(search)
        search.surprise = scores.surprise(expected)
        if self._monitor.is_anomalous(search.model, scores, search.surprise):
            raise Anomalous

    def _scores(self, search: Search) -> Scores:
        """The scores of the frames and the goal, at which one look is enough."""
        if search.scores is None:
            assert search.latents is not None
            values = search.latents.values
            search.scores = self._monitor.score(search.model, values, len(values) - 1)
        return search.scores

    def _acts(
        self, search: Search, fallback: PreparedFallback | None, reason: Reason | None
    ) -> _Acts:
        """Whose actions the answer holds; counted."""
        model, outcome = search.model, search.outcome
        if outcome is not None:
            self._count_search(search, outcome)
        if fallback is not None and reason is not None:
            report = FallbackReport(fallback.controller, reason)
            acts = _Acts(fallback.actions, "fallback", report=report)
            self._metrics.fallbacks_total.labels(model.name, fallback.controller, reason).inc()
        else:
            assert outcome is not None  # or there was a reason
            trajectory = None if outcome.trajectory is None else outcome.trajectory.numpy()
            acts = _Acts(model.to_rows(outcome.actions), outcome.status, outcome.cost, trajectory)
        self._metrics.plan_status_total.labels(acts.status).inc()
        return acts

    def _health(self, search: Search) -> Health:
        """The health of the frames, where the search came so far that they could be looked at."""
        if search.health is not None:
            return search.health
        if search.latents is None:
            return Health("unknown", reasons=("a fallback answered before the frames were seen",))
        scores, surprise = self._scores(search), search.surprise
        if surprise is None and search.outcome is not None:
            surprise = scores.surprise(search.outcome.expected)
        return self._monitor.assess(search.model, scores, surprise)

    def _count_search(self, search: Search, outcome: PlanOutcome) -> None:
        config, horizon = search.model.card.config, len(outcome.actions)
        context = search.ticket.shape.context
        windows = (min(config.history, step) for step in range(context, context + horizon))
        self._metrics.plan_iterations.observe(outcome.iterations)
        self._metrics.candidates_total.inc(outcome.candidates)
        self._metrics.predictor_tokens_total.inc(outcome.candidates * sum(windows))
