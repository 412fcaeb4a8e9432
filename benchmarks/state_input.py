"""What named states beside the pixels are worth where the camera does not see everything.

In Two-Room a bar before the camera hides the agent in a third of the frames
(`lewm_models.environments.two_room_occluded`). Two models of the same size are trained on the same
recording, one with the position as state input and one with pixels alone. They drive over gRPC to
goals 25 steps ahead, with a budget of 50 steps (`paper`):

- with states: frames, and the position in `vector`, of the goal too;
- with states, the agent always hidden, and with states, black frames;
- states hidden: frames alone, to the model that takes states;
- pixels alone: frames alone, to the model that never had states.

Target: 95 % of the goals with states. The trained models are kept in
`runs/benchmarks/state_input`. Half an hour on one core.

    python -m benchmarks state_input
    python -m benchmarks.state_input [--quick]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import Measurement, Report, RunOptions, at_least, run_as_program
from lewm_client import PlannerClient
from lewm_models.card import SolverConfig
from lewm_models.config import LeWMConfig
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.environments import two_room
from lewm_models.environments.environment import Frame
from lewm_models.environments.two_room_occluded import (
    OCCLUDED_TWO_ROOM,
    OCCLUDER_BOTTOM,
    OCCLUDER_TOP,
    hides,
)
from lewm_models.evaluation.episode import Actions, Outcome, run_episodes
from lewm_models.evaluation.protocol import Episodes, sample_episodes
from lewm_models.evaluation.report import wilson_interval
from lewm_models.training.environment_source import EnvironmentSource
from lewm_models.training.preparation import Message, Progress
from lewm_models.training.prepared import PreparedData
from lewm_models.training.run import MODEL_FOLDER, train
from lewm_models.training.settings import Choices, environment_run
from lewm_models.training.trainer import TrainingConfig
from lewm_serve.api.responses import ModelDescription
from lewm_serve.cli.closed_loop import RemotePlanner, find_model, input_states
from lewm_serve.cli.local_server import local_server

ENVIRONMENT = "lewm_models.environments.two_room_occluded:OCCLUDED_TWO_ROOM"
EPISODES, QUICK_EPISODES = 300, 2
SEED = 0
RECORDED_EPISODES, RECORDED_STEPS = 340, 150

CONFIG = LeWMConfig(
    image_size=48,
    patch_size=16,
    encoder_width=96,
    encoder_depth=2,
    encoder_heads=3,
    encoder_mlp=192,
    latent_dim=64,
    projector_mlp=256,
    predictor_width=64,
    predictor_output=64,
    predictor_depth=2,
    predictor_heads=4,
    predictor_head_dim=16,
    predictor_mlp=256,
    pred_proj_mlp=256,
    action_mlp=128,
)
"""A model of 0.46 million weights."""

TRAINING = TrainingConfig(
    steps=1500, learning_rate=1e-3, seed=SEED, batch=64, directions=128, warmup=0.05
)
DISTANCE = DistanceTraining(steps=2000, batch=512, width=256)
SOLVER = SolverConfig(name="icem", samples=64, iterations=3, elites=8)

Show = Callable[[Frame], Frame]
"""What a planner sees of a frame (H, W, 3)."""


@dataclass(frozen=True)
class Condition:
    """What a model sees.

    Attributes:
        name: for the table.
        takes_states: the model that drives: the one with a state input or the other.
        sends_states: whether requests hold the states.
        show: what is left of the frames.
    """

    name: str
    takes_states: bool
    sends_states: bool
    show: Show


@dataclass(frozen=True)
class Cell:
    """How the episodes of a condition went.

    Attributes:
        name: the condition.
        episodes: their number.
        success: per cent that reached their goals.
        interval_95: Wilson's interval of it, per cent.
        hidden_success: per cent of those whose start or goal is hidden from the camera.
        hidden_episodes: their number.
        steps: mean number of steps to a reached goal; None: none was reached.
    """

    name: str
    episodes: int
    success: float
    interval_95: tuple[float, float]
    hidden_success: float | None
    hidden_episodes: int
    steps: float | None


class ShownFrames(RemotePlanner):
    """A planner that sees less than the camera."""

    show: Show

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        return super().__call__(self.show(frame), self.show(goal_frame), seed)


@dataclass(frozen=True)
class SharedSource:
    """A recording that several runs use: it is prepared in one folder."""

    source: EnvironmentSource
    shared: Path

    def prepare(self, folder: Path, progress: Progress, announce: Message) -> PreparedData:
        return self.source.prepare(self.shared, progress, announce)


def whole(frame: Frame) -> Frame:
    """All that the camera sees."""
    return frame


def without_agent(_frame: Frame) -> Frame:
    """The rooms and the bar, with the agent behind it."""
    simulation = OCCLUDED_TWO_ROOM.simulation()
    simulation.reset(np.array([two_room.WALL_X / 2, (OCCLUDER_TOP + OCCLUDER_BOTTOM) / 2]))
    return simulation.frame()


def black(frame: Frame) -> Frame:
    """Nothing."""
    return np.zeros_like(frame)


CONDITIONS = (
    Condition("with states", True, True, whole),
    Condition("with states, agent always hidden", True, True, without_agent),
    Condition("with states, black frames", True, True, black),
    Condition("states hidden", True, False, whole),
    Condition("pixels alone", False, False, whole),
)


def trained_model(takes_states: bool, options: RunOptions) -> Path:
    """The folder of the model, which is trained unless it is there."""
    folder = options.state_folder / ("state_input-quick" if options.quick else "state_input")
    name = "with-states" if takes_states else "pixels-alone"
    if (folder / name / MODEL_FOLDER / "model.json").is_file():
        return folder / name / MODEL_FOLDER
    run = environment_run(
        ENVIRONMENT,
        Choices(seed=SEED, state_input=takes_states),
        name=name,
        episodes=20 if options.quick else RECORDED_EPISODES,
        episode_steps=RECORDED_STEPS,
    )
    source = EnvironmentSource(
        environment=ENVIRONMENT,
        episodes=20 if options.quick else RECORDED_EPISODES,
        steps=RECORDED_STEPS,
        image_size=CONFIG.image_size,
        seed=SEED,
    )
    run = replace(
        run,
        source=SharedSource(source, folder / "data"),
        config=CONFIG,
        training=replace(TRAINING, steps=4) if options.quick else TRAINING,
        distance=replace(DISTANCE, steps=4) if options.quick else DISTANCE,
        solver=SOLVER,
    )

    def say(line: str) -> None:
        options.show_progress(f"{name}: {line}")

    return train(
        run,
        folder / name,
        device=torch.device("cpu"),
        on_message=say,
        on_metrics=lambda found: say(
            f"step {found.step}, {found.prediction_to_copy:.3f} × copying"
        ),
    )


def drive(
    client: PlannerClient, model: ModelDescription, condition: Condition, tasks: Episodes
) -> list[Outcome]:
    """Run all episodes under a condition."""
    inputs = input_states(model, tasks.environment) if condition.sends_states else []

    def make_planner() -> ShownFrames:
        planner = ShownFrames(client, tasks.plan_steps, model=model.name, inputs=inputs)
        planner.show = condition.show
        return planner

    return run_episodes(
        make_planner,
        tasks,
        seed=SEED,
        robots=1,
        tell_goal=ShownFrames.tell_goal,
        tell_state=ShownFrames.tell_state,
    )


def summarise(name: str, tasks: Episodes, outcomes: list[Outcome]) -> Cell:
    """Sum up the episodes of a condition."""
    reached = np.array([outcome.reached for outcome in outcomes])
    is_hidden = hides(tasks.starts) | hides(tasks.goals)
    low, high = wilson_interval(int(reached.sum()), len(reached))
    steps = [outcome.steps for outcome in outcomes if outcome.reached]
    return Cell(
        name=name,
        episodes=len(reached),
        success=100 * float(reached.mean()),
        interval_95=(100 * low, 100 * high),
        hidden_success=100 * float(reached[is_hidden].mean()) if is_hidden.any() else None,
        hidden_episodes=int(is_hidden.sum()),
        steps=float(np.mean(steps)) if steps else None,
    )


def measure(options: RunOptions) -> Report:
    """See the module."""
    torch.set_num_threads(1)
    folders = {takes: trained_model(takes, options) for takes in (True, False)}
    tasks = sample_episodes(
        OCCLUDED_TWO_ROOM, "paper", QUICK_EPISODES if options.quick else EPISODES, SEED
    )
    cells = []
    for takes_states, folder in folders.items():
        with local_server(folder) as server, PlannerClient(server.target) as client:
            model = find_model(client, None, OCCLUDED_TWO_ROOM)
            for condition in CONDITIONS:
                if condition.takes_states == takes_states:
                    options.show_progress(f"{condition.name}: {len(tasks)} episodes")
                    outcomes = drive(client, model, condition, tasks)
                    cells.append(summarise(condition.name, tasks, outcomes))
    states = OCCLUDED_TWO_ROOM.trajectories(RECORDED_EPISODES, RECORDED_STEPS, SEED)
    details: dict[str, Any] = {
        "seed": SEED,
        "hidden_frames": float(hides(states).mean()),
        "recorded": {"episodes": RECORDED_EPISODES, "steps": RECORDED_STEPS},
        "training": asdict(TRAINING),
        "distance": asdict(DISTANCE),
        "solver": asdict(SOLVER),
        "cells": [asdict(cell) for cell in cells],
    }
    return Report(tuple(map(_measurement, cells)), details)


def _measurement(cell: Cell) -> Measurement:
    low, high = cell.interval_95
    hidden = "–" if cell.hidden_success is None else f"{cell.hidden_success:.1f} %"
    note = (
        f"{low:.1f} to {high:.1f} %, {cell.episodes} episodes; {hidden} of the "
        f"{cell.hidden_episodes} with start or goal behind the bar"
    )
    what = f"{cell.name}: success"
    if cell.name == CONDITIONS[0].name:
        return at_least(what, cell.success, "%", 95.0, note=note)
    return Measurement(what, cell.success, "%", note=note)


if __name__ == "__main__":
    run_as_program(measure, __doc__)
