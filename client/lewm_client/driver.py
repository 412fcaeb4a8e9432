"""Receding-horizon control: run the first actions of a plan, then plan again from a new frame.

A `Driver` drives one robot. Each `Driver.step` returns a `Move`: the actions to run next, while the
robot waits for the move after it. `Driver.run` is for a robot that must not wait. If there is no
plan, a local fallback on the robot gets a `Setback` and chooses the actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from lewm_client.client import PlannerClient
from lewm_client.control_loop import Clock, ControlLoop, Robot, RunSummary, SystemClock
from lewm_client.errors import PlannerError
from lewm_client.messages import FrameLike, GoalLike
from lewm_client.planning import (
    NO_PLAN,
    GoalPlanner,
    History,
    LocalFallback,
    Setback,
    Source,
    local_actions,
    rest_of_plan,
    source_of,
)
from lewm_client.responses import FloatArray, PlanResponse


@dataclass(frozen=True)
class Move:
    """The actions to run before the next frame is taken.

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


class Driver:
    """Drives one robot to one goal. Only one thread at a time may use it.

    The first ``steps`` actions of each plan are run, and the search for the next plan starts at the
    remaining ones. The goal's frame is sent once; later requests name it by its `latent_id`.

    The caller gives the newest frame only. The driver keeps the earlier ones, up to ``history``,
    and the actions between them. The model needs frames that are one action block apart. So a frame
    counts only if exactly one block of a plan was run after it; otherwise, and after actions that
    are not of a plan, the history begins again with the newest frame.

    A plan whose health is `anomalous` is run like any other, but the next search does not start at
    it. Such a plan arrives only if no fallback is set.

    Args:
        client: the connection; many drivers may share it.
        goal: what the robot should see at the end, or states by name as `PlannerClient.plan` takes
            them.
        steps: how many actions of a plan are run before those of the next plan.
        timeout_s: the longest that a `step` takes, and the deadline of its plan.
        history: how many frames a request holds at most, 1 to the model's history.
        fallback: the controller by which the server answers when it cannot plan, or a mapping as
            `PlannerClient.plan` takes it. "tail" becomes "hold" while there is no earlier plan.
        local: the fallback that runs on the robot. It is used when no response comes in time and
            when the server is overloaded, failing or gone. It is not used when the request is
            wrong: that error is raised.
        model: the model's name, None for the server's default model.
        solver: settings that replace those of the model's card, such as `{"horizon": 2}`.
        settings: further arguments of `PlannerClient.plan`, such as `{"priority": 9}`.

    Attributes:
        last: the server's latest response to `step`, None before the first.

    Raises:
        ValueError: ``steps`` or ``history`` is less than 1.
    """

    last: PlanResponse | None = None

    def __init__(
        self,
        client: PlannerClient,
        goal: GoalLike,
        *,
        steps: int,
        timeout_s: float,
        history: int = 1,
        fallback: str | Mapping[str, Any] = "none",
        local: LocalFallback = rest_of_plan,
        model: str | None = None,
        solver: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("history", history)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._planner = GoalPlanner(
            client,
            goal,
            timeout_s=timeout_s,
            fallback=fallback,
            model=model,
            solver=solver,
            settings=settings,
        )
        self._steps = steps
        self._local = local
        self._history_length = history
        self._history = History(history)
        self._action_block: int | None = None
        self._good_plan = NO_PLAN
        self._step = 0

    def step(
        self, frame: FrameLike, *, state: ArrayLike | None = None, seed: int | None = None
    ) -> Move:
        """Choose the next actions from what the robot sees; returns within ``timeout_s``.

        The robot runs all of them before the next call.

        Args:
            frame: the newest frame.
            state: what the fallback controller needs to know, (n,).
            seed: the seed of the search.

        Raises:
            PlannerError: the request is wrong, or the local fallback raised the error.
            ValueError: the local fallback returned no actions, or not in the shape
                (R, action_dim).
        """
        self._history.add(frame, self._action_block)
        rest = self._good_plan.rest(self._step)
        try:
            plan = self._planner.plan(
                self._history.frames,
                past_actions=self._history.past_actions,
                warm_start=rest,
                state=state,
                seed=seed,
            )
        except PlannerError as error:
            if not error.temporary:
                raise
            setback = Setback(error=error, rest=rest, frame=frame, state=state)
            actions = self._run_first_steps(local_actions(self._local, setback), "local")
            return Move(actions, "local", error=error)
        self.last = plan
        self._action_block = plan.action_block
        self._good_plan = self._good_plan.or_newer(plan, start=self._step)
        source = source_of(plan)
        return Move(self._run_first_steps(plan.actions, source), source, plan=plan)

    def _run_first_steps(self, actions: FloatArray, source: Source) -> FloatArray:
        """The first ``steps`` actions; the robot runs them now."""
        next_actions = actions[: self._steps]
        self._step += len(next_actions)
        self._history.run(next_actions, source)
        return next_actions

    def run(
        self,
        *,
        observe: Callable[[], FrameLike],
        act: Callable[[FloatArray], object],
        until: Callable[[], bool],
        rate_hz: float,
        state: Callable[[], ArrayLike] | None = None,
        clock: Clock | None = None,
        executor: Executor | None = None,
    ) -> RunSummary:
        """Drive the robot without a pause: the next plan is computed while the last one runs.

        The robot stands still until the first plan arrives. From then on ``act`` is called in every
        period, see `lewm_client.control_loop.ControlLoop`.

        Args:
            observe: returns the newest frame at once. It is called at the start of each action
                block.
            act: lets the robot run one action (action_dim,), for one period. It returns at once.
            until: whether to stop; it is asked before every step.
            rate_hz: how many actions the robot runs in a second.
            state: returns what the fallback controller needs to know, (n,).
            clock: tells the time; another clock is for simulations.
            executor: runs the requests; another executor is for simulations.

        Returns:
            What was run. A request that is still under way ends within ``timeout_s``.

        Raises:
            PlannerError: the request is wrong, there is no first plan, or the local fallback raised
                the error. The robot has no action then.
            ValueError: ``rate_hz`` is not a number above 0, the model takes fewer frames than
                ``history``, or the local fallback returned actions of another shape.
        """
        loop = ControlLoop(
            self._planner,
            Robot(observe=observe, act=act, until=until, state=state),
            history=self._history_length,
            steps=self._steps,
            local=self._local,
            rate_hz=rate_hz,
            clock=SystemClock() if clock is None else clock,
            executor=executor,
        )
        return loop.run()
