"""The default solver of the embedded model against the paper's CEM, on the same episodes.

Both drive 500 closed-loop episodes of Two-Room (protocol `paper`) from pixels, with the same seeds.
They plan in process, without a server, with one episode per core at a time. Each result is written
to `runs/benchmarks` as soon as it is there, so a run that was interrupted continues. The interval
is that of a difference of paired proportions (Newcombe 1998, method 10).

Targets: the success rate is at most 2 points lower (lower end of the 95 % interval), with at most
0.05 of CEM's candidates per plan. Half an hour.

    python -m benchmarks.solvers [--quick]
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import PairedOutcomes
from benchmarks.flops import PAPER_CEM
from benchmarks.in_process import SearchLoop, load_like_server
from benchmarks.report import (
    Measurement,
    Report,
    RunOptions,
    at_least,
    at_most,
    run_as_program,
)
from lewm_models import checkpoint
from lewm_models.card import SolverConfig, read_card
from lewm_models.checkpoint import PRETRAINED
from lewm_models.environments.environment import Frame
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.episode import Actions, run_episode
from lewm_models.evaluation.protocol import sample_episodes
from lewm_models.preprocessing import resize
from lewm_serve.cli.worker_processes import worker_processes
from lewm_serve.registry.registry import LoadedModel

MODEL_FOLDER = PRETRAINED / "two-room"
EPISODES, QUICK_EPISODES = 500, 20
SEED = 0
MIN_DIFFERENCE_POINTS, MAX_CANDIDATES_RATIO = -2.0, 0.05


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode went. ``candidates`` holds the number of candidates of each plan."""

    solver: dict[str, Any]
    episode: int
    reached: bool
    candidates: tuple[int, ...]
    seconds: float


def measure(options: RunOptions) -> Report:
    """See the module."""
    default_solver = read_card(MODEL_FOLDER / checkpoint.CARD_FILE).solver
    count = QUICK_EPISODES if options.quick else EPISODES
    results = run_all_episodes(
        EpisodeRecord.for_weights(MODEL_FOLDER, options.state_folder),
        (default_solver, PAPER_CEM),
        count,
        options=options,
    )
    ours, papers = (
        [results[solver_key(solver), index] for index in range(count)]
        for solver in (default_solver, PAPER_CEM)
    )
    outcomes = PairedOutcomes.count(
        [result.reached for result in ours], [result.reached for result in papers]
    )
    low, high = outcomes.interval()
    candidates, paper_candidates = mean_candidates(ours), mean_candidates(papers)
    only_one = f"goals that only one of the two reached: {outcomes.first} and {outcomes.second}"
    return Report(
        (
            at_least(
                f"success of {default_solver.name} minus that of CEM 300 × 30, "
                "lower end of the interval",
                100 * low,
                "points",
                bound=MIN_DIFFERENCE_POINTS,
                note=f"{count} episodes, difference {100 * outcomes.difference:+.1f} points "
                f"(95 %: {100 * low:+.1f} to {100 * high:+.1f})",
            ),
            at_most(
                f"{default_solver.name} against CEM 300 × 30: candidates a plan",
                candidates / paper_candidates,
                "of CEM's",
                bound=MAX_CANDIDATES_RATIO,
                note=f"{candidates:.0f} against {paper_candidates:.0f}",
            ),
            *(
                Measurement(
                    f"{solver.name} reaches",
                    100 * sum(result.reached for result in solver_results) / count,
                    "% of the goals",
                    note=only_one,
                )
                for solver, solver_results in ((default_solver, ours), (PAPER_CEM, papers))
            ),
        ),
        {
            "episodes": count,
            "seed": SEED,
            "solvers": [asdict(default_solver), asdict(PAPER_CEM)],
            "pairs": asdict(outcomes),
            "interval_points": [100 * low, 100 * high],
            "plan_s": {"own": _median_plan_s(ours), "cem": _median_plan_s(papers)},
        },
    )


def mean_candidates(results: Sequence[EpisodeResult]) -> float:
    """The mean number of candidates of a plan."""
    return statistics.mean(count for result in results for count in result.candidates)


def _median_plan_s(results: Sequence[EpisodeResult]) -> float:
    return statistics.median(result.seconds / len(result.candidates) for result in results)


