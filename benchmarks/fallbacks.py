"""Two-Room in closed loop while something is wrong: with and without fallbacks, over gRPC.

`python -m benchmarks.fallbacks` starts a server of the embedded model and drives the same episodes
with every pair of fault and controller. From the second look on, and for four looks, either the
camera shows nothing or noise, or the robot is carried somewhere else before each of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from lewm_client import Pilot, PlannerClient
from numpy.typing import NDArray
from torch import Tensor

from models.environments import two_room
from models.evaluation.faults import noise, pure_noise, uniform
from models.evaluation.protocol import PROTOCOLS, Episodes
from service.cli.local_server import local_server
from service.cli.remote_planner import TIMEOUT_S, png

BLOCK = 5
HISTORY = 3
FAULTY = range(1, 5)
"""The looks at which something is wrong."""
CONTROLLERS = ("none", "hold", "tail", "waypoint")
TELEPORT = "carried off"
Camera = Callable[[Tensor, torch.Generator], Tensor]
CAMERAS: dict[str, Camera] = {
    "black frames": lambda frames, generator: uniform(frames, generator, grey=0),
    "pure noise": pure_noise,
    "noise, deviation 80": lambda frames, generator: noise(frames, generator, std=80),
}
FAULTS = ("none", *CAMERAS, TELEPORT)


@dataclass(frozen=True)
class Drive:
    """One episode: whether it ended at the goal, and what happened on the way."""

    reached: bool
    steps: int
    wall_hits: int
    fallback_steps: int


def drive(client: PlannerClient, tasks: Episodes, index: int, fault: str, controller: str) -> Drive:
    """Run an episode, looking once an action block, with the model's whole history."""
    generator = torch.Generator().manual_seed(index)
    task = slice(index, index + 1)
    room = two_room.VectorTwoRoom(tasks.starts[task], tasks.goals[task])
    goal = png(room.goal_frames()[0].numpy())
    pilot = Pilot(client, goal, steps=BLOCK, timeout_s=TIMEOUT_S, fallback=controller)
    frames: list[bytes] = []
    past: list[NDArray[np.float32]] = []
    steps = hits = under = look = 0
    while steps < tasks.budget:
        if fault == TELEPORT and look in FAULTY:
            room.positions = two_room.sample_positions(1, generator)
        shown = room.frames()
        if fault in CAMERAS and look in FAULTY:
            shown = CAMERAS[fault](shown, generator)
        frames = [*frames, png(shown[0].numpy())][-HISTORY:]
        past = past[-(len(frames) - 1) :] if len(frames) > 1 else []
        state = torch.cat([room.positions[0], room.goals[0]]).tolist()
        move = pilot.step(frames, np.concatenate(past) if past else None, state=state, seed=look)
        for action in torch.from_numpy(move.actions[: tasks.budget - steps]):
            hits += hits_wall(room.positions, action[None])
            reached = bool(room.step(action[None]))
            steps, under = steps + 1, under + (move.source == "fallback")
            if reached:
                return Drive(True, steps, hits, under)
        past.append(move.actions)
        look += 1
    return Drive(False, steps, hits, under)


def hits_wall(position: Tensor, action: Tensor) -> bool:
    """Whether the wall or the border, and nothing else, ends a move (1, 2) short."""
    free = position + action.clamp(-1, 1) * two_room.SPEED
    return not torch.allclose(two_room.move(position, action), free, atol=1e-3)


def main() -> None:
    """Drive, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="cross-room")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--controllers", nargs="+", choices=CONTROLLERS, default=CONTROLLERS)
    options = parser.parse_args()
    tasks = PROTOCOLS[options.protocol](options.episodes, options.seed)
    print("| fault | fallback | reached | steps | wall hits | steps under fallback |")
    print("|---|---|---|---|---|---|")
    with local_server() as server, PlannerClient(server.target) as client:
        for fault in options.faults:
            for controller in options.controllers:
                drives = [
                    drive(client, tasks, index, fault, controller) for index in range(len(tasks))
                ]
                reached = sum(one.reached for one in drives)
                steps, hits, under = (
                    sum(getattr(one, name) for one in drives)
                    for name in ("steps", "wall_hits", "fallback_steps")
                )
                figures = f"{reached} of {len(drives)} | {steps} | {hits} | {under}"
                print(f"| {fault} | {controller} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
