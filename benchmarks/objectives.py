"""Success against candidates a plan, with both objectives, in Two-Room.

The embedded model drives the same episodes of both protocols with searches of 9,000 to 20
candidates. A search by the distance starts at the proposal; with one candidate, the proposal alone
is the plan. Results are kept as `benchmarks.solvers` keeps them, so a run that was interrupted
continues. The picture goes to `docs/distance/success.png`.

Also measured: what it takes to score 48 candidates by the distance. One hour.

    python -m benchmarks objectives
    python -m benchmarks.objectives [--quick]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.flops import PAPER_CEM
from benchmarks.in_process import load_like_server
from benchmarks.latent_health.pictures import GREY, INK, LIGHT, Color, Page
from benchmarks.report import Measurement, Report, RunOptions, at_least, at_most, run_as_program
from benchmarks.results import ROOT
from benchmarks.solvers import (
    MODEL_FOLDER,
    EpisodeRecord,
    EpisodeResult,
    mean_candidates,
    run_all_episodes,
    solver_key,
)
from lewm_models.card import SolverConfig, read_card
from lewm_models.checkpoint import CARD_FILE
from lewm_serve.objectives.distance import DistanceObjective

PICTURE = ROOT / "docs" / "distance" / "success.png"
EPISODES, QUICK_EPISODES = 200, 2
PROTOCOLS = ("paper", "cross-room")

SCORED_CANDIDATES, SCORING_RUNS = 48, 200
MAX_SCORING_MS = 1.0
MIN_SUCCESS = 99.0
"""Of the card's own search, in per cent."""

COLORS: dict[str, Color] = {"latent": (217, 119, 6), "distance": (37, 99, 235)}


def icem(samples: int, iterations: int, elites: int, objective: str) -> SolverConfig:
    return SolverConfig(
        "icem", samples=samples, iterations=iterations, elites=elites, objective=objective
    )


def solvers(objective: str, *, quick: bool) -> list[SolverConfig]:
    """Searches of 9,000, 450, 100, 50, 28 and 20 candidates; by the distance also of one."""
    searches = [
        SolverConfig(**{**vars(PAPER_CEM), "objective": objective}),
        icem(123, 6, 12, objective),
        icem(56, 2, 5, objective),
        icem(28, 2, 5, objective),
        icem(16, 2, 4, objective),  # the card's
        icem(11, 2, 4, objective),
    ]
    if objective == "distance":
        searches.append(icem(1, 1, 1, objective))
    return searches[1:] if quick else searches


def measure(options: RunOptions) -> Report:
    """See the module."""
    count = QUICK_EPISODES if options.quick else EPISODES
    points: list[dict[str, Any]] = []
    for protocol in PROTOCOLS:
        searches = [
            search
            for objective in COLORS
            for search in reversed(solvers(objective, quick=options.quick))
        ]
        results = run_all_episodes(
            EpisodeRecord.for_weights(MODEL_FOLDER, options.state_folder, protocol),
            searches,
            count,
            options=options,
            protocol=protocol,
        )
        points += [
            _point(protocol, search, [results[solver_key(search), i] for i in range(count)])
            for search in searches
        ]
    if not options.quick:
        draw(points, PICTURE)
    default = read_card(MODEL_FOLDER / CARD_FILE).solver
    of_default = [point for point in points if point["settings"] == asdict(default)]
    return Report(
        (
            *(
                at_least(
                    f"{point['protocol']}: success by the distance",
                    point["success"],
                    "%",
                    bound=MIN_SUCCESS,
                    note=f"{point['candidates']:.0f} candidates, {count} episodes",
                )
                for point in of_default
            ),
            at_most(
                f"scoring {SCORED_CANDIDATES} candidates by the distance",
                1000 * scoring_s(),
                "ms",
                bound=MAX_SCORING_MS,
            ),
            Measurement(
                f"scoring {SCORED_CANDIDATES} candidates by the latent",
                1000 * scoring_s("latent"),
                "ms",
            ),
        ),
        {"episodes": count, "points": points},
    )


def _point(protocol: str, search: SolverConfig, results: Sequence[EpisodeResult]) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "objective": search.objective,
        "solver": f"{search.name} {search.samples} × {search.iterations}",
        "settings": asdict(search),
        "candidates": mean_candidates(results),
        "success": 100 * sum(result.reached for result in results) / len(results),
    }


def scoring_s(objective: str = "distance") -> float:
    """The shortest time to score candidates of five steps, in seconds."""
    model = load_like_server(MODEL_FOLDER, threads=1)
    score = model.objectives[objective]
    assert objective == "latent" or isinstance(score, DistanceObjective)
    horizon, width = model.card.solver.horizon, model.card.config.latent_dim
    predicted, goal = torch.randn(SCORED_CANDIDATES, horizon, width), torch.randn(width)
    durations = []
    for _ in range(SCORING_RUNS):
        start = time.perf_counter()
        score(predicted, goal)
        durations.append(time.perf_counter() - start)
    return min(durations)


# All lengths of the picture are in points.
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP, BOTTOM = 300, 190, 52, 40, 46, 52
TICKS = (1, 20, 50, 100, 450, 9000)


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for each protocol: success against candidates, on a logarithmic axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = LEFT + len(PROTOCOLS) * (PANEL_WIDTH + GAP)
    page = Page(width, TOP + PANEL_HEIGHT + BOTTOM)
    for number, protocol in enumerate(PROTOCOLS):
        left = LEFT + number * (PANEL_WIDTH + GAP)
        _draw_panel(page, left, protocol, [p for p in points if p["protocol"] == protocol])
    page.save(path)


def _draw_panel(page: Page, left: float, title: str, points: Sequence[dict[str, Any]]) -> None:
    def x(candidates: float) -> float:
        share = torch.tensor(candidates).log() / torch.tensor(float(TICKS[-1])).log()
        return left + PANEL_WIDTH * float(share)

    def y(success: float) -> float:
        return TOP + PANEL_HEIGHT * (1 - success / 100)

    page.text(left, TOP - 22, title, size=12)
    for success in range(0, 101, 20):
        page.line(left, y(success), left + PANEL_WIDTH, y(success), color=LIGHT, width=0.8)
        page.text(left - 6, y(success), f"{success} %", color=GREY, size=9, anchor="rm")
    for tick in TICKS:
        page.text(x(tick), TOP + PANEL_HEIGHT + 12, f"{tick:,}", color=GREY, size=9, anchor="mm")
    middle = left + PANEL_WIDTH / 2
    page.text(middle, TOP + PANEL_HEIGHT + 32, "candidates a plan", size=10, anchor="mm")
    for row, (objective, color) in enumerate(COLORS.items()):
        line = sorted(
            (p["candidates"], p["success"]) for p in points if p["objective"] == objective
        )
        for (x0, y0), (x1, y1) in pairwise(line):
            page.line(x(x0), y(y0), x(x1), y(y1), color=color, width=1.6)
        for candidates, success in line:
            page.dot(x(candidates), y(success), radius=3.2, color=color)
        label_y = TOP + PANEL_HEIGHT - 30 + 15 * row
        page.dot(left + PANEL_WIDTH - 78, label_y, radius=3.2, color=color)
        page.text(left + PANEL_WIDTH - 70, label_y, objective, color=INK, size=10)


if __name__ == "__main__":
    run_as_program(measure, __doc__)
