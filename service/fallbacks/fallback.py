"""A request's fallback: made before the search begins, so that it is there when it is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.errors import FieldProblem, InvalidRequest, Phrase
from service.fallbacks.controller import Controller, FloatArray
from service.requests import Fallback
from service.served import ServedModel

NONE, HOLD, TAIL = "none", "hold", "tail"
GENERIC = (HOLD, TAIL)
"""The controllers of every model."""


@dataclass(frozen=True)
class PreparedFallback:
    """What ``controller`` would do: ``actions`` (R, action_dim), inside the model's bounds."""

    controller: str
    actions: FloatArray


def controllers_of(model: ServedModel) -> tuple[str, ...]:
    """The names a request may give."""
    return (*GENERIC, *model.controllers)


def prepare_fallback(
    model: ServedModel, wanted: Fallback, warm_start: FloatArray | None, rows: int
) -> PreparedFallback | None:
    """The fallback that a request asks for, None for "none".

    ``warm_start`` (up to rows, action_dim) has been checked; ``rows`` is horizon · action_block.

    Raises:
        InvalidRequest: an unknown controller, or one that lacks the warm start or state it needs.
    """
    name = wanted.controller
    if name == NONE:
        return None
    held = np.tile(model.neutral, (rows, 1))
    if name == HOLD:
        return PreparedFallback(name, held)
    if name == TAIL:
        if warm_start is None:
            expected = 'what is left of the last plan: the controller "tail" runs it'
            raise _missing("warm_start", expected)
        held[: len(warm_start)] = warm_start
        return PreparedFallback(name, model.clip(held))
    if name not in model.controllers:
        expected = f"one of {', '.join((NONE, *controllers_of(model)))}"
        raise InvalidRequest("invalid_choice", "fallback.controller", name, expected)
    actions = _act(model.controllers[name], name, wanted.state, rows)
    if actions.shape != held.shape or not np.isfinite(actions).all():
        raise RuntimeError(f"controller {name} gave {actions.shape}, wanted {held.shape}, finite")
    return PreparedFallback(name, model.clip(actions))


def _act(controller: Controller, name: str, state: FloatArray | None, rows: int) -> FloatArray:
    field = "fallback.state"
    meaning = f"{len(controller.state)} numbers for {name}: {', '.join(controller.state)}"
    if state is None:
        raise _missing(field, meaning)
    if len(state) != len(controller.state):
        received = Phrase(f"{len(state)} numbers")
        raise InvalidRequest("shape_mismatch", field, received, meaning)
    try:
        return controller.actions(state, rows)
    except ValueError as error:
        raise InvalidRequest("out_of_range", field, state.tolist(), str(error)) from None


def _missing(field: str, expected: str) -> InvalidRequest:
    return InvalidRequest.of(FieldProblem(field, "missing_field", "nothing", expected))
