"""What a request means for one model: all checks that need the model or the server's limits.

Each function turns one request into the values that the engine works with, or refuses it with an
error that names the field. Actions become z-scored action blocks. `require_finite` checks the
answer.

Axes: H context frames, R action rows, A = action_dim · action_block, T horizon in action blocks,
S candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.api.fields import FloatArray
from lewm_serve.api.requests import (
    EncodeRequest,
    Frame,
    PlanRequest,
    PredictRequest,
    SolverSettings,
)
from lewm_serve.engine.latency_model import RolloutShape
from lewm_serve.errors import FieldProblem, InvalidRequest, NonFiniteResult, Unquoted
from lewm_serve.objectives import DEFAULT_OBJECTIVE, STATE_OBJECTIVE, Objective
from lewm_serve.planner.state_goals import state_objective
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.settings import Settings
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import COMMON_SETTINGS, SearchSpace

BOUND_TOLERANCE = 1e-5
"""How far outside its bounds an action may be, relative to the width of the bounds. Actions at a
bound may exceed it a little, because float32 and JSON round."""


@dataclass(frozen=True)
class PredictInputs:
    """The past action blocks (H − 1, A) and the candidates (S, T, A) of a predict request."""

    past_actions: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class PlanInputs:
    """A plan as the engine works with it.

    Attributes:
        past_actions: the past action blocks (H − 1, A).
        committed_actions: the blocks (C, A) that are executed before the plan; None for none.
        solver_settings: the settings of the solver.
        objective: what its candidates cost.
        search_space: what the solver searches.
        starts_at_proposal: see `Search`.
        candidates_per_iteration: the number of candidates of each iteration.
        shape: the shape of its roll-outs.
    """

    past_actions: Tensor
    committed_actions: Tensor | None
    solver_settings: SolverConfig
    objective: Objective
    search_space: SearchSpace
    starts_at_proposal: bool
    candidates_per_iteration: Sequence[int]
    shape: RolloutShape


def validate_encode(request: EncodeRequest, settings: Settings) -> None:
    """Refuse more frames than the server allows.

    Raises:
        InvalidRequest: `frames` is wrong.
    """
    count = len(request.frames)
    if count > settings.max_frames:
        expected = f"at most {settings.max_frames} frames a request"
        raise InvalidRequest("out_of_range", "frames", received=count, expected=expected)


def validate_predict(
    model: LoadedModel,
    request: PredictRequest,
    settings: Settings,
    *,
    max_answer_values: int | None = None,
) -> PredictInputs:
    """Check a predict request, and convert it to the engine's inputs.

    ``max_answer_values`` is `RequestContext.max_answer_values`.

    Raises:
        InvalidRequest: `frames`, `past_actions`, `candidates` or `actions` is wrong.
    """
    if max_answer_values is not None:
        _check_answer_size(model, request, max_answer_values)
    _check_frame_count(model, len(request.frames))
    past_actions = _past_actions(model, request.past_actions, len(request.frames))
    return PredictInputs(past_actions, _candidates(model, request, settings))


def validate_plan(model: LoadedModel, request: PlanRequest, settings: Settings) -> PlanInputs:
    """Check a plan request, and convert it to the engine's inputs.

    Raises:
        InvalidRequest: `frames`, `past_actions`, `committed_actions`, `goal.state`, `avoid`,
            `solver`, `min_iterations` or `warm_start` is wrong.
    """
    _check_frame_count(model, len(request.frames))
    past_actions = _past_actions(model, request.past_actions, len(request.frames))
    committed_actions = _committed_actions(model, request.committed_actions, settings)
    executed = past_actions
    if committed_actions is not None:
        executed = torch.cat([past_actions, committed_actions])
    solver_settings = _solver_settings(
        model, request.solver, settings, goal_has_states=request.goal.state is not None
    )
    min_iterations = request.min_iterations
    if min_iterations is not None and min_iterations > solver_settings.iterations:
        expected = f"at most the solver's iterations, {solver_settings.iterations}"
        raise InvalidRequest(
            "out_of_range", "min_iterations", received=min_iterations, expected=expected
        )
    solver_class = SOLVERS[solver_settings.name]
    objective = _objective(model, request, solver_settings.objective)
    shape = RolloutShape(
        horizon=solver_settings.horizon,
        context=min(model.card.config.history, 1 + len(executed)),
        solver=solver_settings.name,
        gradients=solver_class.needs_gradients,
        objective=objective.name,
    )
    candidates_per_iteration = solver_class.candidates_per_ask(solver_settings)
    _check_candidate_steps(
        model, "solver", sum(candidates_per_iteration), shape=shape, settings=settings
    )
    return PlanInputs(
        past_actions=past_actions,
        committed_actions=committed_actions,
        solver_settings=solver_settings,
        objective=objective,
        search_space=_search_space(
            model, solver_settings, warm_start=request.warm_start, executed_actions=executed
        ),
        starts_at_proposal=solver_settings.objective == "distance" and request.warm_start is None,
        candidates_per_iteration=candidates_per_iteration,
        shape=shape,
    )


def require_finite(
    name: str, values: NDArray[np.floating] | float, *, frames: Iterable[tuple[str, Frame]]
) -> None:
    """Refuse an answer in which these values are not finite: the last check of every answer.

    Weights, statistics and latents are checked where they come in. This finds what gets past that,
    such as a roll-out that overflows.

    Args:
        name: what the values are, for the error.
        values: a part of the answer.
        frames: the request's frames, each with its path. Latents among them are the client's own
            numbers, so they are blamed.

    Raises:
        InvalidRequest: `not_finite`, if the client sent latents.
        NonFiniteResult: it sent none.
    """
    if np.isfinite(values).all():
        return
    problems = [
        FieldProblem(
            field=f"{field}.latent",
            code="not_finite",
            received=f"numbers up to {np.abs(frame.latent).max():g}",
            expected=f"a latent from which the model computes {name} that are finite",
        )
        for field, frame in frames
        if frame.latent is not None
    ]
    raise InvalidRequest.of(*problems) if problems else NonFiniteResult(name)


def _check_answer_size(model: LoadedModel, request: PredictRequest, max_values: int) -> None:
    """Refuse a prediction that is too large for the transport before it is computed."""
    if request.candidates is not None:
        field, (candidate_count, rows, _) = "candidates", request.candidates.shape
    else:
        assert request.actions is not None
        field, candidate_count, rows = "actions", 1, len(request.actions)
    config = model.card.config
    values = candidate_count * (rows // config.action_block) * config.latent_dim
    if values > max_values:
        raise InvalidRequest(
            "out_of_range",
            field,
            received=Unquoted(f"an answer of {values} values"),
            expected=f"at most {max_values} over REST; use gRPC",
        )


def _check_frame_count(model: LoadedModel, count: int) -> None:
    history = model.card.config.history
    if count > history:
        raise InvalidRequest(
            "shape_mismatch",
            "frames",
            received=Unquoted(f"{count} frames"),
            expected=f"at most {history} (the model's history)",
        )


def _past_actions(model: LoadedModel, rows: FloatArray | None, frame_count: int) -> Tensor:
    """The executed actions between ``frame_count`` frames as blocks (frame_count − 1, A)."""
    config = model.card.config
    count = (frame_count - 1) * config.action_block
    if rows is None:
        if frame_count > 1:
            expected = f"{count} rows, the actions between {frame_count} frames"
            raise InvalidRequest.missing("past_actions", expected)
        return torch.empty(0, config.block_width)
    if len(rows) != count:
        raise InvalidRequest(
            "shape_mismatch",
            "past_actions",
            received=Unquoted(f"{len(rows)} rows"),
            expected=f"{count} rows: (frames − 1) · action_block",
        )
    return _action_blocks(model, "past_actions", rows)


def _committed_actions(
    model: LoadedModel, rows: FloatArray | None, settings: Settings
) -> Tensor | None:
    """The actions that are executed before the plan, as blocks (C, A); None for none."""
    if rows is None or not len(rows):
        return None
    most = settings.max_horizon * model.card.config.action_block
    if len(rows) > most:
        received = Unquoted(f"{len(rows)} rows")
        expected = f"at most {most} rows, {settings.max_horizon} action blocks, on this server"
        raise InvalidRequest(
            "out_of_range", "committed_actions", received=received, expected=expected
        )
    return _action_blocks(model, "committed_actions", rows)


def _action_blocks(model: LoadedModel, field: str, rows: FloatArray) -> Tensor:
    """Rows (…, R, action_dim) inside the model's bounds as blocks (…, R / action_block, A)."""
    config = model.card.config
    if rows.shape[-1] != config.action_dim:
        received = Unquoted(f"{rows.shape[-1]} numbers a row")
        expected = f"{config.action_dim} (the model's action_dim)"
        raise InvalidRequest("shape_mismatch", field, received=received, expected=expected)
    if rows.shape[-2] % config.action_block:
        received = Unquoted(f"{rows.shape[-2]} rows")
        expected = f"a multiple of {config.action_block} (the model's action_block)"
        raise InvalidRequest("shape_mismatch", field, received=received, expected=expected)
    low, high = np.asarray(model.card.action_low), np.asarray(model.card.action_high)
    tolerance = BOUND_TOLERANCE * (high - low)
    outside = (rows < low - tolerance) | (rows > high + tolerance)
    if outside.any():
        index = np.unravel_index(int(outside.argmax()), rows.shape)
        path = field + "".join(f"[{part}]" for part in index)
        dim = index[-1]
        expected = f"within [{low[dim]:g}, {high[dim]:g}], the model's bounds"
        raise InvalidRequest("out_of_range", path, received=float(rows[index]), expected=expected)
    return model.to_blocks(rows)


