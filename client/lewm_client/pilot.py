"""Receding horizon: run the first steps of a plan, look again, and search on from the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lewm_client.answers import PlanResponse
from lewm_client.client import PlannerClient
from lewm_client.errors import PlannerError
from lewm_client.frames import FrameLike

FloatArray = NDArray[np.float32]

LEAST_S = 1e-3
"""A timeout that is over at once, and still one."""


@dataclass(frozen=True)
class Setback:
    """A plan that did not come: why, and what a local fallback can act by.

    ``rest`` (R, action_dim) is what was not yet run of the last good plan, R may be 0; ``state``
    is what `Pilot.step` was given.
    """

    error: PlannerError
    rest: FloatArray
    frames: Sequence[FrameLike]
    state: ArrayLike | None


LocalFallback = Callable[[Setback], ArrayLike]
"""Actions (R, action_dim), R ≥ 1, that need no server. It may raise, the setback's error say."""


def rest_of_plan(setback: Setback) -> FloatArray:
    """The rest of the last good plan, while there is any; then the error is raised."""
    if not len(setback.rest):
        raise setback.error
    return setback.rest


@dataclass(frozen=True)
class Move:
    """What to do until the next look.

    ``actions`` (1 … steps, action_dim) in the environment's units. ``source`` says whose they are:
    the planner's, those of the server's fallback controller, or the local fallback's, when
    ``plan`` is None and ``error`` says why.
    """

    actions: FloatArray
    source: Literal["plan", "fallback", "local"]
    plan: PlanResponse | None = None
    error: PlannerError | None = None


class Pilot:
    """Drives one robot to one goal; one thread at a time.

    The goal's frame is sent once and named by its `latent_id` from then on. Of each plan the first
    ``steps`` actions are run, and the search for the next begins at the rest. A plan from frames
    that were `anomalous`, which comes without a fallback alone, is run so far and not gone on with.

    Args:
        client: the connection, which many pilots may share.
        goal: what the robot should see.
        steps: actions of a plan that are run before the next look.
        timeout_s: of each `step`, and the deadline of its plan.
        fallback: the controller by which the server answers when it cannot plan; "tail" becomes
            "hold" while there is no plan to go on with.
        local: what is done when no answer comes in time, or the server is full or gone. It is not
            asked about requests that are wrong: those errors are raised.
        settings: further arguments of `PlannerClient.plan`, such as `model` and `solver`.

    Attributes:
        last: the server's latest answer, None before the first.
    """

    last: PlanResponse | None = None

    def __init__(
        self,
        client: PlannerClient,
        goal: FrameLike,
        *,
        steps: int,
        timeout_s: float,
        fallback: str = "none",
        local: LocalFallback = rest_of_plan,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._client = client
        self._goal = goal
        self._goal_id: str | None = None
        self._steps = steps
        self._timeout_s = timeout_s
        self._fallback = fallback
        self._local = local
        self._settings = dict(settings or {})
        self._rest: FloatArray = np.empty((0, 0), np.float32)

    def step(
        self,
        frames: Sequence[FrameLike],
        past_actions: ArrayLike | None = None,
        *,
        state: ArrayLike | None = None,
        seed: int | None = None,
    ) -> Move:
        """What to do next, by what the robot sees; within ``timeout_s``, whatever the server does.

        Args:
            frames: oldest first, one action block apart.
            past_actions: what was run between them.
            state: what the fallback controller needs to know, (n,).
            seed: of the search.

        Raises:
            PlannerError: the request is wrong, or the local fallback raised it.
        """
        try:
            plan = self._plan(frames, past_actions, state, seed)
        except PlannerError as error:
            if not error.temporary:
                raise
            setback = Setback(error, self._rest, frames, state)
            actions = np.asarray(self._local(setback), np.float32)
            return self._move(actions, "local", error=error)
        self.last = plan
        if plan.fallback is not None:
            return self._move(plan.actions, "fallback", plan=plan)
        if plan.health.status != "anomalous":  # by what is not to be trusted nobody goes on
            self._rest = plan.actions
        return self._move(plan.actions, "plan", plan=plan)

    def _move(
        self,
        actions: FloatArray,
        source: Literal["plan", "fallback", "local"],
        **why: Any,
    ) -> Move:
        """The first steps; the last good plan goes by, whoever acts meanwhile."""
        if actions.ndim != 2 or not len(actions):
            raise ValueError(f"{source}: expected actions (R, action_dim), got {actions.shape}")
        run = actions[: self._steps]
        self._rest = self._rest[len(run) :]
        return Move(run, source, **why)

    def _plan(
        self,
        frames: Sequence[FrameLike],
        past_actions: ArrayLike | None,
        state: ArrayLike | None,
        seed: int | None,
    ) -> PlanResponse:
        rest = self._rest if len(self._rest) else None
        controller = self._fallback
        if controller == "tail" and rest is None:
            controller = "hold"
        deadline = time.monotonic() + self._timeout_s
        asked = {
            "past_actions": past_actions,
            "warm_start": rest,
            "seed": seed,
            "timeout_s": self._timeout_s,
            **({} if controller == "none" else {"fallback": {"controller": controller}}),
            **self._settings,
        }
        if state is not None and "fallback" in asked:
            asked["fallback"] = {**asked["fallback"], "state": state}
        try:
            plan = self._client.plan(frames, self._goal_id or self._goal, **asked)
        except PlannerError as error:
            if error.code != "unknown_latent" or self._goal_id is None:
                raise
            # The server keeps latents for a while only.
            asked["timeout_s"] = max(LEAST_S, deadline - time.monotonic())
            plan = self._client.plan(frames, self._goal, **asked)
        if plan.latent_ids is not None:
            self._goal_id = plan.latent_ids.goal
        return plan
