"""Closed-loop episodes: look, plan, run the plan's actions, look again."""

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
    """Whatever turns what a robot sees into what it should do."""

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """Plan from one frame to another, both (224, 224, 3).

        Returns:
            Actions (R, 2) in the environment's units, R ≥ 1, and the seconds they took to plan.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """How an episode went.

    ``path`` (steps + 1, 2) holds the positions in pixels, the start first; ``plan_s`` the seconds
    of each plan. The episode ends with the step that reaches the goal, or with the budget.
    """

    index: int
    reached: bool
    path: NDArray[np.float32]
    plan_s: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.path) - 1


def run_episode(planner: Planner, episodes: Episodes, index: int, seed: int) -> Outcome:
    """Run one episode. Its plans' seeds follow from ``seed`` and ``index`` alone.

    Raises:
        ValueError: the planner gave no actions, or some of another shape.
    """
    task = slice(index, index + 1)
    room = VectorTwoRoom(episodes.starts[task], episodes.goals[task])
    goal_frame = room.goal_frames()[0].numpy()
    seeds = np.random.default_rng((seed, index))
    path, plan_s = [room.positions], []
    reached = False
    while not reached and len(path) <= episodes.budget:
        plan_seed = int(seeds.integers(2**63))
        actions, seconds = planner(room.frames()[0].numpy(), goal_frame, plan_seed)
        if actions.ndim != 2 or actions.shape[1] != 2 or not len(actions):
            raise ValueError(f"planner: expected actions of shape (R, 2), got {actions.shape}")
        plan_s.append(seconds)
        left = episodes.budget + 1 - len(path)
        for action in torch.from_numpy(actions[: min(episodes.plan_steps, left)]):
            reached = bool(room.step(action[None]))
            path.append(room.positions)
            if reached:
                break
    return Outcome(index, reached, torch.cat(path).numpy(), tuple(plan_s))


def run_episodes(
    make_planner: Callable[[], Planner],
    episodes: Episodes,
    *,
    seed: int,
    robots: int,
    report: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run all episodes, ``robots`` at a time, each with a planner of its own.

    ``report`` is called with each outcome as it comes, in the calling thread. The outcomes are in
    the episodes' order and do not depend on ``robots``. What a planner raises ends the evaluation.
    """

    def run(index: int) -> Outcome:
        return run_episode(make_planner(), episodes, index, seed)

    with ThreadPoolExecutor(robots) as pool:
        running = [pool.submit(run, index) for index in range(len(episodes))]
        try:
            for done in as_completed(running):
                outcome = done.result()
                if report is not None:
                    report(outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done.result() for done in running]
