"""What driving a robot needs from a planner: plans to one goal, the history, the last good plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lewm_client.client import PlannerClient
from lewm_client.errors import PlannerError
from lewm_client.messages import FrameLike, GoalLike
from lewm_client.responses import FloatArray, PlanResponse

MIN_TIMEOUT_S = 1e-3
"""The timeout of a call that has no time left; a timeout of 0 is refused."""


Source = Literal["plan", "fallback", "local"]
"""Who made an action: the planner, the server's fallback controller, or the local fallback."""


def source_of(plan: PlanResponse) -> Source:
    """Who made the actions of a response."""
    return "plan" if plan.fallback is None else "fallback"


@dataclass(frozen=True)
class Setback:
    """Why there is no plan, and what is left of the last one: the input of a local fallback.

    Attributes:
        error: why there is no plan.
        rest: (R, action_dim), the actions of the last good plan that have not been run; R may be 0.
        frame: the newest frame.
        state: the state that belongs to it.
    """

    error: PlannerError
    rest: FloatArray
    frame: FrameLike
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


def local_actions(
    local: LocalFallback, setback: Setback, action_dim: int | None = None
) -> FloatArray:
    """The actions (R, action_dim) of the local fallback.

    Raises:
        ValueError: they have another shape.
    """
    rows = np.asarray(local(setback), np.float32)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != (action_dim or rows.shape[1]):
        expected = f"(R, {action_dim or 'action_dim'})"
        raise ValueError(f"local: expected actions {expected}, got {rows.shape}")
    return rows


class History:
    """The newest frames of a robot, one action block apart, and the actions between them.

    Args:
        length: how many frames it holds.

    Attributes:
        frames: oldest first.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self.frames: list[FrameLike] = []
        self._between: list[FloatArray] = []
        self._since_newest: list[FloatArray] = []

    def add(self, frame: FrameLike, action_block: int | None) -> None:
        """Add the newest frame.

        The earlier ones are forgotten if the robot has not run exactly one action block since the
        last one.
        """
        if len(self._since_newest) == action_block and self.frames:
            self._between.append(np.stack(self._since_newest))
            self.frames = [*self.frames, frame][-self._length :]
            self._between = self._between[len(self._between) - len(self.frames) + 1 :]
            self._since_newest = []
        else:
            self.restart()
            self.frames = [frame]

    def run(self, actions: FloatArray, source: Source) -> None:
        """The robot runs these actions (R, action_dim) after the newest frame.

        Frames before actions that are not of a plan are forgotten: they may be the reason for them,
        and the actions may lie outside of the model's bounds.
        """
        if source == "plan":
            self._since_newest += list(actions)
        else:
            self.restart()

    @property
    def past_actions(self) -> FloatArray | None:
        """The actions between the frames; None for one frame."""
        return np.concatenate(self._between) if self._between else None


@dataclass(frozen=True)
class GoodPlan:
    """The last plan from frames that looked right.

    Attributes:
        actions: (R, action_dim).
        start: the step of its first action, counted by whoever executes it.
    """

    actions: FloatArray
    start: int

    def rest(self, step: int) -> FloatArray:
        """Its actions from a step on. Time passes even if other actions are run."""
        return self.actions[max(0, step - self.start) :]

    def or_newer(self, plan: PlanResponse, start: int) -> GoodPlan:
        """The given plan if it is a good one, else this plan."""
        is_good = source_of(plan) == "plan" and plan.health.status != "anomalous"
        return GoodPlan(plan.actions, start) if is_good else self


NO_PLAN = GoodPlan(np.empty((0, 0), np.float32), start=0)


class GoalPlanner:
    """Asks for plans to one goal. The goal's frame is sent once, later its `latent_id`.

    `lewm_client.driver.Driver` describes the arguments.
    """

    def __init__(
        self,
        client: PlannerClient,
        goal: GoalLike,
        *,
        timeout_s: float,
        fallback: str | Mapping[str, Any],
        model: str | None,
        solver: Mapping[str, Any] | None,
        settings: Mapping[str, Any] | None,
    ) -> None:
        self._client = client
        self._goal = goal
        self._goal_id: str | None = None
        self._timeout_s = timeout_s
        self._fallback = {"controller": fallback} if isinstance(fallback, str) else dict(fallback)
        self._extra_arguments = {
            name: value
            for name, value in (("model", model), ("solver", solver))
            if value is not None
        }
        self._extra_arguments.update(settings or {})

    def card(self) -> dict[str, Any]:
        """The card of the model that plans; of the current version, whichever version is asked for.

        Raises:
            PlannerError: the server does not answer.
            ValueError: the server has no such model.
        """
        asked: Any = self._extra_arguments.get("model")
        name = None if asked is None else asked.partition("@")[0]
        models = self._client.models(self._timeout_s)
        for model in models:
            if model.default if name is None else model.name == name:
                return dict(model.card.items())
        raise ValueError(f"no model {name}, the server has {[model.name for model in models]}")

    def plan(
        self,
        frames: Sequence[FrameLike],
        *,
        past_actions: ArrayLike | None,
        warm_start: FloatArray,
        committed_actions: ArrayLike | None = None,
        state: ArrayLike | None = None,
        seed: int | None = None,
    ) -> PlanResponse:
        """Call the planner, and once more with the goal's frame if the server forgot its latent."""
        deadline = time.monotonic() + self._timeout_s
        arguments: dict[str, Any] = {
            "past_actions": past_actions,
            "committed_actions": committed_actions,
            "warm_start": warm_start if len(warm_start) else None,
            "seed": seed,
            "timeout_s": self._timeout_s,
            **self._extra(has_plan=len(warm_start) > 0, state=state),
        }
        try:
            plan = self._client.plan(frames, self._goal_id or self._goal, **arguments)
        except PlannerError as error:
            if error.code != "unknown_latent" or self._goal_id is None:
                raise
            arguments["timeout_s"] = max(MIN_TIMEOUT_S, deadline - time.monotonic())
            plan = self._client.plan(frames, self._goal, **arguments)
        if plan.latent_ids is not None:
            self._goal_id = plan.latent_ids.goal or None
        return plan

    def _extra(self, *, has_plan: bool, state: ArrayLike | None) -> dict[str, Any]:
        """The extra arguments of `PlannerClient.plan`, and with them the fallback and its state."""
        arguments = dict(self._extra_arguments)
        controller = self._fallback.get("controller", "none")
        if controller != "none" and "fallback" not in arguments:
            nothing_to_continue = controller == "tail" and not has_plan
            arguments["fallback"] = {
                **self._fallback,
                "controller": "hold" if nothing_to_continue else controller,
            }
        if state is not None and "fallback" in arguments:
            fallback = arguments["fallback"]
            if isinstance(fallback, str):
                fallback = {"controller": fallback}
            arguments["fallback"] = {**fallback, "state": state}
        return arguments
