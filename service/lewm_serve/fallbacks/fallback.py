"""A request's fallback: made before the search begins, so that it is there when it is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lewm_serve.errors import FieldProblem, InvalidRequest, Phrase
from lewm_serve.fallbacks.controller import Controller, FloatArray
from lewm_serve.requests import Fallback
from lewm_serve.served import ServedModel

NONE, HOLD, TAIL = "none", "hold", "tail"
GENERIC = (HOLD, TAIL)
"""The controllers of every model."""
STATE = "fallback.state"


@dataclass(frozen=True)
class PreparedFallback:
    """What ``controller`` would do: what it ``made``, or the exception by which it failed.

    A controller that fails is none of a plan's business for which it is not needed.
    """

    controller: str
    made: FloatArray | Exception

    @property
    def actions(self) -> FloatArray:
        """(R, action_dim), inside the model's bounds.

        Raises:
            RuntimeError: the controller failed; nothing else acts in its place.
        """
        if isinstance(self.made, Exception):
            raise RuntimeError(f"the controller {self.controller} failed") from self.made
        return self.made


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
    controller = model.controllers[name]
    state = _state(controller, name, wanted.state)
    try:
        actions = controller.actions(state, rows)
        if actions.shape != held.shape or not np.isfinite(actions).all():
            raise TypeError(f"gave {actions.shape}, expected {held.shape}, finite")
        return PreparedFallback(name, model.clip(actions))
    except ValueError as error:
        expected = str(error)
        raise InvalidRequest("out_of_range", STATE, state.tolist(), expected) from None
    except Exception as error:
        return PreparedFallback(name, error)


def _state(controller: Controller, name: str, state: FloatArray | None) -> FloatArray:
    """The state, if it is as long as the controller wants it."""
    meaning = f"{len(controller.state)} numbers for {name}: {', '.join(controller.state)}"
    if state is None:
        raise _missing(STATE, meaning)
    if len(state) != len(controller.state):
        received = Phrase(f"{len(state)} numbers")
        raise InvalidRequest("shape_mismatch", STATE, received, meaning)
    return state


def _missing(field: str, expected: str) -> InvalidRequest:
    return InvalidRequest.of(FieldProblem(field, "missing_field", "nothing", expected))
