"""Receding-horizon control: run the first actions of a plan, then plan again from a new frame.

A `Pilot` drives one robot. Each `Pilot.step` returns a `Move`: the actions to run next. If there is
no plan, a local fallback on the robot gets a `Setback` and chooses the actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lewm_client.client import PlannerClient
from lewm_client.errors import PlannerError
from lewm_client.messages import FrameLike
from lewm_client.responses import FloatArray, PlanResponse

MIN_TIMEOUT_S = 1e-3
"""The timeout of a call that has no time left; a timeout of 0 is refused."""

Source = Literal["plan", "fallback", "local"]


@dataclass(frozen=True)
class Setback:
    """Why there is no plan, and what is left of the last one: the input of a local fallback.

    Attributes:
        error: why there is no plan.
        rest: (R, action_dim), the actions of the last good plan that have not been run; R may be 0.
        frames: the frames that `Pilot.step` was given.
        state: the state that `Pilot.step` was given.
    """

    error: PlannerError
    rest: FloatArray
    frames: Sequence[FrameLike]
    state: ArrayLike | None


LocalFallback = Callable[[Setback], ArrayLike]
"""Returns actions (R, action_dim), R ≥ 1, without a server; may raise `Setback.error` instead."""


def rest_of_plan(setback: Setback) -> FloatArray:
    """Return the rest of the last good plan.

    Raises:
        PlannerError: the setback's error, if nothing is left of the plan.
    """
    if not len(setback.rest):
        raise setback.error
    return setback.rest


@dataclass(frozen=True)
class Move:
    """The actions to run before the next frames are taken.

    Attributes:
        actions: (1 … steps, action_dim), in the environment's units.
        source: who made the actions: the planner (`plan`), the server's fallback controller
            (`fallback`), or the local fallback (`local`).
        plan: the server's response; None if the source is `local`.
        error: why there is no plan; None unless the source is `local`.
    """

    actions: FloatArray
    source: Source
    plan: PlanResponse | None = None
    error: PlannerError | None = None


class Pilot:
    """Drives one robot to one goal. Only one thread at a time may use it.

    The first ``steps`` actions of each plan are run, and the search for the next plan starts at the
    remaining ones. The goal's frame is sent once; later requests name it by its `latent_id`.

    A plan whose health is `anomalous` is returned like any other, but the next search does not
    start at it. Such a plan arrives only if no fallback is set.

    Args:
        client: the connection; many pilots may share it.
        goal: what the robot should see at the end.
        steps: how many actions of a plan are run before the next frames are taken.
        timeout_s: the longest that a `step` takes, and the deadline of its plan.
        fallback: the controller by which the server answers when it cannot plan, or a mapping as
            `PlannerClient.plan` takes it. "tail" becomes "hold" while there is no earlier plan.
        local: the fallback that runs on the robot. It is used when no response comes in time and
            when the server is overloaded, failing or gone. It is not used when the request is
            wrong: that error is raised.
        model: the model's name, None for the server's default model.
        solver: settings that replace those of the model's card, such as `{"horizon": 2}`.
        settings: further arguments of `PlannerClient.plan`, such as `{"priority": 9}`.

    Attributes:
        last: the server's latest response, None before the first.

    Raises:
        ValueError: ``steps`` is less than 1.
    """

    last: PlanResponse | None = None

    def __init__(
        self,
        client: PlannerClient,
        goal: FrameLike,
        *,
        steps: int,
        timeout_s: float,
        fallback: str | Mapping[str, Any] = "none",
        local: LocalFallback = rest_of_plan,
        model: str | None = None,
        solver: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._client = client
        self._goal = goal
        self._goal_id: str | None = None
        self._steps = steps
        self._timeout_s = timeout_s
        self._fallback = {"controller": fallback} if isinstance(fallback, str) else dict(fallback)
        self._local = local
        self._extra_arguments = {
            name: value
            for name, value in (("model", model), ("solver", solver))
            if value is not None
        }
        self._extra_arguments.update(settings or {})
        self._rest: FloatArray = np.empty((0, 0), np.float32)

    def step(
        self,
        frames: Sequence[FrameLike],
        past_actions: ArrayLike | None = None,
        *,
        state: ArrayLike | None = None,
        seed: int | None = None,
    ) -> Move:
        """Choose the next actions from what the robot sees; returns within ``timeout_s``.

        Args:
            frames: oldest first, one action block apart.
            past_actions: the actions that were run between the frames.
            state: what the fallback controller needs to know, (n,).
            seed: the seed of the search.

        Raises:
            PlannerError: the request is wrong, or the local fallback raised the error.
            ValueError: the local fallback returned no actions, or not in the shape
                (R, action_dim).
        """
        try:
            plan = self._plan(frames, past_actions, state=state, seed=seed)
        except PlannerError as error:
            if not error.temporary:
                raise
            setback = Setback(error=error, rest=self._rest, frames=frames, state=state)
            actions = np.asarray(self._local(setback), np.float32)
            return Move(self._next_actions(actions, "local"), "local", error=error)
        self.last = plan
        if plan.fallback is not None:
            return Move(self._next_actions(plan.actions, "fallback"), "fallback", plan=plan)
        if plan.health.status != "anomalous":
            self._rest = plan.actions
        return Move(self._next_actions(plan.actions, "plan"), "plan", plan=plan)

    def _next_actions(self, actions: FloatArray, source: Source) -> FloatArray:
        """The first ``steps`` actions. The rest of the last good plan is shortened by as many.

        It is shortened even if other actions are run, because time passes in any case.
        """
        if actions.ndim != 2 or not len(actions):
            raise ValueError(f"{source}: expected actions (R, action_dim), got {actions.shape}")
        next_actions = actions[: self._steps]
        self._rest = self._rest[len(next_actions) :]
        return next_actions

    def _plan(
        self,
        frames: Sequence[FrameLike],
        past_actions: ArrayLike | None,
        *,
        state: ArrayLike | None,
        seed: int | None,
    ) -> PlanResponse:
        """Call the planner, and once more with the goal's frame if the server forgot its latent."""
        deadline = time.monotonic() + self._timeout_s
        arguments = self._plan_arguments(past_actions, state, seed)
        try:
            plan = self._client.plan(frames, self._goal_id or self._goal, **arguments)
        except PlannerError as error:
            if error.code != "unknown_latent" or self._goal_id is None:
                raise
            arguments["timeout_s"] = max(MIN_TIMEOUT_S, deadline - time.monotonic())
            plan = self._client.plan(frames, self._goal, **arguments)
        if plan.latent_ids is not None:
            self._goal_id = plan.latent_ids.goal
        return plan

    def _plan_arguments(
        self, past_actions: ArrayLike | None, state: ArrayLike | None, seed: int | None
    ) -> dict[str, Any]:
        """The keyword arguments of `PlannerClient.plan`; the pilot's ``settings`` come last."""
        rest = self._rest if len(self._rest) else None
        arguments: dict[str, Any] = {
            "past_actions": past_actions,
            "warm_start": rest,
            "seed": seed,
            "timeout_s": self._timeout_s,
        }
        controller = self._fallback.get("controller", "none")
        if controller != "none":
            nothing_to_continue = controller == "tail" and rest is None
            arguments["fallback"] = {
                **self._fallback,
                "controller": "hold" if nothing_to_continue else controller,
            }
        arguments.update(self._extra_arguments)
        if state is not None and "fallback" in arguments:
            fallback = arguments["fallback"]
            if isinstance(fallback, str):
                fallback = {"controller": fallback}
            arguments["fallback"] = {**fallback, "state": state}
        return arguments
