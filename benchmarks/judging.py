"""Which measures of `lewm evaluate MODEL --data` rank models as success in closed loop does.

For each task, one small model is trained three times: with the usual weight of SIGReg, from which
checkpoints are taken early, in the middle and at the end, with the weight 0 and with 0.5. All five
checkpoints are judged on the same held-out episodes and drive the same episodes of `paper`.

A pair of checkpoints counts if the 95 % interval of the difference of their success, over the same
episodes, does not hold 0, and so with the difference of their mean gaps: how far from its goal an
episode ends. A measure ranks a pair correctly if the better checkpoint has the better value.

`benchmarks/judging.json` keeps the results by task, and `docs/judging.md` shows them. Trained runs
are kept in `runs/benchmarks/judging`, so a run that was interrupted repeats little. Both tasks take
half an hour on one core.

    python -m benchmarks.judging [--tasks two-room reacher] [--episodes N] [--show]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparison import PairedOutcomes
from benchmarks.report import Report, RunOptions
from benchmarks.results import Result, describe_machine, now
from lewm_models.card import ModelCard, SolverConfig
from lewm_models.checkpoint import Checkpoint
from lewm_models.config import LeWMConfig
from lewm_models.distance.quality import rank_correlation
from lewm_models.environments.environment import Environment, FloatArray, Frame
from lewm_models.environments.reacher import angle_differences
from lewm_models.environments.registry import find_environment
from lewm_models.evaluation.episode import Actions, run_episodes
from lewm_models.evaluation.protocol import sample_episodes
from lewm_models.evaluation.report import Z_95, wilson_interval
from lewm_models.judging.judge import Judgement, judge
from lewm_models.judging.measure import Measure
from lewm_models.lewm import LeWM
from lewm_models.preprocessing import to_model_frames
from lewm_models.probe.states import states_of_environment
from lewm_models.recorded_sample import PreparedPieces
from lewm_models.training.environment_source import EnvironmentSource
from lewm_models.training.prepared import PreparedData
from lewm_models.training.trainer import Trainer, TrainingConfig, reestimate_batch_norm
from lewm_models.training.windows import Windows, split_episodes
from lewm_serve.cli.search import DefaultSearch

Results = Mapping[str, Mapping[str, Any]]
"""What `measure_checkpoint` found, by checkpoint."""

RESULTS_FOLDER = Path(__file__).parent
SEED = 0
CPU = torch.device("cpu")

CONFIG = LeWMConfig(
    image_size=64,
    patch_size=16,
    encoder_width=96,
    encoder_depth=3,
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
"""A model of 0.7 million weights."""

SOLVER = SolverConfig(name="icem", samples=48, iterations=2, elites=5)

WEIGHT, WEIGHTS_TO_COMPARE = 0.09, (0.0, 0.5)
"""Of SIGReg in the loss: the usual one, and others."""

SNAPSHOTS = {"early": 0.08, "middle": 0.3, "final": 1.0}
"""After which shares of the steps checkpoints of the usual run are taken."""


@dataclass(frozen=True)
class Task:
    """An environment, and how much is recorded and trained.

    Attributes:
        environment: its name.
        episodes: recorded episodes.
        episode_steps: their length.
        steps: training steps of 64 windows.
        gap: how far a state is from a goal, in the unit of the success test.
    """

    environment: str
    episodes: int
    episode_steps: int
    steps: int
    gap: Callable[[FloatArray, FloatArray], float]


def _pixels(state: FloatArray, goal: FloatArray) -> float:
    return float(np.linalg.norm(np.asarray(state) - goal))


def _radians(state: FloatArray, goal: FloatArray) -> float:
    return float(np.abs(angle_differences(state, goal)).max())


TASKS = {
    "two-room": Task("two-room", episodes=400, episode_steps=100, steps=800, gap=_pixels),
    "reacher": Task("reacher", episodes=400, episode_steps=100, steps=800, gap=_radians),
}


class InProcessPlanner:
    """A planner of closed-loop episodes; see `lewm_models.evaluation.episode.Planner`."""

    def __init__(self, loaded: Checkpoint) -> None:
        self._model, self._card = loaded.model, loaded.card
        self._plan = DefaultSearch(loaded, CPU)

    @torch.inference_mode()
    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """The actions of a plan, in the environment's units."""
        card, config = self._card, self._card.config
        frames = torch.from_numpy(np.stack([frame, goal_frame]))
        start, goal = self._model.encode(to_model_frames(frames, config.image_size, None))
        blocks = self._plan(start, goal, blocks=card.solver.horizon, seed=seed)
        actions = blocks.reshape(-1, config.action_dim).numpy()
        in_units = actions * np.array(card.action_std) + np.array(card.action_mean)
        return in_units.astype(np.float32), 0.0


