"""What a model imagines, in pictures: the recorded frame that is nearest to each predicted latent.

A latent cannot be turned back into a picture. But a small recording of the environment, encoded by
the server, has a frame that the model takes for nearly the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lewm_client import FrameLike, PlannerClient
from lewm_models.environments.environment import Environment, Frame
from lewm_models.evaluation.episode import Outcome, run_episode
from lewm_models.evaluation.protocol import Episodes
from lewm_models.preprocessing import resize
from lewm_serve.api.responses import ModelDescription
from lewm_serve.cli.closed_loop import RemotePlanner, input_states

FAST_FRAMES, SLOW_FRAMES = 2000, 400
"""The frames that are recorded and encoded, where a frame costs little and where it does not."""

RECORDED_STEPS = 100
FRAMES_PER_REQUEST = 16


@dataclass(frozen=True)
class FrameMemory:
    """Recorded frames (N, H, W, 3) and their latents (N, D)."""

    frames: NDArray[np.uint8]
    latents: NDArray[np.float32]

    def nearest(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The frames (T, H, W, 3) whose latents are nearest to latents (T, D)."""
        distances = np.square(self.latents[None] - latents[:, None]).sum(axis=-1)
        found: NDArray[np.uint8] = self.frames[distances.argmin(axis=1)]
        return found


@dataclass(frozen=True)
class WatchedRobot:
    """One robot's way, as its camera and its model saw it.

    Attributes:
        camera: (steps + 1, H, W, 3) uint8.
        goal: (H, W, 3) uint8.
        imagined: of each plan, the frames (T, H, W, 3) nearest to the predicted latents, one action
            block apart.
        plan_starts: the step at which each plan begins.
        action_block: the steps from one imagined frame to the next.
        reached: whether the goal was reached.
    """

    camera: NDArray[np.uint8]
    goal: Frame
    imagined: tuple[NDArray[np.uint8], ...]
    plan_starts: tuple[int, ...]
    action_block: int
    reached: bool

    @property
    def steps(self) -> int:
        return len(self.camera) - 1


def remember(
    client: PlannerClient, environment: Environment, model: ModelDescription, *, seed: int
) -> FrameMemory:
    """Record a few episodes, one frame per action block, and have the server encode them."""
    block, size = int(model.card["action_block"]), int(model.card["image_size"])
    wanted = FAST_FRAMES if environment.has_fast_frames else SLOW_FRAMES
    steps = max(block, RECORDED_STEPS // block * block)
    episodes = max(2, wanted // (steps // block + 1))
    recorded = list(environment.record(episodes, steps, seed, block))
    frames = np.concatenate([episode.frames for episode in recorded])
    small = resize(torch.from_numpy(frames), size).numpy()
    seen: list[FrameLike] = list(small)
    if inputs := input_states(model, environment):
        states = np.concatenate([episode.states[::block] for episode in recorded])
        seen = list(zip(small, states[:, inputs], strict=True))
    latents = [
        encoded.latent
        for first in range(0, len(seen), FRAMES_PER_REQUEST)
        for encoded in client.encode(
            seen[first : first + FRAMES_PER_REQUEST], model=model.name
        ).latents
    ]
    return FrameMemory(frames, np.stack(latents))


def watch(
    client: PlannerClient,
    model: ModelDescription,
    memory: FrameMemory,
    episodes: Episodes,
    indices: Sequence[int],
    *,
    seed: int,
) -> tuple[list[WatchedRobot], list[Outcome]]:
    """Run episodes one after another, so that no plan waits for another one."""
    robots, outcomes = [], []
    for index in indices:
        planner = RemotePlanner(
            client,
            episodes.plan_steps,
            model=model.name,
            include=("trajectory",),
            inputs=input_states(model, episodes.environment),
        )
        planner.tell_goal(episodes.goals[index])
        outcome = run_episode(planner, episodes, index, seed=seed, tell_state=planner.tell_state)
        camera, goal = _frames(episodes, outcome)
        executed = [min(len(plan.actions), episodes.plan_steps) for plan in planner.plans]
        trajectories = [plan.trajectory for plan in planner.plans]
        robots.append(
            WatchedRobot(
                camera=camera,
                goal=goal,
                imagined=tuple(
                    memory.nearest(trajectory)
                    for trajectory in trajectories
                    if trajectory is not None
                ),
                plan_starts=tuple(int(start) for start in np.cumsum([0, *executed[:-1]])),
                action_block=int(model.card["action_block"]),
                reached=outcome.reached,
            )
        )
        outcomes.append(outcome)
    return robots, outcomes


def _frames(episodes: Episodes, outcome: Outcome) -> tuple[NDArray[np.uint8], Frame]:
    """What the camera showed at each step of an episode, and its goal: the episode once more."""
    with closing(episodes.environment.simulation()) as simulation:
        simulation.reset(episodes.goals[outcome.index])
        goal = simulation.frame()
        simulation.reset(episodes.starts[outcome.index])
        camera = [simulation.frame()]
        for action in outcome.actions:
            simulation.step(action)
            camera.append(simulation.frame())
    return np.stack(camera), goal
