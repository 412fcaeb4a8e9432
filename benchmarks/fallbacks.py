"""Robots in Two-Room in closed loop while something is wrong, with and without fallbacks.

A server of the embedded model plans over gRPC. The same episodes are driven under every pair of
fault and fallback controller; a robot plans once per action block. From the second plan on, and for
four plans, the camera shows a fault. Or the robot is moved elsewhere once, before the second plan.

There is no target. `benchmarks/fallbacks.json` keeps the results by fault, and a run of some faults
leaves those of the others. `docs/latent-health.md` shows them. 100 episodes of `paper` under all
faults take half an hour.

    python -m benchmarks.fallbacks [--protocol paper|cross-room] [--episodes N] [--faults NAME…]
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

import torch
from torch import Tensor

from benchmarks.report import Report
from benchmarks.results import Result, describe_machine, now
from lewm_client import Driver, PlannerClient
from lewm_models.environments import two_room
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.faults import CAMERA_FAULTS
from lewm_models.evaluation.protocol import Episodes, sample_episodes
from lewm_models.evaluation.report import wilson_interval
from lewm_serve.cli.closed_loop import PLAN_TIMEOUT_S, to_png
from lewm_serve.cli.local_server import local_server

RESULTS_FOLDER = Path(__file__).parent
BLOCK = 5
HISTORY = 3
FAULTY_PLANS = range(1, 5)
"""The plans of an episode at which the camera shows a fault."""

CONTROLLERS = ("none", "hold", "tail", "waypoint")
TESTED_CAMERA_FAULTS = (
    "black",
    "pure noise",
    "noise, deviation 80",
    "brightness -20",
    "camera turned by 4 px",
    "occlusion of 40 px",
)
NO_FAULT, FROZEN, MOVED = "none", "frozen", "carried off"
FAULTS = (NO_FAULT, *TESTED_CAMERA_FAULTS, FROZEN, MOVED)


@dataclass(frozen=True)
class Episode:
    """How one episode went.

    Attributes:
        reached: whether the robot ended at the goal.
        steps: how many actions it ran.
        wall_hits: how many of them a wall ended early.
        fallback_steps: how many of them came from the fallback controller.
    """

    reached: bool
    steps: int
    wall_hits: int
    fallback_steps: int


@dataclass(frozen=True)
class Summary:
    """Episodes under one fault with one controller; steps and hits are sums.

    ``ran`` names the backend of the model and its precision.
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


def summarise(
    episodes: Sequence[Episode], *, protocol: str, fault: str, fallback: str, ran: str
) -> Summary:
    """Sum up episodes."""
    reached = sum(episode.reached for episode in episodes)
    return Summary(
        protocol=protocol,
        fault=fault,
        fallback=fallback,
        ran=ran,
        episodes=len(episodes),
        reached=reached,
        interval_95=wilson_interval(reached, len(episodes)),
        steps=sum(episode.steps for episode in episodes),
        wall_hits=sum(episode.wall_hits for episode in episodes),
        fallback_steps=sum(episode.fallback_steps for episode in episodes),
    )


def drive(
    client: PlannerClient, tasks: Episodes, index: int, *, fault: str, controller: str
) -> Episode:
    """Run one episode, with a plan per action block from the model's history of frames.

    The driver's history starts anew after a fallback. Otherwise the frame that must not be planned
    from would make the next requests anomalous as well.
    """
    generator = torch.Generator().manual_seed(index)
    start, target = (
        torch.from_numpy(points[index : index + 1]) for points in (tasks.starts, tasks.goals)
    )
    room = two_room.VectorTwoRoom(start, target)
    goal = to_png(room.goal_frames()[0].numpy())
    driver = Driver(
        client,
        goal,
        steps=BLOCK,
        timeout_s=PLAN_TIMEOUT_S,
        history=HISTORY,
        fallback=controller,
    )
    shown = room.frames()
    steps = wall_hits = fallback_steps = plan = 0
    while steps < tasks.budget:
        if fault == MOVED and plan == FAULTY_PLANS[0]:
            room.positions = two_room.sample_positions(1, generator)
        shown = camera_frame(
            room,
            shown,
            fault=fault if plan in FAULTY_PLANS else NO_FAULT,
            generator=generator,
        )
        move = driver.step(
            to_png(shown[0].numpy()),
            state=torch.cat([room.positions[0], room.goals[0]]).tolist(),
            seed=plan,
        )
        is_fallback = move.source == "fallback"
        for action in torch.from_numpy(move.actions[: tasks.budget - steps]):
            wall_hits += hits_wall(room.positions, action[None])
            reached = bool(room.step(action[None]))
            steps, fallback_steps = steps + 1, fallback_steps + is_fallback
            if reached:
                return Episode(
                    reached=True, steps=steps, wall_hits=wall_hits, fallback_steps=fallback_steps
                )
        plan += 1
    return Episode(reached=False, steps=steps, wall_hits=wall_hits, fallback_steps=fallback_steps)