def checkpoints(
    task: Task, folder: Path, *, steps: int, say: Callable[[str], None]
) -> Iterator[tuple[str, Checkpoint, PreparedData]]:
    """Train, and yield the checkpoints of a task by name."""
    environment = find_environment(task.environment)
    source = EnvironmentSource(
        environment=task.environment,
        episodes=task.episodes,
        steps=task.episode_steps,
        image_size=CONFIG.image_size,
        seed=SEED,
        frame_every=CONFIG.action_block,
    )
    data = source.prepare(folder / "data", lambda done, total: None, say)
    mean, std = data.action_statistics()
    card = ModelCard(
        name=task.environment,
        config=replace(CONFIG, action_dim=environment.action_dim),
        action_mean=tuple(mean.tolist()),
        action_std=tuple(std.tolist()),
        action_low=environment.action_low,
        action_high=environment.action_high,
        solver=SOLVER,
    )
    for weight in (WEIGHT, *WEIGHTS_TO_COMPARE):
        trainer, windows = _trainer(data, card, steps=steps, weight=weight)
        shares = SNAPSHOTS if weight == WEIGHT else {f"λ = {weight:g}": 1.0}
        for name, share in shares.items():
            until = max(1, round(share * steps))
            saved = folder / f"weight-{weight:g}-step-{until}-of-{steps}.pt"
            if saved.exists():
                trainer.resume(saved)
            else:
                trainer.run(until=until)
                trainer.save(saved)
            model = copy.deepcopy(trainer.model)
            reestimate_batch_norm(model, windows, batch=trainer.config.batch, seed=SEED)
            say(f"{task.environment}, {name}: trained for {trainer.seconds:.0f} s")
            yield name, Checkpoint(model, card, version=f"step {until}, weight {weight:g}"), data


def _trainer(
    data: PreparedData, card: ModelCard, *, steps: int, weight: float
) -> tuple[Trainer, Windows]:
    windows, held_out = (
        Windows(
            data,
            pieces,
            history=card.config.history,
            action_block=card.config.action_block,
            mean=np.array(card.action_mean),
            std=np.array(card.action_std),
        )
        for pieces in split_episodes(data)
    )
    config = TrainingConfig(
        steps=steps,
        learning_rate=1e-3,
        seed=SEED,
        batch=64,
        sigreg_weight=weight,
        directions=128,
        warmup=0.05,
    )
    trainer = Trainer(LeWM(card.config), windows, held_out=held_out, config=config, device=CPU)
    return trainer, windows


def measure_checkpoint(
    loaded: Checkpoint, data: PreparedData, task: Task, *, episodes: int
) -> dict[str, Any]:
    """The success of a checkpoint in closed loop, and its measures without a simulator."""
    environment = find_environment(task.environment)
    outcomes = drive(loaded, environment, episodes)
    reached = [is_reached for is_reached, _, _ in outcomes]
    gaps = [task.gap(last, goal) for _, last, goal in outcomes]
    judgement = judge(
        loaded,
        PreparedPieces(data, CONFIG.image_size),
        space=states_of_environment(environment),
        plan=DefaultSearch(loaded, CPU),
        plans=100,
    )
    return {
        "success": sum(reached) / episodes,
        "interval_95": wilson_interval(sum(reached), episodes),
        "mean_gap": float(np.mean(gaps)),
        "reached": [int(is_reached) for is_reached in reached],
        "gaps": gaps,
        "measures": summarise(judgement),
    }


def drive(
    loaded: Checkpoint, environment: Environment, episodes: int
) -> list[tuple[bool, FloatArray, FloatArray]]:
    """Whether each episode reached its goal, its last state, and its goal."""
    tasks = sample_episodes(environment, "paper", episodes, SEED)
    planner = InProcessPlanner(loaded)
    outcomes = run_episodes(lambda: planner, tasks, seed=SEED, robots=1)
    return [
        (outcome.reached, outcome.states[-1], goal)
        for outcome, goal in zip(outcomes, tasks.goals, strict=True)
    ]


_STATE_ERRORS = {
    "probe_error": "mean",
    "recovery_1_state_error": "stay",
    "recovery_5_state_error": "stay",
}
"""The baselines that errors of states are divided by, so that different units can be averaged.
They do not depend on the model."""


def summarise(judgement: Judgement) -> dict[str, dict[str, Any]]:
    """Value and direction of each measure, and of its ratio to each baseline.

    Measures of states become means over the states; errors are divided by `_STATE_ERRORS`.
    """
    found: dict[str, dict[str, Any]] = {}
    of_states: dict[str, list[Measure]] = {}
    for measure in judgement.measures:
        beginning = next(
            (name for name in ("probe_r2", *_STATE_ERRORS) if measure.name.startswith(f"{name}_")),
            None,
        )
        if beginning is not None:
            of_states.setdefault(beginning, []).append(measure)
            continue
        value = measure.estimate.value
        found[measure.name] = {"value": value, "better": measure.better}
        for name, baseline in measure.baselines.items():
            if measure.better == "lower" and baseline.value > 0:
                ratio = {"value": value / baseline.value, "better": "lower"}
                found[f"{measure.name} / {name}"] = ratio
    for beginning, measures in of_states.items():
        is_r2 = beginning == "probe_r2"
        values = [
            measure.estimate.value
            if is_r2
            else measure.estimate.value / measure.baselines[_STATE_ERRORS[beginning]].value
            for measure in measures
        ]
        found[f"{beginning} (mean)"] = {
            "value": float(np.mean(values)),
            "better": "higher" if is_r2 else "lower",
        }
    return found


