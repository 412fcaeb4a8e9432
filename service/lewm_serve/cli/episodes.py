"""Episodes as a person follows them: a bar while they run, a table when they are done."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lewm_models.evaluation.episode import Outcome, Planner, run_episodes
from lewm_models.evaluation.protocol import Episodes
from lewm_models.evaluation.report import EvaluationReport


def run_with_progress(
    make_planner: Callable[[], Planner], episodes: Episodes, *, seed: int, robots: int
) -> list[Outcome]:
    """`run_episodes` with a bar on standard error."""
    torch.set_num_threads(1)  # what is simulated here is small, and the cores are the server's
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    reached = 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("0 reached", total=len(episodes))

        def show(outcome: Outcome) -> None:
            nonlocal reached
            reached += outcome.reached
            progress.update(task, advance=1, description=f"{reached} reached")

        return run_episodes(make_planner, episodes, seed=seed, robots=robots, report=show)


def table(title: str, report: EvaluationReport) -> Table:
    """The figures, a line each."""
    low, high = report.interval_95
    p50, p99 = report.plan_latency_p50_ms, report.plan_latency_p99_ms
    rows = Table(title=title, title_justify="left", show_header=False)
    rows.add_row("reached", f"{report.successes} of {report.episodes}")
    rows.add_row("success", f"{report.success_rate:.1%} (95 %: {low:.1%} to {high:.1%})")
    rows.add_row("plan latency", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms ({report.plans} plans)")
    if report.steps_mean is not None:
        steps = f"mean {report.steps_mean:.1f}, median {report.steps_median:g}"
        rows.add_row("steps to the goal", steps)
    return rows
