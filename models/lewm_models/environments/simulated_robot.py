"""A simulated robot in a process of its own, which another program drives.

`python -m lewm_models.environments.simulated_robot ENVIRONMENT SEED` reads one command a line from
standard input, a JSON object, and answers each with a line on standard output, a JSON object,
before the frames (H, W, 3) uint8 that its ``shape`` announces. It ends with its input.

| command | effect |
|---|---|
| `{"do": "look"}` | none |
| `{"do": "task", "number": n}` | the robot is at the start of task n, whose goal is its goal now |
| `{"do": "goal", "x": x, "y": y}` | its goal is at this point of the picture |
| `{"do": "step", "action": [...]}` | it executes an action |
| `{"do": "fault", "name": name}` | its camera has this fault; "": none |

Every answer has one frame: what the camera shows, and the robot's ``state``. After a change of the
goal, a second frame follows: the goal, without a fault; the ``goal_state`` belongs to it. The first
answer, to no command, has a frame of each task's goal.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from typing import Any, BinaryIO

import numpy as np
import torch

from lewm_models.environments.environment import Environment, FloatArray, Frame
from lewm_models.environments.registry import find_environment
from lewm_models.evaluation.faults import CAMERA_FAULTS
from lewm_models.evaluation.protocol import sample_episodes
from lewm_models.probe.states import states_of_environment

TASKS = 6
"""How many starts and goals there are to choose from."""

NICENESS = 10


class SimulatedRobot:
    """One robot, its goal, and the fault of its camera."""

    def __init__(self, environment: Environment, seed: int) -> None:
        self._environment = environment
        self._tasks = sample_episodes(environment, environment.demo_protocol, TASKS, seed)
        self._simulation = environment.simulation()
        self._goal: FloatArray | None = None
        self._fault = ""
        self._noise = torch.Generator().manual_seed(seed)

    def close(self) -> None:
        """Free what the simulation holds."""
        self._simulation.close()

    def introduce(self) -> tuple[dict[str, Any], list[Frame]]:
        """The first answer: the goals to choose from, with the robot at the first start."""
        goals = [self._picture_of(goal) for goal in self._tasks.goals]
        self._simulation.reset(self._tasks.starts[0])
        environment = self._environment
        takes_points = environment.state_at(0.5, 0.5) is not None
        about = {
            "name": environment.name,
            "action_dim": environment.action_dim,
            "controllers": list(environment.controllers),
            "takes_points": takes_points,
            "budget": self._tasks.budget,
            "state_names": list(states_of_environment(environment).names),
            "faults": list(CAMERA_FAULTS),
        }
        return about, goals

    def do(self, command: dict[str, Any]) -> tuple[dict[str, Any], list[Frame]]:
        """Execute a command.

        Raises:
            ValueError: it is unknown, or not possible here.
        """
        goals: list[Frame] = []
        match command:
            case {"do": "look"}:
                pass
            case {"do": "task", "number": int(number)} if 0 <= number < TASKS:
                goals = self._set_goal(self._tasks.goals[number], self._tasks.starts[number])
            case {"do": "goal", "x": float(x), "y": float(y)}:
                goal = self._environment.state_at(x, y)
                if goal is None:
                    raise ValueError(f"{self._environment.name}: a point is no goal here")
                goals = self._set_goal(goal, self._simulation.state())
            case {"do": "step", "action": list(action)}:
                self._simulation.step(np.asarray(action, np.float32))
            case {"do": "fault", "name": str(name)} if name in ("", *CAMERA_FAULTS):
                self._fault = name
            case _:
                raise ValueError(f"unknown command {command}")
        state = self._simulation.state()
        reached = self._goal is not None and self._environment.reached(state, self._goal)
        about: dict[str, Any] = {"state": state.tolist(), "reached": bool(reached)}
        if goals and self._goal is not None:
            about["goal_state"] = self._goal.tolist()
        return about, [self._seen(), *goals]

    def _set_goal(self, goal: FloatArray, start: FloatArray) -> list[Frame]:
        picture = self._picture_of(goal)
        self._simulation.reset(start)
        self._goal = goal
        return [picture]

    def _picture_of(self, state: FloatArray) -> Frame:
        self._simulation.reset(state)
        return self._simulation.frame()

    def _seen(self) -> Frame:
        frame = self._simulation.frame()
        if not self._fault:
            return frame
        frames = torch.from_numpy(np.array(frame)).unsqueeze(0)
        faulty: Frame = CAMERA_FAULTS[self._fault](frames, self._noise)[0].numpy()
        return faulty


def _answer(output: BinaryIO, about: dict[str, Any], frames: list[Frame]) -> None:
    shape = [len(frames), *frames[0].shape] if frames else [0, 0, 0, 3]
    output.write(json.dumps(about | {"shape": shape}).encode() + b"\n")
    for frame in frames:
        output.write(np.ascontiguousarray(frame).tobytes())
    output.flush()


def main() -> None:
    """Answer commands until there are no more."""
    _, name, seed = sys.argv
    os.nice(NICENESS)
    torch.set_num_threads(1)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what simulators print is no answer
    try:
        robot = SimulatedRobot(find_environment(name), int(seed))
        first = robot.introduce()
    except Exception as error:  # a simulator may raise anything when it starts
        _answer(output, {"error": str(error)}, [])
        return
    with closing(robot):
        _answer(output, *first)
        for line in sys.stdin.buffer:
            try:
                answer = robot.do(json.loads(line))
            except ValueError as error:
                answer = {"error": str(error)}, []
            _answer(output, *answer)


if __name__ == "__main__":
    main()