def _candidates(model: LoadedModel, request: PredictRequest, settings: Settings) -> Tensor:
    """The candidates, or the one sequence of actions, as blocks (S, T, A)."""
    if request.candidates is not None:
        field = "candidates"
        _check_limit(field, len(request.candidates), settings.max_candidates)
        blocks = _action_blocks(model, field, request.candidates)
    else:
        assert request.actions is not None
        field = "actions"
        blocks = _action_blocks(model, field, request.actions).unsqueeze(0)
    horizon = blocks.shape[1]
    if horizon > settings.max_horizon:
        received = Unquoted(f"{horizon} action blocks")
        expected = f"at most {settings.max_horizon} action blocks on this server"
        raise InvalidRequest("out_of_range", field, received=received, expected=expected)
    answer_bytes = 4 * len(blocks) * horizon * model.card.config.latent_dim
    if answer_bytes > settings.max_body_bytes:
        received = Unquoted(f"{answer_bytes} bytes of latents")
        expected = f"candidates whose latents fit in {settings.max_body_bytes} bytes"
        raise InvalidRequest("out_of_range", field, received=received, expected=expected)
    shape = RolloutShape(horizon=horizon)
    _check_candidate_steps(model, field, len(blocks), shape=shape, settings=settings)
    return blocks


def _solver_settings(
    model: LoadedModel,
    requested: SolverSettings | None,
    settings: Settings,
    *,
    goal_has_states: bool,
) -> SolverConfig:
    """The request's solver settings; the model's card gives what is left out.

    With fewer samples than elites, all samples are elites. (If a request itself gives more elites
    than samples, it was refused before.)
    """
    requested_settings = {} if requested is None else requested.model_dump(exclude_none=True)
    solver_settings = replace(model.card.solver, **requested_settings)
    objective = solver_settings.objective or DEFAULT_OBJECTIVE
    if goal_has_states:
        objective = STATE_OBJECTIVE
        asked = requested_settings.get("objective", objective)
        if asked != objective:
            raise InvalidRequest(
                "conflicting_fields",
                "solver.objective",
                received=asked,
                expected=f"{objective} or nothing, since the goal is given by states",
            )
    solver_settings = replace(
        solver_settings,
        elites=min(solver_settings.elites, solver_settings.samples),
        objective=objective,
    )
    name = solver_settings.name
    if name not in SOLVERS:
        known = ", ".join(SOLVERS)
        raise InvalidRequest(
            "unknown_solver", "solver.name", received=name, expected=f"one of {known}"
        )
    own_settings = SOLVERS[name].own_settings
    for setting, value in requested_settings.items():
        if setting not in COMMON_SETTINGS and setting not in own_settings:
            raise InvalidRequest(
                "conflicting_fields",
                f"solver.{setting}",
                received=value,
                expected=f"only settings of {name}: {', '.join(own_settings)}",
            )
    _check_limit("solver.samples", solver_settings.samples, settings.max_samples)
    _check_limit("solver.iterations", solver_settings.iterations, settings.max_iterations)
    _check_limit("solver.horizon", solver_settings.horizon, settings.max_horizon)
    return solver_settings


