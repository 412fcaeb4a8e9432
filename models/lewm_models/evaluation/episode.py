"""Closed-loop episodes: take a frame, plan, execute the plan's actions, and so on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lewm_models.environments.environment import FloatArray, Frame, Simulation
from lewm_models.evaluation.protocol import Episodes

Actions = NDArray[np.float32]

NO_FRAME = np.zeros((1, 1, 3), np.uint8)
"""What planners get that need no frames."""


class Planner(Protocol):
    """A function from a frame and a goal frame to actions."""

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """Plan from the frame to the goal frame, both (H, W, 3) uint8.

        Returns:
            Actions (R, action_dim) in the environment's units, R ≥ 1, and the seconds that
            planning took.
        """
        ...


PlannerT = TypeVar("PlannerT", bound=Planner)


@dataclass(frozen=True)
class Outcome:
    """The result of one episode.

    Args:
        index: the episode's number in its protocol.
        reached: whether the goal was reached within the budget; the episode ends there.
        states: (steps + 1, S), the start first.
        actions: (steps, action_dim), those that were executed.
        plan_seconds: the seconds of each plan.
        detour: the length of the way to a reached goal, divided by that of the shortest one; None
            where it is not known.
    """

    index: int
    reached: bool
    states: FloatArray
    actions: FloatArray
    plan_seconds: tuple[float, ...]
    detour: float | None = None

    @property
    def steps(self) -> int:
        """The number of executed actions."""
        return len(self.states) - 1


def run_episode(
    planner: Planner,
    episodes: Episodes,
    index: int,
    *,
    seed: int,
    simulation: Simulation | None = None,
    with_frames: bool = True,
    tell_state: Callable[[FloatArray], None] | None = None,
) -> Outcome:
    """Run one episode. The seeds of its plans depend on ``seed`` and ``index`` only.

    Args:
        planner: what is measured.
        episodes: the tasks.
        index: the task.
        seed: of all plans.
        simulation: a world of this thread to run in; None makes one.
        with_frames: whether the planner needs frames. Without, nothing is rendered.
        tell_state: called before each plan with the state (S,) of the robot.

    Raises:
        ValueError: the planner returned no actions or actions of another shape.
    """
    environment = episodes.environment
    if simulation is None:
        with closing(environment.simulation()) as simulation:
            return run_episode(
                planner,
                episodes,
                index,
                seed=seed,
                simulation=simulation,
                with_frames=with_frames,
                tell_state=tell_state,
            )
    world = simulation

    def see() -> Frame:
        return world.frame() if with_frames else NO_FRAME

    goal = episodes.goals[index]
    world.reset(goal)
    goal_frame = see()
    world.reset(episodes.starts[index])
    plan_seeds = np.random.default_rng((seed, index))
    states, executed, plan_seconds = [world.state()], [], []
    reached = False
    while not reached and len(states) <= episodes.budget:
        plan_seed = int(plan_seeds.integers(2**63))
        if tell_state is not None:
            tell_state(states[-1])
        actions, seconds = planner(see(), goal_frame, plan_seed)
        if actions.ndim != 2 or actions.shape[1] != environment.action_dim or not len(actions):
            raise ValueError(
                f"planner: expected actions of shape (R, {environment.action_dim}), got "
                f"{actions.shape}"
            )
        plan_seconds.append(seconds)
        remaining = episodes.budget + 1 - len(states)
        for action in actions[: min(episodes.plan_steps, remaining)]:
            world.step(action)
            executed.append(action)
            states.append(world.state())
            reached = environment.reached(states[-1], goal)
            if reached:
                break
    path = np.stack(states)
    return Outcome(
        index=index,
        reached=reached,
        states=path,
        actions=np.stack(executed),
        plan_seconds=tuple(plan_seconds),
        detour=environment.detour(path, goal) if reached else None,
    )


def run_episodes(
    make_planner: Callable[[], PlannerT],
    episodes: Episodes,
    *,
    seed: int,
    robots: int,
    with_frames: bool = True,
    tell_goal: Callable[[PlannerT, FloatArray], None] | None = None,
    tell_state: Callable[[PlannerT, FloatArray], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run all episodes, ``robots`` of them at the same time.

    Args:
        make_planner: makes a planner for each episode.
        episodes: the tasks.
        seed: of all plans.
        robots: the number of threads, each with a simulation; the outcomes do not depend on it.
        with_frames: whether planners need frames.
        tell_goal: called with each new planner and the state (S,) of its goal.
        tell_state: called before each plan with the planner and the state (S,) of its robot.
        on_outcome: called in this thread with each outcome, when its episode has ended.

    Returns:
        The outcomes in the order of the episodes.

    Raises:
        Exception: whatever a planner or a simulation raises; it ends the evaluation.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    for index in range(len(episodes)):
        waiting.put(index)
    ended: SimpleQueue[Outcome | None] = SimpleQueue()  # None: an episode failed

    def drive() -> None:
        try:
            with closing(episodes.environment.simulation()) as simulation:
                while (index := _take(waiting)) is not None:
                    planner = make_planner()
                    if tell_goal is not None:
                        tell_goal(planner, episodes.goals[index])
                    outcome = run_episode(
                        planner,
                        episodes,
                        index,
                        seed=seed,
                        simulation=simulation,
                        with_frames=with_frames,
                        tell_state=None if tell_state is None else partial(tell_state, planner),
                    )
                    ended.put(outcome)
        except BaseException:
            ended.put(None)
            raise

    outcomes: dict[int, Outcome] = {}
    with ThreadPoolExecutor(robots) as pool:
        threads = [pool.submit(drive) for _ in range(min(robots, len(episodes)))]
        try:
            while len(outcomes) < len(episodes) and (outcome := ended.get()) is not None:
                outcomes[outcome.index] = outcome
                if on_outcome is not None:
                    on_outcome(outcome)
        finally:
            while _take(waiting) is not None:
                pass
    for thread in threads:
        thread.result()
    return [outcomes[index] for index in range(len(episodes))]


def _take(waiting: SimpleQueue[int]) -> int | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None
