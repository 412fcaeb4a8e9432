"""Two-Room in closed loop while something is wrong: with and without fallbacks, over gRPC.

`python -m benchmarks.fallbacks` starts a server of the embedded model and drives the same episodes
with every pair of fault and controller. From the second look on, and for four looks, the camera is
at fault; or the robot is carried somewhere else before the second look, once.
`benchmarks/fallbacks.json` keeps what was measured, fault by fault: a run of some faults leaves
those of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.machine import describe_machine
from benchmarks.results import Result, now
from lewm_client import Pilot, PlannerClient
from lewm_models.environments import two_room
from lewm_models.evaluation.faults import CAMERA_FAULTS
from lewm_models.evaluation.interval import wilson_interval
from lewm_models.evaluation.protocol import PROTOCOLS, Episodes
from lewm_serve.cli.closed_loop import TIMEOUT_S, png
from lewm_serve.cli.local_server import local_server

FOLDER = Path(__file__).parent
BLOCK = 5
HISTORY = 3
FAULTY = range(1, 5)
"""The looks at which the camera is at fault."""
CONTROLLERS = ("none", "hold", "tail", "waypoint")
CAMERAS = (
    "black",
    "pure noise",
    "noise, deviation 80",
    "brightness -20",
    "camera turned by 4 px",
    "occlusion of 40 px",
)
FROZEN, CARRIED = "frozen", "carried off"
FAULTS = ("none", *CAMERAS, FROZEN, CARRIED)


@dataclass(frozen=True)
class Drive:
    """One episode: whether it ended at the goal, and what happened on the way."""

    reached: bool
    steps: int
    wall_hits: int
    fallback_steps: int


@dataclass(frozen=True)
class Cell:
    """N episodes under one fault with one controller; steps and hits are of all of them.

    ``ran`` names the model's backend and its precision.
    """

    protocol: str
    fault: str
    fallback: str
    ran: str
    episodes: int
    reached: int
    interval_95: tuple[float, float]
    steps: int
    wall_hits: int
    fallback_steps: int

    @classmethod
    def of(
        cls, protocol: str, fault: str, fallback: str, ran: str, drives: Sequence[Drive]
    ) -> Cell:
        """Sum episodes up."""
        reached, *sums = (
            sum(getattr(one, name) for one in drives)
            for name in ("reached", "steps", "wall_hits", "fallback_steps")
        )
        interval = wilson_interval(reached, len(drives))
        return cls(protocol, fault, fallback, ran, len(drives), reached, interval, *sums)


def drive(client: PlannerClient, tasks: Episodes, index: int, fault: str, controller: str) -> Drive:
    """Run an episode, looking once an action block, with the model's history.

    After a fallback the history begins anew: a frame that was not to be planned from would make
    the next requests anomalous as well.
    """
    generator = torch.Generator().manual_seed(index)
    task = slice(index, index + 1)
    room = two_room.VectorTwoRoom(tasks.starts[task], tasks.goals[task])
    goal = png(room.goal_frames()[0].numpy())
    pilot = Pilot(client, goal, steps=BLOCK, timeout_s=TIMEOUT_S, fallback=controller)
    shown = room.frames()
    frames: list[bytes] = []
    past: list[NDArray[np.float32]] = []
    steps = hits = under = look = 0
    while steps < tasks.budget:
        if fault == CARRIED and look == FAULTY[0]:
            room.positions = two_room.sample_positions(1, generator)
        shown = see(room, shown, fault if look in FAULTY else "none", generator)
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
        if move.source == "fallback":
            frames, past = [], []
        look += 1
    return Drive(False, steps, hits, under)


def see(
    room: two_room.VectorTwoRoom, before: Tensor, fault: str, generator: torch.Generator
) -> Tensor:
    """What the camera shows (1, 224, 224, 3), which showed ``before`` at the look before."""
    if fault == FROZEN:
        return before
    frames = room.frames()
    return CAMERA_FAULTS[fault](frames, generator) if fault in CAMERAS else frames


def hits_wall(position: Tensor, action: Tensor) -> bool:
    """Whether the wall or the border, and nothing else, ends a move (1, 2) short."""
    free = position + action.clamp(-1, 1) * two_room.SPEED
    return not torch.allclose(two_room.move(position, action), free, atol=1e-3)


def measure(protocol: str, episodes: int, seed: int, faults: Sequence[str]) -> Iterator[list[Cell]]:
    """Drive under one fault after another, each with every controller."""
    tasks = PROTOCOLS[protocol](episodes, seed)
    with local_server() as server, PlannerClient(server.target) as client:
        [served] = client.models()
        ran = f"{served.backend}, {served.precision}"
        for fault in faults:
            cells = []
            for name in CONTROLLERS:
                drives = [drive(client, tasks, index, fault, name) for index in range(len(tasks))]
                cells.append(Cell.of(protocol, fault, name, ran, drives))
            yield cells


def merged(known: Sequence[dict[str, Any]], fresh: Sequence[Cell]) -> list[dict[str, Any]]:
    """All cells, the fresh ones in place of those of the same protocol and fault, in order."""
    replaced = {(cell.protocol, cell.fault) for cell in fresh}
    kept = [cell for cell in known if (cell["protocol"], cell["fault"]) not in replaced]
    order = sorted(PROTOCOLS, reverse=True)
    return sorted(
        [*kept, *map(asdict, fresh)],
        key=lambda cell: (order.index(cell["protocol"]), FAULTS.index(cell["fault"])),
    )


def table(cells: Sequence[dict[str, Any]]) -> str:
    """In Markdown, a row for each fault of each protocol: goals reached, and walls hit."""
    head = ("protocol", "fault", *CONTROLLERS)
    lines = [head, ["---"] * 2 + ["--:"] * len(CONTROLLERS)]
    rows: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        share = cell["fallback_steps"] / cell["steps"]
        reached = f"{cell['reached']} of {cell['episodes']}"
        rows.setdefault((cell["protocol"], cell["fault"]), []).append(
            f"{reached}; {cell['wall_hits']}; {100 * share:.0f} %"
        )
    lines += [[*names, *figures] for names, figures in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Drive, keep what was found, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), default="paper")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=FAULTS)
    options = parser.parse_args()
    path = FOLDER / "fallbacks.json"
    cells = json.loads(path.read_text())["details"]["cells"] if path.exists() else []
    start, machine = time.monotonic(), describe_machine()
    for fresh in measure(options.protocol, options.episodes, options.seed, options.faults):
        seconds = time.monotonic() - start
        print(f"{seconds:5.0f} s  {options.protocol}, {fresh[0].fault}", file=sys.stderr)
        cells = merged(cells, fresh)
        details = {"seed": options.seed, "cells": cells}
        Result("fallbacks", now(), False, seconds, machine, (), details).write(FOLDER)
    print(table(cells))


if __name__ == "__main__":
    main()
