"""CEM, iCEM and MPPI for many plans at once: one iteration is one tensor program.

All that the searches of one shape know is in two tables on the device, with one row for each plan.
An iteration gathers the rows of some plans, draws their candidates, scores them, fits the Gaussians
and writes the rows back. Plans of one iteration may have different seeds, numbers of candidates,
settings and progress. The program never waits for the device, and the content of tensors does not
decide what it does, so that it can be recorded as a CUDA graph.

`solver_schedule` says what the iterations of a search are; the solvers themselves (`cem.py`,
`mppi.py`) are the reference of what is computed.

Axes: P plans of an iteration, S candidates, T horizon in action blocks, A one action block, H
context frames, D latent_dim, K elites that are kept, M = S + K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.cem import ICEM_KEPT_ELITES
from lewm_serve.solvers.device.noise import (
    basis_size,
    noise,
    noise_basis,
    normal_numbers_on,
    stream_key,
)
from lewm_serve.solvers.solver import MIN_VARIANCE_DIVISOR, ScoredSequence, SearchSpace

DEVICE_SOLVERS = ("cem", "icem", "mppi")
"""The solvers that are tensor programs too."""

PADDING_ROW = 0
"""The row of no plan. Padding of an iteration refers to it."""

WORST_COST = torch.finfo(torch.float32).max
"""Costs that are infinite or not a number count as this; only candidates that do not exist have
infinite costs."""

MIN_TEMPERATURE = torch.finfo(torch.float32).tiny
"""The least temperature of MPPI. With it only the best candidate has any weight."""

Score = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Contexts (P, H, D), past actions (P, H − 1, A), goals (P, D) and candidates (P, S, T, A) →
predicted latents (P, S, T, D) and costs (P, S)."""


Shapes = Mapping[str, tuple[int, ...]]
"""The fields of a plan's row in their order, and their shapes."""


class SearchShape(NamedTuple):
    """What plans of one table have in common. ``limits_change``: whether any change of an action
    from one time step to the next is limited."""

    solver: str
    horizon: int
    block_width: int
    action_dim: int
    context: int
    latent_dim: int
    limits_change: bool

    @property
    def steps(self) -> int:
        """The number of time steps of the horizon."""
        return self.horizon * self.block_width // self.action_dim


class Step(NamedTuple):
    """What a plan does in one iteration: a row of the program's input.

    Attributes:
        row: its row of the tables.
        iteration: which iteration of its search this is, from 0 on.
        candidates: how many candidates it has.
        with_mean: whether candidate 0 is the mean.
        learns: whether it learns from the costs. CEM does not from that of its final mean.
    """

    row: int = PADDING_ROW
    iteration: int = 0
    candidates: int = 0
    with_mean: bool = False
    learns: bool = False


class Problem(NamedTuple):
    """What a search is given. The first axis P is the plan.

    Attributes:
        low, high: (P, A).
        basis: (P, B, L); see `noise_basis`.
        elites, momentum, temperature: (P,).
        max_change: (P, action_dim), infinite without a limit.
        first_low, first_high: (P, action_dim): what the change from the previous action allows.
        latents, past_actions, goal: (P, H, D), (P, H − 1, A) and (P, D).
    """

    low: Tensor
    high: Tensor
    basis: Tensor
    elites: Tensor
    momentum: Tensor
    temperature: Tensor
    max_change: Tensor
    first_low: Tensor
    first_high: Tensor
    latents: Tensor
    past_actions: Tensor
    goal: Tensor


