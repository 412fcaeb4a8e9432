"""Control without a pause: the robot runs one plan while the server computes the next one.

Time is counted in steps, the control periods. Step 0 is the first action. A request at step n holds
the frame of step n and as `committed_actions` the rows that the robot runs until step s, when the
answer is expected. The answer's first row belongs to step s.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from lewm_client.errors import PlannerError, PlanOverdue
from lewm_client.messages import FrameLike
from lewm_client.planning import (
    NO_PLAN,
    GoalPlanner,
    History,
    LocalFallback,
    Setback,
    Source,
    local_actions,
    source_of,
)
from lewm_client.responses import FloatArray, PlanResponse

LATENCIES = 20
"""How many latencies the next one is estimated from."""
LATENCY_QUANTILE = 0.9
LATENCY_MARGIN = 1
"""Steps that are added to the quantile of the last latencies."""

log = logging.getLogger(__name__)


class Clock(Protocol):
    """Seconds from any origin, and how to wait."""

    def time(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The clock of this machine."""

    def time(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Robot:
    """The robot as the loop sees it; `lewm_client.driver.Driver.run` describes the functions."""

    observe: Callable[[], FrameLike]
    act: Callable[[FloatArray], object]
    until: Callable[[], bool]
    state: Callable[[], ArrayLike] | None


@dataclass
class RunSummary:
    """What a control loop did.

    Attributes:
        waited: periods before the first plan, in which the robot stood still.
        steps: steps by the source of their actions. Their sum is the number of actions.
        plans: responses of the server.
        late: responses that arrived after the step at which they start.
        errors: requests without a response.
    """

    waited: int = 0
    steps: dict[Source, int] = field(default_factory=lambda: {"plan": 0, "fallback": 0, "local": 0})
    plans: int = 0
    late: int = 0
    errors: int = 0


class LatencyEstimate:
    """The number of steps within which the next answer is expected."""

    def __init__(self) -> None:
        self._latencies: deque[int] = deque(maxlen=LATENCIES)

    def add(self, steps: int) -> None:
        """An answer arrived after so many steps."""
        self._latencies.append(steps)

    @property
    def steps(self) -> int:
        """The quantile of the last latencies and the margin."""
        ordered = sorted(self._latencies)
        rank = math.ceil(LATENCY_QUANTILE * len(ordered)) - 1
        return ordered[rank] + LATENCY_MARGIN


@dataclass(frozen=True)
class Request:
    """A request for a plan that was sent at step ``sent`` and is to start at step ``start``."""

    sent: int
    start: int
    answer: Future[PlanResponse]


@dataclass(frozen=True)
class Row:
    """One action (action_dim,) of the schedule."""

    action: FloatArray
    source: Source


class ControlLoop:
    """Sends an action to the robot in every period, and plans in the background.

    At the start of an action block the loop takes a frame and, if no request is under way, asks for
    the next plan. The rows that the robot runs meanwhile are committed: whole blocks, as many as
    the last answers took, at the 0.9 quantile and with one more step.

    An answer that arrives in time follows the committed rows. If it is late, the robot runs what is
    left of the old plan, and then the rows of the late plan from the one that belongs to now. When
    less than one block is left at the start of a block, the local fallback extends the schedule.

    Args:
        planner: asks for plans to the goal.
        robot: how to see and to act.
        history: how many frames a request holds at most.
        steps: how many actions of a plan are run before those of the next plan, rounded up to whole
            blocks, if the latency permits.
        local: the local fallback.
        rate_hz: control periods in a second.
        clock: tells the time.
        executor: runs the requests, one at a time; None: a thread. It is shut down at the end.

    Raises:
        PlannerError: the server does not answer.
        ValueError: ``rate_hz`` is not a number above 0, or the model takes fewer frames.
    """

    def __init__(
        self,
        planner: GoalPlanner,
        robot: Robot,
        *,
        history: int,
        steps: int,
        local: LocalFallback,
        rate_hz: float,
        clock: Clock,
        executor: Executor | None,
    ) -> None:
        if not 0 < rate_hz < math.inf:
            raise ValueError(f"rate_hz must be a finite number above 0, got {rate_hz}")
        card = planner.card()
        _check_history(card, history)
        self._planner = planner
        self._robot = robot
        self._steps = steps
        self._local = local
        self._period_s = 1 / rate_hz
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="lewm-plan")
        self._block = int(card["action_block"])
        bounds = [list(card["action_low"]), list(card["action_high"])]
        self._low, self._high = np.array(bounds, np.float32)
        self._history = History(history)
        self._latency = LatencyEstimate()
        self._request: Request | None = None
        self._schedule: list[Row] = []
        self._plan_start = self._plan_length = 0
        self._good_plan = NO_PLAN
        self._error: PlannerError | None = None
        self._summary = RunSummary()

    def run(self) -> RunSummary:
        """Run until the robot says so; see `lewm_client.driver.Driver.run`."""
        try:
            if self._wait_for_first_plan():
                self._run_steps()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)
        return self._summary

    def _wait_for_first_plan(self) -> bool:
        """Whether there is a plan; if not, the robot says stop.

        Raises:
            PlannerError: there is no plan.
        """
        self._see()
        self._ask(sent=0, start=0)
        assert self._request is not None
        while not self._request.answer.done():
            if self._robot.until():
                return False
            self._clock.sleep(self._period_s)
            self._summary.waited += 1
        plan = self._request.answer.result()
        self._request = None
        self._latency.add(self._summary.waited)
        self._follow(plan, start=0, step=0)
        return True

    def _run_steps(self) -> None:
        """Take one step per period. If the machine is too late for a step, later ones move too."""
        step, due = 0, self._clock.time()
        while not self._robot.until():
            self._take_step(step)
            step += 1
            due += self._period_s
            delay_s = self._clock.time() - due
            if delay_s > self._period_s:
                log.warning(
                    "step %d is %.0f ms late: act and observe have to return at once, and the "
                    "machine needs time for them",
                    step,
                    1000 * delay_s,
                )
                due += delay_s
            self._clock.sleep(max(0.0, -delay_s))

    def _take_step(self, step: int) -> None:
        self._collect(step)
        begins_block = step % self._block == 0
        if begins_block:
            self._see()
            self._extend(step)
        row = self._schedule[0]
        self._robot.act(row.action)
        if begins_block and self._request is None:
            self._ask_if_due(step)
        del self._schedule[0]
        self._history.run(row.action[None], row.source)
        self._summary.steps[row.source] += 1

    def _see(self) -> None:
        """Take a frame, and the state that belongs to it."""
        self._frame = self._robot.observe()
        self._state = None if self._robot.state is None else self._robot.state()
        self._history.add(self._frame, self._block)

    def _extend(self, step: int) -> None:
        """Let the local fallback fill the schedule up to one block."""
        while len(self._schedule) < self._block:
            setback = Setback(
                error=self._error or PlanOverdue(),
                rest=self._good_plan.rest(step + len(self._schedule)),
                frame=self._frame,
                state=self._state,
            )
            actions = local_actions(self._local, setback, len(self._low))
            self._schedule += [Row(action, "local") for action in actions]

    def _ask_if_due(self, step: int) -> None:
        """Ask for the next plan, unless its start would be within the first actions of this one."""
        needed = math.ceil(self._latency.steps / self._block)
        blocks = max(1, min(needed, len(self._schedule) // self._block))
        start = step + blocks * self._block
        if start >= self._plan_start + min(self._steps, self._plan_length):
            self._ask(sent=step, start=start)

    def _ask(self, *, sent: int, start: int) -> None:
        """Ask for a plan that starts at a step; the rows before it are committed."""
        committed = [row.action for row in self._schedule[: start - sent]]
        answer = self._executor.submit(
            self._planner.plan,
            list(self._history.frames),
            past_actions=self._history.past_actions,
            committed_actions=np.clip(committed, self._low, self._high) if committed else None,
            warm_start=self._good_plan.rest(start),
            state=self._state,
        )
        self._request = Request(sent=sent, start=start, answer=answer)

    def _collect(self, step: int) -> None:
        """Follow the plan that has arrived, if one has.

        Raises:
            PlannerError: the request is wrong.
        """
        request = self._request
        if request is None or not request.answer.done():
            return
        self._request = None
        try:
            plan = request.answer.result()
        except PlannerError as error:
            if not error.temporary:
                raise
            self._error = error
            self._summary.errors += 1
            log.warning("no plan for step %d: %s", request.start, error)
            return
        self._latency.add(step - request.sent)
        if step > request.start:
            self._summary.late += 1
            log.warning(
                "the plan for step %d is late: it took %d periods of %.0f ms, expected at most %d",
                request.start,
                step - request.sent,
                1000 * self._period_s,
                request.start - request.sent,
            )
        self._follow(plan, start=request.start, step=step)

    def _follow(self, plan: PlanResponse, *, start: int, step: int) -> None:
        """Put a plan that starts at one step into the schedule, which begins at another step."""
        self._summary.plans += 1
        self._error = None
        self._good_plan = self._good_plan.or_newer(plan, start)
        rows = [Row(action, source_of(plan)) for action in plan.actions[max(0, step - start) :]]
        if rows:
            self._schedule = self._schedule[: max(0, start - step)] + rows
            self._plan_start, self._plan_length = start, len(plan.actions)


def _check_history(card: Mapping[str, Any], history: int) -> None:
    if history > card["history"]:
        raise ValueError(f"history: expected at most {card['history']:g}, got {history}")
