"""The default solver of the embedded model against the paper's CEM, on the same episodes.

Closed-loop Two-Room episodes, protocol `paper`, from pixels; both solvers get the same episodes and
the same seeds. In process, without a server, an episode a core at a time. Each result is written
down as it comes, and a run that was cut off goes on where it was.
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

from benchmarks.paired import Pairs
from benchmarks.report import Figure, Report, at_least, at_most
from benchmarks.run import Run
from benchmarks.search import Search
from benchmarks.served import load_served
from benchmarks.workers import worker_processes
from lewm_models import checkpoint
from lewm_models.card import SolverDefaults, read_card
from lewm_models.checkpoint import PRETRAINED
from lewm_models.evaluation.episode import Actions, Frame, run_episode
from lewm_models.evaluation.protocol import paper_episodes
from lewm_models.preprocessing import resize
from lewm_serve.registry.registry import LoadedModel

PAPER_CEM = SolverDefaults("cem", samples=300, iterations=30, elites=30, horizon=5)
EPISODES, QUICK_EPISODES = 500, 20
SEED = 0
MARGIN, SHARE = -2.0, 0.05


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode went; ``candidates`` are those of each plan."""

    solver: dict[str, Any]
    episode: int
    reached: bool
    candidates: tuple[int, ...]
    seconds: float


def measure(run: Run) -> Report:
    """See the module."""
    folder = PRETRAINED / "two-room"
    own = read_card(folder / checkpoint.CARD).solver
    count = QUICK_EPISODES if run.quick else EPISODES
    record = Record.of(folder, run.folder)
    results = compare(run, record, (own, PAPER_CEM), count)
    ours, papers = (
        [results[name(solver), index] for index in range(count)] for solver in (own, PAPER_CEM)
    )
    pairs = Pairs.of([result.reached for result in ours], [result.reached for result in papers])
    low, high = pairs.interval()
    each, each_papers = candidates_a_plan(ours), candidates_a_plan(papers)
    rates = {
        solver.name: sum(result.reached for result in part) / count
        for solver, part in ((own, ours), (PAPER_CEM, papers))
    }
    counted = f"{pairs.first} and {pairs.second} episodes only one of them reached"
    return Report(
        (
            at_least(
                f"{own.name} against CEM 300 × 30, success: the interval's lower end",
                100 * low,
                "points",
                MARGIN,
                f"{count} episodes, difference {100 * pairs.difference:+.1f} points "
                f"(95 %: {100 * low:+.1f} to {100 * high:+.1f})",
            ),
            at_most(
                f"{own.name} against CEM 300 × 30: candidates a plan",
                each / each_papers,
                "of CEM's",
                SHARE,
                f"{each:.0f} against {each_papers:.0f}",
            ),
            *(
                Figure(f"{solver} reaches", 100 * rate, "% of the goals", note=counted)
                for solver, rate in rates.items()
            ),
        ),
        {
            "episodes": count,
            "seed": SEED,
            "solvers": [asdict(own), asdict(PAPER_CEM)],
            "pairs": asdict(pairs),
            "interval_points": [100 * low, 100 * high],
            "plan_s": {
                "own": statistics.median(r.seconds / len(r.candidates) for r in ours),
                "cem": statistics.median(r.seconds / len(r.candidates) for r in papers),
            },
        },
    )


def candidates_a_plan(results: Sequence[EpisodeResult]) -> float:
    """The mean over all plans."""
    return statistics.mean(count for result in results for count in result.candidates)


class Record:
    """Results by solver and episode, a line of JSON each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, model: Path, folder: Path) -> Record:
        """The record of one model's weights: another default solver on its card changes nothing."""
        weights = hashlib.sha256((model / checkpoint.WEIGHTS).read_bytes()).hexdigest()
        return cls(folder / f"solvers-{weights[:16]}.jsonl")

    def read(self) -> dict[tuple[str, int], EpisodeResult]:
        """What is there; a line that was cut off is left out."""
        found = {}
        for line in self._lines():
            try:
                values = json.loads(line)
            except ValueError:
                continue
            values["candidates"] = tuple(values["candidates"])
            result = EpisodeResult(**values)
            found[name(SolverDefaults(**result.solver)), result.episode] = result
        return found

    def _lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def add(self, result: EpisodeResult) -> None:
        """Write one down, on a line of its own even after one that was cut off."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(asdict(result)).encode() + b"\n")


def name(solver: SolverDefaults) -> str:
    """The settings in one string: results of other settings are other results."""
    return json.dumps(asdict(solver))


def compare(
    run: Run, record: Record, solvers: Sequence[SolverDefaults], count: int
) -> dict[tuple[str, int], EpisodeResult]:
    """All results, those that are missing after running them."""
    results = record.read()
    missing = [
        (solver, index)
        for index in range(count)
        for solver in solvers
        if (name(solver), index) not in results
    ]
    for left, result in _run_missing(missing):
        record.add(result)
        results[name(SolverDefaults(**result.solver)), result.episode] = result
        run.say(f"{left} of {len(solvers) * count} episodes left")
    return results


def _run_missing(
    missing: Sequence[tuple[SolverDefaults, int]],
) -> Iterator[tuple[int, EpisodeResult]]:
    """Results as they come, each with how many are left."""
    if not missing:
        return
    workers = min(len(missing), len(os.sched_getaffinity(0)))
    with worker_processes(workers, _prepare) as pool:
        running = [pool.submit(_run_one, solver, index) for solver, index in missing]
        for done, future in enumerate(as_completed(running), start=1):
            yield len(missing) - done, future.result()


_model: LoadedModel


def _prepare() -> None:
    """Load the model in a worker process, on one thread: there is a worker for each core."""
    global _model
    torch.set_num_threads(1)
    _model = load_served(PRETRAINED / "two-room", threads=1)


def _run_one(solver: SolverDefaults, index: int) -> EpisodeResult:
    planner = InProcess(_model, solver)
    start = time.perf_counter()
    outcome = run_episode(planner, paper_episodes(index + 1, SEED), index, SEED)
    seconds = time.perf_counter() - start
    return EpisodeResult(asdict(solver), index, outcome.reached, tuple(planner.candidates), seconds)


class InProcess:
    """A robot's planner without a server; see `lewm_models.evaluation.episode.Planner`."""

    def __init__(self, model: LoadedModel, solver: SolverDefaults) -> None:
        self._model = model
        self._solver = solver
        self.candidates: list[int] = []

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """Plan as the server would, from one frame."""
        start = time.perf_counter()
        frames = torch.stack([torch.from_numpy(frame), torch.from_numpy(goal_frame)])
        size = self._model.card.config.image_size
        latent, goal = self._model.backend.encode(resize(frames, size))
        search = Search(self._model, self._solver, latent, goal, seed)
        actions = self._model.to_rows(search.run().actions)
        self.candidates.append(search.solver.candidates)
        return actions, time.perf_counter() - start