def _objective(model: LoadedModel, request: PlanRequest, name: str | None) -> Objective:
    """What the candidates of a request cost: by default the model's objective of this name."""
    if request.goal.state is not None:
        return state_objective(model, request, base=None)
    if request.avoid:
        return state_objective(model, request, _model_objective(model, name))
    return _model_objective(model, name)


def _model_objective(model: LoadedModel, name: str | None) -> Objective:
    """The model's objective of this name."""
    if name == STATE_OBJECTIVE:
        raise InvalidRequest(
            "conflicting_fields",
            "solver.objective",
            received=name,
            expected=f"{' or '.join(model.objectives)}, since the goal is not given by states",
        )
    if name is None or name not in model.objectives:
        raise InvalidRequest(
            "out_of_range",
            "solver.objective",
            received=name,
            expected=f"{' or '.join(model.objectives)}: {model.name} has no learned distance; "
            "`lewm models distance MODEL DATA` trains one",
        )
    return model.objectives[name]


def _check_candidate_steps(
    model: LoadedModel, field: str, candidates: int, *, shape: RolloutShape, settings: Settings
) -> None:
    """Refuse a request that would keep the engine busy for too long."""
    limit = settings.max_candidate_steps
    if limit is None:
        limit = model.max_candidate_steps
    steps = candidates * model.steps_per_candidate(shape)
    if steps > limit:
        factor = f" × {model.latency.cost(shape):g} (gradients)" if shape.gradients else ""
        product = f"{candidates} candidates in all × horizon {shape.horizon}{factor}"
        raise InvalidRequest(
            "out_of_range",
            field,
            received=Unquoted(f"{steps} candidate-steps ({product})"),
            expected=f"at most {limit} on this server (LEWM_MAX_CANDIDATE_STEPS)",
        )