def solver_key(solver: SolverConfig) -> str:
    """All settings as a string. Results of other settings are other results."""
    return json.dumps(asdict(solver))


class EpisodeRecord:
    """Results by solver and episode in a file, one line of JSON each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def for_weights(cls, model: Path, folder: Path, protocol: str = "paper") -> EpisodeRecord:
        """The record of a model's weights and distance. It does not depend on the card's solver."""
        content = hashlib.sha256((model / checkpoint.WEIGHTS_FILE).read_bytes())
        if (distance := model / checkpoint.DISTANCE_FILE).exists():
            content.update(distance.read_bytes())
        return cls(folder / f"solvers-{protocol}-{content.hexdigest()[:16]}.jsonl")

    def read(self) -> dict[tuple[str, int], EpisodeResult]:
        """The results so far. Incomplete lines are left out."""
        results = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            values["candidates"] = tuple(values["candidates"])
            result = EpisodeResult(**values)
            results[solver_key(SolverConfig(**result.solver)), result.episode] = result
        return results

    def add(self, result: EpisodeResult) -> None:
        """Write one result, on a new line even if the last line is incomplete."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(asdict(result)).encode() + b"\n")


def run_all_episodes(
    record: EpisodeRecord,
    solvers: Sequence[SolverConfig],
    count: int,
    options: RunOptions,
    protocol: str = "paper",
) -> dict[tuple[str, int], EpisodeResult]:
    """The results of ``count`` episodes with each solver. Only those not in the record are run."""
    results = record.read()
    missing = [
        (solver, index)
        for index in range(count)
        for solver in solvers
        if (solver_key(solver), index) not in results
    ]
    for left, result in _run_episodes(missing, protocol):
        record.add(result)
        results[solver_key(SolverConfig(**result.solver)), result.episode] = result
        options.show_progress(f"{left} of {len(solvers) * count} episodes left")
    return results


def _run_episodes(
    missing: Sequence[tuple[SolverConfig, int]], protocol: str
) -> Iterator[tuple[int, EpisodeResult]]:
    """Results as they arrive, each with the number of episodes that are left."""
    if not missing:
        return
    workers = min(len(missing), len(os.sched_getaffinity(0)))
    with worker_processes(workers, _load_model) as pool:
        running = [pool.submit(_run_episode, solver, index, protocol) for solver, index in missing]
        for done, future in enumerate(as_completed(running), start=1):
            yield len(missing) - done, future.result()


_model: LoadedModel
"""The model of a worker process."""


def _load_model() -> None:
    """Load the model of a worker process, on one thread: there is a worker for each core."""
    global _model
    torch.set_num_threads(1)
    _model = load_like_server(MODEL_FOLDER, threads=1)


def _run_episode(solver: SolverConfig, index: int, protocol: str) -> EpisodeResult:
    planner = InProcessPlanner(_model, solver)
    start = time.perf_counter()
    tasks = sample_episodes(TWO_ROOM, protocol, index + 1, SEED)
    outcome = run_episode(planner, tasks, index, seed=SEED)
    return EpisodeResult(
        solver=asdict(solver),
        episode=index,
        reached=outcome.reached,
        candidates=tuple(planner.candidates),
        seconds=time.perf_counter() - start,
    )


class InProcessPlanner:
    """Plans for a robot without a server; see `lewm_models.evaluation.episode.Planner`.

    Attributes:
        candidates: the number of candidates of each plan so far.
    """

    def __init__(self, model: LoadedModel, solver: SolverConfig) -> None:
        self._model = model
        self._solver = solver
        self.candidates: list[int] = []

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """The actions that a server would return for one frame, and the seconds of the plan."""
        start = time.perf_counter()
        frames = torch.stack([torch.from_numpy(frame), torch.from_numpy(goal_frame)])
        size = self._model.card.config.image_size
        latent, goal = self._model.backend.encode(resize(frames, size))
        search = SearchLoop(
            self._model, self._solver, latents=latent.unsqueeze(0), goal=goal, seed=seed
        )
        actions = self._model.to_rows(search.run().actions)
        self.candidates.append(search.solver.scored_candidates)
        return actions, time.perf_counter() - start


if __name__ == "__main__":
    run_as_program(measure, __doc__)