class Progress(NamedTuple):
    """What a search has found. The first axis P is the plan.

    Attributes:
        mean, std: (P, T, A), of the Gaussian.
        spread: (P,): the largest deviation; infinity if it is not known.
        best, best_cost, best_path: (P, T, A), (P,) and (P, T, D): the best candidate, its cost and
            its predicted latents. The cost is infinite before the first iteration.
        kept, kept_costs: (P, K, T, A) and (P, K): elites that compete again.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor
    best: Tensor
    best_cost: Tensor
    best_path: Tensor
    kept: Tensor
    kept_costs: Tensor


class FoundPlan(NamedTuple):
    """What a search has found, on the host; ``path`` are the predicted latents (T, D)."""

    best: ScoredSequence
    path: Tensor
    spread: float


def solver_schedule(settings: SolverConfig) -> list[Step]:
    """The iterations of a search that does not converge early, without its row."""
    counts = SOLVERS[settings.name].candidates_per_ask(settings)
    last = settings.iterations - 1
    return [
        Step(
            iteration=iteration,
            candidates=count,
            with_mean=settings.name != "icem" or iteration in (0, last),
            learns=iteration <= last,
        )
        for iteration, count in enumerate(counts)
    ]


class DeviceSearch:
    """The tables of all searches of one shape, and their iterations.

    Args:
        shape: what the searches have in common.
        score: rolls candidates out and scores them, on the device.
        device: where the tables are.
        capacity: rows of the tables; they grow.
    """

    def __init__(
        self, shape: SearchShape, score: Score, device: torch.device, capacity: int
    ) -> None:
        self.shape = shape
        self._score = score
        self._device = device
        kept = ICEM_KEPT_ELITES if shape.solver == "icem" else 0
        plan, width, dim = (shape.horizon, shape.block_width), shape.block_width, shape.action_dim
        self._problem_shapes: Shapes = {
            "low": (width,),
            "high": (width,),
            "basis": (basis_size(shape.steps), shape.steps),
            "elites": (),
            "momentum": (),
            "temperature": (),
            "max_change": (dim,),
            "first_low": (dim,),
            "first_high": (dim,),
            "latents": (shape.context, shape.latent_dim),
            "past_actions": (shape.context - 1, width),
            "goal": (shape.latent_dim,),
        }
        self._progress_shapes: Shapes = {
            "mean": plan,
            "std": plan,
            "spread": (),
            "best": plan,
            "best_cost": (),
            "best_path": (shape.horizon, shape.latent_dim),
            "kept": (kept, *plan),
            "kept_costs": (kept,),
        }
        self._kept = kept
        self._normal_numbers = normal_numbers_on(device)
        self._keys = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._problems = torch.zeros(capacity, _width(self._problem_shapes), device=device)
        self._progress = torch.zeros(capacity, _width(self._progress_shapes), device=device)

    @property
    def capacity(self) -> int:
        """The number of rows. One of them is of no plan."""
        return len(self._keys)

    def grow(self) -> None:
        """Double the number of rows. What was recorded refers to the old tables."""
        self._keys = torch.cat([self._keys, torch.zeros_like(self._keys)])
        self._problems = torch.cat([self._problems, torch.zeros_like(self._problems)])
        self._progress = torch.cat([self._progress, torch.zeros_like(self._progress)])

    def begin(
        self,
        row: int,
        settings: SolverConfig,
        space: SearchSpace,
        seed: int,
        *,
        latents: Tensor,
        past_actions: Tensor,
        goal: Tensor,
    ) -> None:
        """Put a search into a row: settings, space and seed, and the plan's context and goal."""
        solver = SOLVERS[settings.name]
        own = {name: solver.own_setting_of(settings, name) for name in solver.own_settings}
        infinite = torch.full((space.action_dim,), math.inf)
        change = infinite if space.max_change is None else space.max_change
        first_change, previous = infinite, torch.zeros(space.action_dim)
        if space.previous_action is not None:
            first_change, previous = change, space.previous_action
        basis = noise_basis(self.shape.steps, own.get("noise_exponent"))
        problem = Problem(
            low=space.low,
            high=space.high,
            basis=torch.from_numpy(basis),
            elites=torch.tensor(float(settings.elites)),
            momentum=torch.tensor(own.get("momentum", 0.0)),
            temperature=torch.tensor(max(own.get("temperature", 1.0), MIN_TEMPERATURE)),
            max_change=change,
            first_low=previous - first_change,
            first_high=previous + first_change,
            latents=latents,
            past_actions=past_actions,
            goal=goal,
        )
        progress = Progress(
            mean=space.start,
            std=torch.full_like(space.start, own["deviation"]),
            spread=torch.tensor(math.inf),
            best=torch.zeros_like(space.start),
            best_cost=torch.tensor(math.inf),
            best_path=torch.zeros(self._progress_shapes["best_path"]),
            kept=torch.zeros(self._progress_shapes["kept"]),
            kept_costs=torch.full(self._progress_shapes["kept_costs"], math.inf),
        )
        self._keys[row] = stream_key(seed)
        self._problems[row] = torch.cat([part.flatten() for part in problem])
        self._progress[row] = torch.cat([part.flatten() for part in progress])

    def found(self, row: int) -> FoundPlan | None:
        """What the search in a row has found; None before its first iteration. Waits for it."""
        progress = self.progress(row)
        cost = float(progress.best_cost)
        if cost == math.inf:
            return None
        best = ScoredSequence(progress.best[0], cost if cost < WORST_COST else math.inf)
        return FoundPlan(best, progress.best_path[0], float(progress.spread))

    def progress(self, row: int) -> Progress:
        """The progress of one plan, on the host. Waits for it."""
        packed = self._progress[row : row + 1].cpu().clone()
        return Progress(**_split(packed, self._progress_shapes))

    def iterate(self, steps: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """One iteration of some plans.

        Args:
            steps: (P, 5) int64 on the device: a `Step` of each plan. Each plan has one, and padding
                has any number.
            samples: S, at least the largest number of ``candidates``.

        Returns:
            The candidates (P, S, T, A), and their costs (P, S): infinite for candidates that the
            plan does not have.
        """
        rows, iterations, counts, with_mean, learns = steps.unbind(1)
        problem = Problem(**_split(self._problems[rows], self._problem_shapes))
        progress = Progress(**_split(self._progress[rows], self._progress_shapes))
        candidates = self._candidates(
            problem,
            progress,
            self._normal_numbers(
                self._keys[rows],
                iterations,
                samples=samples,
                count=self.shape.action_dim * basis_size(self.shape.steps),
            ),
            with_mean > 0,
        )
        predicted, costs = self._score(
            problem.latents, problem.past_actions, problem.goal, candidates
        )
        costs = costs.nan_to_num(nan=WORST_COST, posinf=WORST_COST)
        exists = torch.arange(samples, device=self._device) < counts.unsqueeze(1)
        costs = costs.masked_fill(~exists, math.inf)
        found = _with_best(progress, candidates, costs, predicted)
        learned = self._learn(problem, found, candidates, costs)
        packed = _where(learns > 0, _pack(learned), _pack(found))
        self._progress.index_copy_(0, rows, packed)
        return candidates, costs

    def _candidates(
        self, problem: Problem, progress: Progress, numbers: Tensor, with_mean: Tensor
    ) -> Tensor:
        """Candidates (P, S, T, A) around the means."""
        drawn = noise(
            numbers,
            problem.basis,
            scaled=self.shape.solver != "cem",
            horizon=self.shape.horizon,
        )
        drawn[:, 0] = _where(with_mean, torch.zeros_like(drawn[:, 0]), drawn[:, 0])
        candidates = torch.addcmul(progress.mean.unsqueeze(1), progress.std.unsqueeze(1), drawn)
        candidates = candidates.clamp(problem.low[:, None, None], problem.high[:, None, None])
        return self._limit_changes(problem, candidates) if self.shape.limits_change else candidates

    def _limit_changes(self, problem: Problem, candidates: Tensor) -> Tensor:
        """Move the candidates, step by step, to allowed changes; see `SearchSpace.clip`."""
        actions = candidates.reshape(*candidates.shape[:2], -1, self.shape.action_dim)
        low, high = problem.first_low.unsqueeze(1), problem.first_high.unsqueeze(1)
        change = problem.max_change.unsqueeze(1)
        limited: list[Tensor] = []
        for action in actions.unbind(2):
            limited.append(action.clamp(low, high))
            low, high = limited[-1] - change, limited[-1] + change
        return torch.stack(limited, dim=2).view_as(candidates)

    def _learn(
        self, problem: Problem, progress: Progress, candidates: Tensor, costs: Tensor
    ) -> Progress:
        """Fit mean and deviation to the candidates, as `GaussianSolver` does."""
        pool, pool_costs = candidates, costs
        if self._kept:
            pool = torch.cat([candidates, progress.kept], dim=1)
            pool_costs = torch.cat([costs, progress.kept_costs], dim=1)
        if self.shape.solver == "mppi":
            weights = path_weights(pool_costs, problem.temperature)
        else:
            order = pool_costs.argsort(dim=1, stable=True)
            graded = self.shape.solver == "icem"
            weights = elite_weights(order, problem.elites, graded=graded)
        if self._kept:  # more than the elites do no harm: they are behind these
            chosen = order[:, : self._kept]
            index = chosen[:, :, None, None].expand(-1, -1, *pool.shape[2:])
            progress = progress._replace(
                kept=pool.gather(1, index),
                kept_costs=pool_costs.gather(1, chosen),
            )
        values, by_value = pool.flatten(2), weights.unsqueeze(1)
        mean = (by_value @ values).view_as(progress.mean)
        deviations = (values - mean.flatten(1).unsqueeze(1)).square()
        divisor = 1 - weights.square().sum(dim=1)
        is_unknown = divisor < MIN_VARIANCE_DIVISOR
        variance = (by_value @ deviations).view_as(mean) / divisor[:, None, None]
        momentum = problem.momentum[:, None, None]
        std = variance.clamp_min(0).sqrt().lerp(progress.std, momentum)
        std = _where(is_unknown, progress.std, std)
        return progress._replace(
            mean=mean.lerp(progress.mean, momentum),
            std=std,
            spread=std.flatten(1).amax(dim=1).masked_fill(is_unknown, math.inf),
        )


def elite_weights(order: Tensor, elites: Tensor, *, graded: bool) -> Tensor:
    """Weights (P, M) of candidates that sum to 1, for their ``order`` (P, M), the best first.

    The ``elites`` (P,) best have weights: equal ones, or if ``graded`` those of `rank_weights`.
    """
    rank = torch.arange(1, order.shape[1] + 1, device=order.device)
    elites = elites.unsqueeze(1)
    value = (elites + 0.5).log() - rank.log() if graded else torch.ones_like(rank).float()
    by_rank = value.expand(order.shape).masked_fill(rank > elites, 0.0)
    by_rank = by_rank / by_rank.sum(dim=1, keepdim=True)
    return torch.zeros_like(by_rank).scatter(1, order, by_rank)


def path_weights(costs: Tensor, temperatures: Tensor) -> Tensor:
    """Weights (P, M) that sum to 1 for costs (P, M); see `lewm_serve.solvers.mppi.path_weights`."""
    exists = costs.isfinite()
    finite = costs < WORST_COST
    above_best = costs.double() - costs.amin(dim=1, keepdim=True)
    total = above_best.masked_fill(~finite, 0.0).sum(dim=1, keepdim=True)
    spread = total / finite.sum(dim=1, keepdim=True).clamp_min(1)
    spread = spread.clamp_min(torch.finfo(torch.float64).tiny)
    exponents = -above_best / spread / temperatures.double().unsqueeze(1)
    # If no cost is finite, all candidates count equally.
    counts = exists & (finite | ~finite.any(dim=1, keepdim=True))
    exponents = exponents.masked_fill(~counts, -math.inf)
    return exponents.softmax(dim=1).to(costs.dtype).nan_to_num(nan=0.0)


def _with_best(
    progress: Progress, candidates: Tensor, costs: Tensor, predicted: Tensor
) -> Progress:
    """The progress with the best candidate of this iteration, where it is better."""
    cost, index = costs.min(dim=1)
    is_better = cost < progress.best_cost
    plan = torch.arange(len(costs), device=costs.device)
    return progress._replace(
        best=_where(is_better, candidates[plan, index], progress.best),
        best_cost=torch.minimum(cost, progress.best_cost),
        best_path=_where(is_better, predicted[plan, index], progress.best_path),
    )


def _where(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``first`` for the plans (P,) that meet the condition, ``second`` for the others."""
    return torch.where(condition.view(-1, *[1] * (first.ndim - 1)), first, second)


def _width(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _pack(parts: Sequence[Tensor]) -> Tensor:
    """Parts (P, …) as rows (P, width)."""
    return torch.cat([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts], dim=1)


def _split(packed: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Rows (P, width) in parts (P, …) of these names and shapes."""
    widths = [math.prod(shape) for shape in shapes.values()]
    parts = torch.split(packed, widths, dim=1)
    return {
        name: part.reshape(len(packed), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
