"""Plans whose searches stay on the device of the model.

`on_device` replaces the job of a plan that can be searched there. Its candidates, costs and
Gaussians never come to the host; `lewm_serve.solvers.device` computes them. The host decides which
plans share the next iterations, launches these, and waits for their end once a turn. It reads what
a search has found when the plan is answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_models.config import LeWMConfig
from lewm_serve.backends.backend import Backend, DeviceRollouts
from lewm_serve.backends.cuda_graph import StepGraphs
from lewm_serve.engine.batching import padded_size
from lewm_serve.engine.jobs import Job, PlanJob, SearchProgress
from lewm_serve.objectives import Objective
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT, LatentObjective
from lewm_serve.solvers.device.search import (
    DEVICE_SOLVERS,
    PADDING_ROW,
    DeviceSearch,
    SearchShape,
    Step,
    solver_schedule,
)

DEVICE_TURN_S = 0.005
"""Iterations that take about this long together run without a look at the queue. A plan that comes
meanwhile waits for them."""

MAX_DEVICE_STEPS = 1 << 16
"""Candidates × horizon of an iteration on the device. Searches with more run on the host, which
rolls them out in parts; they would take much memory at once."""

FIRST_CAPACITY = 256
"""Rows of a new table of searches. It grows when more plans have started, and then iterations are
recorded anew."""

MAX_GROUPS = 16
"""Kinds of searches that one backend keeps tables of. The one that was used longest ago is dropped
for a new one, if none of its plans is in progress."""

WARM_UP_PLANS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of plans whose iterations are recorded before a model is served."""


class GroupKey(NamedTuple):
    """What plans have in common that may share iterations."""

    shape: SearchShape
    objective: Objective


class SearchGroup:
    """The searches of one kind on one backend: their tables, and which plan has which row.

    A row is free again when its job is gone: finished, failed or cancelled.
    """

    def __init__(self, key: GroupKey, rollouts: DeviceRollouts) -> None:
        roll_out, objective = rollouts.roll_out, key.objective

        def score(
            latents: Tensor, past_actions: Tensor, goals: Tensor, candidates: Tensor
        ) -> tuple[Tensor, Tensor]:
            predicted = roll_out(latents, past_actions, candidates)
            return predicted, objective(predicted, goals)

        self.search = DeviceSearch(key.shape, score, rollouts.device, FIRST_CAPACITY)
        self._device = rollouts.device
        self._jobs: WeakValueDictionary[int, DevicePlanJob] = WeakValueDictionary()
        self._iterate: Callable[[Tensor, int], tuple[Tensor, Tensor]] = self.search.iterate
        self._graphs: StepGraphs | None = None
        if rollouts.graph_pool is not None:
            self._iterate = self._graphs = StepGraphs(
                self.search.iterate, rollouts.device, rollouts.graph_pool
            )

    @property
    def in_use(self) -> bool:
        """Whether a plan in progress has a row."""
        return bool(self._jobs)

    @torch.inference_mode()
    def begin(self, job: DevicePlanJob) -> int:
        """Put a plan's search into a row that is free, and return it."""
        rows = range(PADDING_ROW + 1, self.search.capacity)
        row = next((row for row in rows if row not in self._jobs), None)
        if row is None:
            row = self.search.capacity
            self.search.grow()
            if self._graphs is not None:
                self._graphs.forget()
        self._jobs[row] = job
        self.search.begin(
            row,
            job.search.solver_settings,
            job.start_space(),
            job.search.seed,
            latents=job.latents,
            past_actions=job.past_actions,
            goal=job.goal,
        )
        return row

    @torch.inference_mode()
    def iterate(self, schedules: Sequence[Sequence[Step]], samples: int) -> tuple[Tensor, Tensor]:
        """The next iterations of some plans, whose `Step`s are given; waits for their end.

        ``samples`` is the number of candidates with the padding. Returns the candidates and the
        costs of the last iteration, on the device, see `DeviceSearch.iterate`.
        """
        padding = [Step()] * (padded_size(len(schedules)) - len(schedules))
        steps = torch.tensor(
            [[*together, *padding] for together in zip(*schedules, strict=True)], dtype=torch.int64
        ).to(self._device)
        for step in steps:
            result = self._iterate(step, samples)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return result


