"""Closed-loop episodes: take a frame, plan, execute the plan's actions, and so on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lewm_models.environments.two_room import VectorTwoRoom
from lewm_models.evaluation.protocol import Episodes

Frame = NDArray[np.uint8]
Actions = NDArray[np.float32]


class Planner(Protocol):
    """A function from a frame and a goal frame to actions."""

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """Plan from the frame to the goal frame, both (224, 224, 3) uint8.

        Returns:
            Actions (R, 2) in the environment's units, R ≥ 1, and the seconds that planning took.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """The result of one episode.

    Args:
        index: the episode's number in its protocol.
        reached: whether the agent reached its goal within the budget; the episode ends there.
        path: (steps + 1, 2), the agent's positions in pixels, the start first.
        plan_seconds: the seconds of each plan.
    """

    index: int
    reached: bool
    path: NDArray[np.float32]
    plan_seconds: tuple[float, ...]

    @property
    def steps(self) -> int:
        """The number of executed actions."""
        return len(self.path) - 1


def run_episode(planner: Planner, episodes: Episodes, index: int, *, seed: int) -> Outcome:
    """Run one episode. The seeds of its plans depend on ``seed`` and ``index`` only.

    Raises:
        ValueError: the planner returned no actions or actions of another shape.
    """
    task = slice(index, index + 1)
    environment = VectorTwoRoom(episodes.starts[task], episodes.goals[task])
    goal_frame = environment.goal_frames()[0].numpy()
    plan_seeds = np.random.default_rng((seed, index))
    path, plan_seconds = [environment.positions], []
    reached = False
    while not reached and len(path) <= episodes.budget:
        plan_seed = int(plan_seeds.integers(2**63))
        actions, seconds = planner(environment.frames()[0].numpy(), goal_frame, plan_seed)
        if actions.ndim != 2 or actions.shape[1] != 2 or not len(actions):
            raise ValueError(f"planner: expected actions of shape (R, 2), got {actions.shape}")
        plan_seconds.append(seconds)
        remaining = episodes.budget + 1 - len(path)
        for action in torch.from_numpy(actions[: min(episodes.plan_steps, remaining)]):
            reached = bool(environment.step(action[None]))
            path.append(environment.positions)
            if reached:
                break
    return Outcome(
        index=index,
        reached=reached,
        path=torch.cat(path).numpy(),
        plan_seconds=tuple(plan_seconds),
    )


def run_episodes(
    make_planner: Callable[[], Planner],
    episodes: Episodes,
    *,
    seed: int,
    robots: int,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run all episodes, ``robots`` of them at the same time.

    Args:
        make_planner: makes a planner for each episode.
        episodes: the tasks.
        seed: of all plans.
        robots: the number of threads; the outcomes do not depend on it.
        on_outcome: called in this thread with each outcome, when its episode has ended.

    Returns:
        The outcomes in the order of the episodes.

    Raises:
        Exception: whatever a planner raises; it ends the evaluation.
    """

    def run(index: int) -> Outcome:
        return run_episode(make_planner(), episodes, index, seed=seed)

    with ThreadPoolExecutor(robots) as pool:
        running = [pool.submit(run, index) for index in range(len(episodes))]
        try:
            for done in as_completed(running):
                outcome = done.result()
                if on_outcome is not None:
                    on_outcome(outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done.result() for done in running]