def pairs_by_success(results: Results) -> list[tuple[str, str]]:
    """The pairs of checkpoints whose success differs, the better one first."""
    pairs = []
    for first, second in permutations(results, 2):
        reached = [[bool(one) for one in results[name]["reached"]] for name in (first, second)]
        if PairedOutcomes.count(*reached).interval()[0] > 0:
            pairs.append((first, second))
    return pairs


def pairs_by_gap(results: Results) -> list[tuple[str, str]]:
    """The pairs of checkpoints whose mean gap differs, the one with the smaller gap first."""
    pairs = []
    for first, second in permutations(results, 2):
        differences = np.subtract(results[second]["gaps"], results[first]["gaps"])
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        if differences.mean() > Z_95 * error:
            pairs.append((first, second))
    return pairs


def describe(results: Results) -> dict[str, Any]:
    """The results of a task for JSON: those of single episodes only as pairs that differ."""
    return {
        "pairs": {"success": pairs_by_success(results), "gap": pairs_by_gap(results)},
        "checkpoints": {
            name: {key: found[key] for key in found if key not in ("reached", "gaps")}
            for name, found in results.items()
        },
    }


def rank(task: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How each measure ranks the checkpoints of a task, given what `describe` returned.

    ``success`` and ``gap`` have the number of pairs that it ranks correctly and that of all pairs;
    ``spearman`` is the rank correlation with success. A measure whose good values are neither low
    nor high is tried as one of high values.
    """
    results, pairs = task["checkpoints"], task["pairs"]
    names = list(results)
    success = np.array([results[name]["success"] for name in names])
    ranked: dict[str, dict[str, Any]] = {}
    for measure in results[names[0]]["measures"]:
        of_all = [results[name]["measures"].get(measure) for name in names]
        if any(found is None for found in of_all):
            continue
        sign = -1.0 if of_all[0]["better"] == "lower" else 1.0
        values = {name: sign * found["value"] for name, found in zip(names, of_all, strict=True)}
        ranked[measure] = {
            kind: (sum(values[better] > values[worse] for better, worse in found), len(found))
            for kind, found in pairs.items()
        }
        of_checkpoints = np.array([values[name] for name in names])
        ranked[measure]["spearman"] = rank_correlation(of_checkpoints, success)
    return ranked


def markdown(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as tables: success, and how each measure ranks, the best first."""
    lines = ["| task | checkpoint | success | 95 % interval | mean gap at the end |"]
    lines.append("|---|---|--:|---|--:|")
    for task, results in tasks.items():
        for name, found in results["checkpoints"].items():
            low, high = found["interval_95"]
            lines.append(
                f"| {task} | {name} | {found['success']:.1%} | {low:.1%} to {high:.1%} | "
                f"{found['mean_gap']:.3g} |"
            )
    ranked = {task: rank(results) for task, results in tasks.items()}
    shared = set.intersection(*(set(rows) for rows in ranked.values()))

    def missed(measure: str) -> tuple[float, str]:
        of_tasks = [rows[measure] for rows in ranked.values()]
        wrong = sum(of - right for row in of_tasks for right, of in (row["success"], row["gap"]))
        return wrong - sum(row["spearman"] for row in of_tasks) / 10, measure

    heads = [f"{task}: {kind}" for task in ranked for kind in ("success", "gap", "ρ")]
    lines += ["", f"| measure | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for measure in sorted(shared, key=missed):
        cells = []
        for row in (rows[measure] for rows in ranked.values()):
            cells += ["{} of {}".format(*row[kind]) for kind in ("success", "gap")]
            cells.append(f"{row['spearman']:+.2f}")
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, keep the results, and print all of them as tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="*", choices=sorted(TASKS), default=list(TASKS))
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--steps", type=int, help="training steps; default: the task's")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    options = parser.parse_args()
    path = RESULTS_FOLDER / "judging.json"
    tasks = json.loads(path.read_text())["details"]["tasks"] if path.exists() else {}
    start, machine = time.monotonic(), describe_machine()
    torch.set_num_threads(1)

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {text}", file=sys.stderr, flush=True)

    for name in () if options.show else options.tasks:
        task = TASKS[name]
        steps = options.steps or task.steps
        folder = RunOptions().state_folder / "judging" / name
        results = {}
        for checkpoint, loaded, data in checkpoints(task, folder, steps=steps, say=say):
            found = measure_checkpoint(loaded, data, task, episodes=options.episodes)
            say(f"{name}, {checkpoint}: success {found['success']:.1%}")
            results[checkpoint] = found
        tasks[name] = {
            "recorded": {"episodes": task.episodes, "steps": task.episode_steps},
            "steps": steps,
            "episodes": options.episodes,
            **describe(results),
        }
        result = Result(
            benchmark="judging",
            taken=now(),
            quick=False,
            seconds=time.monotonic() - start,
            machine=machine,
            report=Report((), {"seed": SEED, "tasks": tasks}),
        )
        result.write(RESULTS_FOLDER)
    print(markdown(tasks))


if __name__ == "__main__":
    main()