class DevicePlanJob(PlanJob):
    """A plan whose search is on the device; see the module and `PlanJob`.

    Attributes:
        batch_key: what it shares with plans of the same iterations.
        schedule: the iterations that it has not done yet.
    """

    def __init__(
        self, *, rollouts: DeviceRollouts, key: GroupKey, future: Future[Any], **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.future = future
        self.batch_key: Hashable = key
        self.schedule = deque(solver_schedule(self.search.solver_settings))
        self._rollouts = rollouts
        self._key = key
        self._scored_candidates = 0
        self._iterations = 0
        self._converged = False
        self._began = False

    @cached_property
    def group(self) -> SearchGroup:
        """The searches that it shares iterations with."""
        return _group_of(self._rollouts, self._key)

    @cached_property
    def row(self) -> int:
        """Its row in the tables. It gets one when the search starts."""
        return self.group.begin(self)

    @property
    def candidate_count(self) -> int:
        """See `Job`."""
        return self.schedule[0].candidates

    def parts_in_turn(self, now: float, part_s: float) -> int:
        """See `Job`. The host has to look at each iteration of a traced or converging search."""
        if self.recorder is not None or self.search.solver_settings.tolerance > 0:
            return 1
        seconds = min(DEVICE_TURN_S, self.queued.deadline - now)
        return max(1, min(len(self.schedule), int(seconds / part_s) if part_s > 0 else 1))

    def start_part(self, now: float) -> None:
        """See `Job`."""
        if self.started_at is None:
            self.started_at = now
        self.queued.started_iterations = self.queued.completed_iterations + 1

    def run_part(self) -> None:
        """See `Job`."""
        run_on_device([self], 1)

    def take(self, predicted: Tensor) -> None:
        """See `Job`: predicted latents stay on the device."""
        raise NotImplementedError

    def advance(self, parts: int, candidates: Tensor, costs: Tensor) -> None:
        """Some iterations have ended, the last with these candidates (S, T, A) and costs (S,)."""
        for _ in range(parts):
            step = self.schedule.popleft()
            self._scored_candidates += step.candidates
            self._iterations += step.learns
        self.queued.completed_iterations += parts
        if self.recorder is not None:
            self.recorder.end(candidates[: step.candidates].cpu(), costs[: step.candidates].cpu())
            self._began = False
        if self._has_converged(step):
            self._converged = True
            # CEM scores its final mean; the others have ended.
            self.schedule = deque(left for left in self.schedule if not left.learns)
        self.finished = not self.schedule

    def _has_converged(self, step: Step) -> bool:
        tolerance = self.search.solver_settings.tolerance
        if tolerance <= 0 or not step.learns:
            return False
        return float(self.group.search.progress(self.row).spread) <= tolerance

    def _make_candidates(self, now: float) -> None:
        assert self.row > PADDING_ROW  # the search has started now
        if self.recorder is not None and not self._began:
            self.recorder.begin(now)
            self._began = True

    def _rows_left(self) -> int:
        return self.candidate_count

    def _progress(self) -> SearchProgress:
        found = self.group.search.found(self.row) if self._scored_candidates else None
        if found is not None:
            self.best_cost, self.best_path = found.best.cost, found.path
        return SearchProgress(
            best=None if found is None else found.best,
            iterations=self._iterations,
            scored_candidates=self._scored_candidates,
            converged=self._converged,
            done=not self.schedule,
        )


def run_on_device(jobs: Sequence[Job], parts: int) -> None:
    """The next iterations of plans with the same key, on the device; waits for their end."""
    plans = [job for job in jobs if isinstance(job, DevicePlanJob)]
    steps = [
        [step._replace(row=plan.row) for step in list(plan.schedule)[:parts]] for plan in plans
    ]
    samples = _samples([plan.search.solver_settings for plan in plans], steps)
    candidates, costs = plans[0].group.iterate(steps, samples)
    for index, plan in enumerate(plans):
        plan.advance(parts, candidates[index], costs[index])


def on_device(job: PlanJob) -> PlanJob:
    """The job whose search is on the device, with the same future; or the job itself.

    Solvers that are not tensor programs, goals by states, regions to avoid and very large
    iterations are searched on the host.
    """
    rollouts, search, settings = job.backend.device_rollouts, job.search, job.search.solver_settings
    if (
        rollouts is None
        or settings.name not in DEVICE_SOLVERS
        or not isinstance(search.objective, LatentObjective | DistanceObjective)
        or settings.samples * settings.horizon > MAX_DEVICE_STEPS
    ):
        return job
    context = len(job.latents)
    if job.committed_actions is not None:
        context = min(context + len(job.committed_actions), job.queued.shape.context)
    space = search.search_space
    shape = SearchShape(
        solver=settings.name,
        horizon=settings.horizon,
        block_width=space.start.shape[1],
        action_dim=space.action_dim,
        context=context,
        latent_dim=job.latents.shape[1],
        limits_change=space.max_change is not None,
    )
    return DevicePlanJob(
        rollouts=rollouts,
        key=_key(shape, search.objective),
        future=job.future,
        **job.arguments(),
    )


def warm_up_searches(
    backend: Backend, config: LeWMConfig, solver: SolverConfig, objective: Objective, max_rows: int
) -> None:
    """Record the iterations of a solver, so that no plan waits for that.

    From one frame and from a whole history; for as many plans as share iterations of ``max_rows``.
    """
    rollouts = backend.device_rollouts
    if rollouts is None or rollouts.graph_pool is None or solver.name not in DEVICE_SOLVERS:
        return
    counts = {_samples([solver], [[step]]) for step in solver_schedule(solver)}
    for context in {1, config.history}:
        shape = SearchShape(
            solver=solver.name,
            horizon=solver.horizon,
            block_width=config.block_width,
            action_dim=config.action_dim,
            context=context,
            latent_dim=config.latent_dim,
            limits_change=False,
        )
        group = _group_of(rollouts, _key(shape, objective))
        for plans in WARM_UP_PLANS:
            for samples in counts:
                if plans == 1 or plans * samples <= max_rows:
                    group.iterate([[Step()]] * plans, samples)


def _samples(settings: Sequence[SolverConfig], schedules: Sequence[Sequence[Step]]) -> int:
    """Candidates of each plan with the padding: few numbers, and that of the settings exactly."""
    most = max(step.candidates for schedule in schedules for step in schedule)
    return min(padded_size(most), max(max(chosen.samples for chosen in settings), most))


def _key(shape: SearchShape, objective: Objective) -> GroupKey:
    # A job from another process has a latent objective of its own.
    return GroupKey(shape, LATENT if isinstance(objective, LatentObjective) else objective)


def _group_of(rollouts: DeviceRollouts, key: GroupKey) -> SearchGroup:
    """The group of this key; the newest use is last."""
    groups: dict[GroupKey, SearchGroup] = rollouts.searches
    group = groups.pop(key, None)
    if group is None:
        idle = [old for old, kept in groups.items() if not kept.in_use]
        for old in idle[: max(0, len(groups) + 1 - MAX_GROUPS)]:
            del groups[old]
        group = SearchGroup(key, rollouts)
    groups[key] = group
    return group