def _search_space(
    model: LoadedModel,
    solver_settings: SolverConfig,
    *,
    warm_start: FloatArray | None,
    executed_actions: Tensor,
) -> SearchSpace:
    """The search space, with the last of the executed action blocks (…, A) before it.

    The warm start is filled up with the mean action to the whole horizon, and moved into the space.
    """
    config, horizon = model.card.config, solver_settings.horizon
    if warm_start is None:
        start = torch.zeros(horizon, config.block_width)  # the z-scored mean action is 0
    else:
        mean_action = model.action_mean.numpy()
        rows = np.tile(mean_action, (horizon * config.action_block, 1))
        if len(warm_start) > len(rows):
            received = Unquoted(f"{len(warm_start)} rows")
            expected = f"at most {len(rows)} rows: horizon · action_block"
            raise InvalidRequest(
                "shape_mismatch", "warm_start", received=received, expected=expected
            )
        _check_warm_start(model, warm_start)
        rows[: len(warm_start)] = warm_start
        start = model.to_blocks(rows)
    space = SearchSpace(
        low=model.low,
        high=model.high,
        start=start,
        action_dim=config.action_dim,
        max_change=model.max_change,
        previous_action=executed_actions[-1, -config.action_dim :]
        if len(executed_actions)
        else None,
    )
    return replace(space, start=space.clip(start))


def _check_warm_start(model: LoadedModel, rows: FloatArray) -> None:
    """Check the rows like other actions. They may end inside an action block.

    The robot may have run a part of the block already, and sends the rest.
    """
    missing = -len(rows) % model.card.config.action_block
    whole_blocks = np.pad(rows, ((0, missing), (0, 0)), mode="edge")
    _action_blocks(model, "warm_start", whole_blocks)


def _check_limit(field: str, value: int, limit: int) -> None:
    if value > limit:
        raise InvalidRequest(
            "out_of_range", field, received=value, expected=f"at most {limit} on this server"
        )