def camera_frame(
    room: two_room.VectorTwoRoom, last_frame: Tensor, fault: str, generator: torch.Generator
) -> Tensor:
    """What the camera shows (1, 224, 224, 3). ``last_frame`` is what it showed before."""
    if fault == FROZEN:
        return last_frame
    frame = room.frames()
    return CAMERA_FAULTS[fault](frame, generator) if fault in TESTED_CAMERA_FAULTS else frame


def hits_wall(position: Tensor, action: Tensor) -> bool:
    """Whether the wall or the border ends a move (1, 2) early."""
    unblocked = position + action.clamp(-1, 1) * two_room.SPEED
    return not torch.allclose(two_room.move(position, action), unblocked, atol=1e-3)


def measure_faults(
    protocol: str, episodes: int, seed: int, faults: Sequence[str]
) -> Iterator[list[Summary]]:
    """Drive under one fault after another, each with every controller."""
    tasks = sample_episodes(TWO_ROOM, protocol, episodes, seed)
    with local_server() as server, PlannerClient(server.target) as client:
        [model] = client.models()
        for fault in faults:
            yield [
                summarise(
                    [
                        drive(client, tasks, index, fault=fault, controller=controller)
                        for index in range(len(tasks))
                    ],
                    protocol=protocol,
                    fault=fault,
                    fallback=controller,
                    ran=f"{model.backend}, {model.precision}",
                )
                for controller in CONTROLLERS
            ]


def replace_summaries(
    known: Sequence[dict[str, Any]], new: Sequence[Summary]
) -> list[dict[str, Any]]:
    """All summaries in order. The new ones replace those of the same protocol and fault."""
    replaced = {(summary.protocol, summary.fault) for summary in new}
    kept = [cell for cell in known if (cell["protocol"], cell["fault"]) not in replaced]
    order = sorted(TWO_ROOM.protocols, reverse=True)
    return sorted(
        [*kept, *map(asdict, new)],
        key=lambda cell: (order.index(cell["protocol"]), FAULTS.index(cell["fault"])),
    )


def markdown_table(summaries: Sequence[dict[str, Any]]) -> str:
    """A row per protocol and fault: goals reached, walls hit, share of the fallback's steps."""
    lines: list[Sequence[str]] = [
        ("protocol", "fault", *CONTROLLERS),
        ["---"] * 2 + ["--:"] * len(CONTROLLERS),
    ]
    rows: dict[tuple[str, str], list[str]] = {}
    for summary in summaries:
        fallback_share = summary["fallback_steps"] / summary["steps"]
        rows.setdefault((summary["protocol"], summary["fault"]), []).append(
            f"{summary['reached']} of {summary['episodes']}; {summary['wall_hits']}; "
            f"{100 * fallback_share:.0f} %"
        )
    lines += [[*names, *cells] for names, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Drive, keep the results, and print all of them as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", choices=sorted(TWO_ROOM.protocols), default="paper")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=FAULTS)
    options = parser.parse_args()
    path = RESULTS_FOLDER / "fallbacks.json"
    summaries = json.loads(path.read_text())["details"]["cells"] if path.exists() else []
    start, machine = time.monotonic(), describe_machine()
    for new in measure_faults(
        options.protocol, options.episodes, seed=options.seed, faults=options.faults
    ):
        seconds = time.monotonic() - start
        print(f"{seconds:5.0f} s  {options.protocol}, {new[0].fault}", file=sys.stderr)
        summaries = replace_summaries(summaries, new)
        result = Result(
            benchmark="fallbacks",
            taken=now(),
            quick=False,
            seconds=seconds,
            machine=machine,
            report=Report((), {"seed": options.seed, "cells": summaries}),
        )
        result.write(RESULTS_FOLDER)
    print(markdown_table(summaries))


if __name__ == "__main__":
    main()
