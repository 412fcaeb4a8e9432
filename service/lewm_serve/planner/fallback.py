"""Fallbacks: a controller of the request's choice answers when the planner cannot.

Its actions are computed before the search starts, so that they are ready when they are needed. It
answers if the latents are anomalous, if the deadline comes before the first iteration has ended,
and if the engine fails. It does not answer if the server is overloaded, because the client has to
know that, nor if the request is wrong.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lewm_models.card import RESERVED_CONTROLLERS
from lewm_serve.api.fields import FloatArray
from lewm_serve.api.requests import Fallback
from lewm_serve.constants import FallbackReason
from lewm_serve.engine.admission import DeadlinePassed
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.errors import (
    DeadlineExceeded,
    Failed,
    InvalidRequest,
    NonFiniteResult,
    Restarting,
    ServiceError,
    Unquoted,
)
from lewm_serve.observability.logging import log
from lewm_serve.registry.controllers import Controller
from lewm_serve.registry.registry import LoadedModel

T = TypeVar("T")

NO_FALLBACK, HOLD, TAIL = RESERVED_CONTROLLERS

GENERIC_CONTROLLERS = (HOLD, TAIL)
"""The controllers that exist for every model."""

STATE_FIELD = "fallback.state"

ANSWER_RESERVE_S, ANSWER_RESERVE_SHARE = 0.02, 0.1
"""The search of a request with a fallback ends this long before the request's deadline, or this
share of the available time if that is less, so that the fallback's answer arrives in time."""


class AnomalousFrames(Exception):
    """A score of the frames or the goal is above its limit, so the fallback answers at once."""


@dataclass(frozen=True)
class PreparedFallback:
    """The actions that ``controller`` computed, or the exception that it raised.

    If the controller failed, only a request that needs its actions fails.
    """

    controller: str
    computed: FloatArray | Exception

    @property
    def actions(self) -> FloatArray:
        """(R, action_dim), inside the model's bounds.

        Raises:
            RuntimeError: the controller failed.
        """
        if isinstance(self.computed, Exception):
            raise RuntimeError(f"the controller {self.controller} failed") from self.computed
        return self.computed


def controller_names(model: LoadedModel) -> tuple[str, ...]:
    """The controllers that a request for this model may name."""
    return (*GENERIC_CONTROLLERS, *model.controllers)


def compute_fallback(
    model: LoadedModel, fallback: Fallback, *, warm_start: FloatArray | None, rows: int
) -> PreparedFallback | None:
    """Compute the actions of the fallback that a request names; None for "none".

    Args:
        model: the model.
        fallback: the request's fallback.
        warm_start: the request's warm start (up to ``rows``, action_dim), already validated.
        rows: the number of action rows of the plan, horizon · action_block.

    Raises:
        InvalidRequest: the controller is unknown, or the warm start or state that it needs is
            missing or wrong.
    """
    name = fallback.controller
    if name == NO_FALLBACK:
        return None
    actions = np.tile(model.neutral_action, (rows, 1))
    if name == HOLD:
        return PreparedFallback(name, actions)
    if name == TAIL:
        if warm_start is None:
            expected = 'what is left of the last plan: the controller "tail" runs it'
            raise InvalidRequest.missing("warm_start", expected)
        actions[: len(warm_start)] = warm_start
        return PreparedFallback(name, model.clip(actions))
    if name not in model.controllers:
        known = ", ".join((NO_FALLBACK, *controller_names(model)))
        raise InvalidRequest(
            "invalid_choice", "fallback.controller", received=name, expected=f"one of {known}"
        )
    controller = model.controllers[name]
    state = _validate_state(controller, name, fallback.state)
    try:
        computed = controller.actions(state, rows)
        if computed.shape != actions.shape or not np.isfinite(computed).all():
            raise TypeError(f"returned {computed.shape}, expected finite actions {actions.shape}")
        return PreparedFallback(name, model.clip(computed))
    except ValueError as error:
        raise InvalidRequest(
            "out_of_range", STATE_FIELD, received=state.tolist(), expected=str(error)
        ) from None
    except Exception as error:
        return PreparedFallback(name, error)


def _validate_state(controller: Controller, name: str, state: FloatArray | None) -> FloatArray:
    expected = f"{len(controller.state)} numbers for {name}: {', '.join(controller.state)}"
    if state is None:
        raise InvalidRequest.missing(STATE_FIELD, expected)
    if len(state) != len(controller.state):
        received = Unquoted(f"{len(state)} numbers")
        raise InvalidRequest("shape_mismatch", STATE_FIELD, received=received, expected=expected)
    return state


def search_deadline(deadline: float) -> float:
    """When the search of a request with a fallback has to end.

    Both are readings of `time.monotonic()`; ``deadline`` is that of the answer.
    """
    if deadline == math.inf:
        return deadline
    left_s = max(0.0, deadline - time.monotonic())
    return deadline - min(ANSWER_RESERVE_S, ANSWER_RESERVE_SHARE * left_s)


async def finish_in_time(
    work: Coroutine[Any, Any, T], queued: QueuedRequest, answer_by: float | None
) -> T:
    """Wait for work of a request. With a fallback, give up in time for the fallback to answer.

    ``answer_by`` is the deadline of the answer. None: the request has no fallback, so wait.

    At the deadline of the search, the work is given up if no iteration is complete. If an iteration
    is complete, the engine is about to answer, unless it hangs. It gets half of the time between
    the deadline of the search and ``answer_by``.

    Raises:
        DeadlinePassed: the work was given up.
    """
    if answer_by is None:
        return await work
    task = asyncio.create_task(work)
    try:
        await _wait_until(task, queued.deadline)
        if not task.done() and queued.completed_iterations:
            await _wait_until(task, (queued.deadline + answer_by) / 2)
        if not task.done():
            raise DeadlinePassed
        return await task
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _wait_until(task: asyncio.Future[T], until: float) -> None:
    timeout_s = None if until == math.inf else max(0.0, until - time.monotonic())
    await asyncio.wait({task}, timeout=timeout_s)


def fallback_reason_or_raise(error: Exception, request_id: str) -> FallbackReason:
    """Why a fallback answers after a search that ended with this error.

    Raises:
        ServiceError: the error itself, if no fallback answers for it.
    """
    if isinstance(error, AnomalousFrames):
        return "anomalous"
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    if isinstance(error, Failed | Restarting):
        return "engine_failure"
    if isinstance(error, NonFiniteResult):
        log.error("the plan is not finite, its fallback answers", request_id=request_id)
        return "engine_failure"
    if isinstance(error, ServiceError):
        raise error
    log.error("the search failed, its fallback answers", request_id=request_id, exc_info=error)
    return "engine_failure"
