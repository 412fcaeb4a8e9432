"""What a request means for one model: everything that only the model and the caps can decide."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.errors import FieldProblem, InvalidRequest, Phrase
from lewm_serve.planning.solver import SHARED, Problem
from lewm_serve.planning.solvers import SOLVERS
from lewm_serve.requests import PredictRequest, SolverSettings, parse
from lewm_serve.served import FloatArray, ServedModel
from lewm_serve.settings import Settings

ROUNDING = 1e-5
"""How far outside its bounds an action may be: what float32 and JSON do to a bound."""


def check_frames(model: ServedModel, count: int) -> None:
    """Refuse more frames than the model looks back.

    Raises:
        InvalidRequest: `shape_mismatch` of `frames`.
    """
    history = model.card.config.history
    if count > history:
        expected = f"at most {history} (the model's history)"
        raise InvalidRequest("shape_mismatch", "frames", Phrase(f"{count} frames"), expected)


def resolve_past(model: ServedModel, rows: FloatArray | None, frames: int) -> Tensor:
    """The executed actions as z-scored blocks (frames − 1, A).

    Raises:
        InvalidRequest: of `past_actions`, when they are missing, mis-shaped or out of bounds.
    """
    config = model.card.config
    expected = (frames - 1) * config.action_block
    if rows is None:
        if frames > 1:
            problem = FieldProblem(
                "past_actions",
                "missing_field",
                "nothing",
                f"{expected} rows, the actions between {frames} frames",
            )
            raise InvalidRequest.of(problem)
        return torch.empty(0, config.block_width)
    if len(rows) != expected:
        raise InvalidRequest(
            "shape_mismatch",
            "past_actions",
            Phrase(f"{len(rows)} rows"),
            f"{expected} rows: (frames − 1) · action_block",
        )
    return resolve_actions(model, "past_actions", rows)


def resolve_actions(model: ServedModel, field: str, rows: FloatArray) -> Tensor:
    """Rows (…, R, action_dim) as z-scored blocks (…, R / action_block, A).

    Raises:
        InvalidRequest: of ``field``: another width, part of a block, or out of bounds.
    """
    config = model.card.config
    if rows.shape[-1] != config.action_dim:
        expected = f"{config.action_dim} (the model's action_dim)"
        received = Phrase(f"{rows.shape[-1]} numbers a row")
        raise InvalidRequest("shape_mismatch", field, received, expected)
    if rows.shape[-2] % config.action_block:
        expected = f"a multiple of {config.action_block} (the model's action_block)"
        received = Phrase(f"{rows.shape[-2]} rows")
        raise InvalidRequest("shape_mismatch", field, received, expected)
    low, high = (np.asarray(bound) for bound in (model.card.action_low, model.card.action_high))
    slack = ROUNDING * (high - low)
    outside = (rows < low - slack) | (rows > high + slack)
    if outside.any():
        where = np.unravel_index(int(outside.argmax()), rows.shape)
        path = field + "".join(f"[{index}]" for index in where)
        expected = f"within [{low[where[-1]]:g}, {high[where[-1]]:g}], the model's bounds"
        raise InvalidRequest("out_of_range", path, float(rows[where]), expected)
    return model.to_blocks(rows)


def resolve_candidates(model: ServedModel, request: PredictRequest, settings: Settings) -> Tensor:
    """Candidates, or the one sequence of actions, of a prediction as z-scored blocks (N, T, A).

    Raises:
        InvalidRequest: of `candidates` or `actions`, as `resolve_actions`, or more than the caps
            allow.
    """
    if request.candidates is not None:
        field = "candidates"
        _check_cap(field, len(request.candidates), settings.max_candidates)
        blocks = resolve_actions(model, field, request.candidates)
    else:
        assert request.actions is not None
        field = "actions"
        blocks = resolve_actions(model, field, request.actions).unsqueeze(0)
    horizon = blocks.shape[1]
    if horizon > settings.max_horizon:
        expected = f"at most {settings.max_horizon} action blocks on this server"
        raise InvalidRequest("out_of_range", field, Phrase(f"{horizon} action blocks"), expected)
    answer = 4 * len(blocks) * horizon * model.card.config.latent_dim
    if answer > settings.max_body_bytes:
        expected = f"candidates whose latents fit in {settings.max_body_bytes} bytes"
        raise InvalidRequest("out_of_range", field, Phrase(f"{answer} bytes of latents"), expected)
    return blocks


def resolve_solver(
    model: ServedModel, wanted: SolverSettings | None, settings: Settings
) -> SolverDefaults:
    """The request's solver settings over those of the model's card.

    Elites that only the card or only the request names are lowered to the samples there are.

    Raises:
        InvalidRequest: an unknown solver, a setting that it does not have, or more than a cap.
    """
    given = {} if wanted is None else wanted.model_dump(exclude_none=True)
    resolved = replace(model.card.solver, **given)
    resolved = replace(resolved, elites=min(resolved.elites, resolved.samples))
    _check_name(resolved.name)
    own = SOLVERS[resolved.name].own
    for name, value in given.items():
        if name not in SHARED and name not in own:
            expected = f"no such setting with {resolved.name}, which has {', '.join(own)}"
            raise InvalidRequest("conflicting_fields", f"solver.{name}", value, expected)
    for name in ("samples", "iterations", "horizon"):
        _check_cap(f"solver.{name}", getattr(resolved, name), getattr(settings, f"max_{name}"))
    return resolved


def check_card(model: ServedModel) -> None:
    """Refuse a card with solver settings that no request could name.

    Raises:
        InvalidRequest: an unknown solver, or a setting out of range.
    """
    solver = asdict(model.card.solver)
    _check_name(solver["name"])
    parse(SolverSettings, solver | {"elites": min(solver["elites"], solver["samples"])})


def _check_name(solver: str) -> None:
    if solver not in SOLVERS:
        known = f"one of {', '.join(SOLVERS)}"
        raise InvalidRequest("unknown_solver", "solver.name", solver, known)


def resolve_problem(
    model: ServedModel, solver: SolverDefaults, warm_start: FloatArray | None
) -> Problem:
    """The search space, and where the search begins: the warm start, then the mean action.

    Raises:
        InvalidRequest: of `warm_start`.
    """
    config = model.card.config
    if warm_start is None:
        start = torch.zeros(solver.horizon, config.block_width)  # z-scored, the mean action is 0
    else:
        rows = np.tile(model.mean.numpy(), (solver.horizon * config.action_block, 1))
        if len(warm_start) > len(rows):
            expected = f"at most {len(rows)} rows: horizon · action_block"
            received = Phrase(f"{len(warm_start)} rows")
            raise InvalidRequest("shape_mismatch", "warm_start", received, expected)
        # A warm start may end within a block: what is left of a plan being run.
        whole = resolve_warm_rows(model, warm_start)
        rows[: len(whole)] = whole
        start = model.to_blocks(rows)
    return Problem(model.low, model.high, start.clamp(model.low, model.high), config.action_dim)


def resolve_warm_rows(model: ServedModel, rows: FloatArray) -> FloatArray:
    """The warm start's rows, checked like any actions save for their number.

    Raises:
        InvalidRequest: of `warm_start`.
    """
    missing = -len(rows) % model.card.config.action_block
    filled = np.pad(rows, ((0, missing), (0, 0)), mode="edge")
    resolve_actions(model, "warm_start", filled)
    return rows


def check_min_iterations(wanted: int | None, solver: SolverDefaults) -> None:
    """Refuse a least number of iterations beyond the solver's own.

    Raises:
        InvalidRequest: `out_of_range` of `min_iterations`.
    """
    if wanted is not None and wanted > solver.iterations:
        expected = f"at most the solver's iterations, {solver.iterations}"
        raise InvalidRequest("out_of_range", "min_iterations", wanted, expected)


def _check_cap(field: str, value: int, most: int) -> None:
    if value > most:
        raise InvalidRequest("out_of_range", field, value, f"at most {most} on this server")
