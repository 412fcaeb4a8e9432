"""`lewm evaluate MODEL --data`: judge a model on recorded episodes, without a simulator."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lewm_models import checkpoint
from lewm_models.card import SolverConfig
from lewm_models.judging.judge import Judgement, judge
from lewm_models.judging.measure import Measure
from lewm_serve.cli.closed_loop import check_writable
from lewm_serve.cli.messages import WIDTH_WITHOUT_TERMINAL
from lewm_serve.cli.recorded_data import DataChoice, OpenedData, open_data
from lewm_serve.cli.search import DefaultSearch
from lewm_serve.cli.train import ProgressBar, training_device, training_progress
from lewm_serve.solvers import SOLVERS

MIN_PLANS, MAX_PLANS = 20, 100
CANDIDATE_STEPS = 1_000_000
"""By default so many plans are made that they have about this many candidates × blocks in all,
within the numbers above."""

SECTIONS = {
    "prediction_error": "prediction error (blocks)",
    "action_sensitivity": "effect of actions (blocks)",
    "cost_range": "effect of actions (blocks)",
    "recovery": "recovery (blocks ahead)",
    "rank_correlation": "rank correlation",
    "straightness": "latents",
    "sigreg": "latents",
    "effective_rank": "latents",
    "probe": "states",
    "surprise": "surprise",
    "false_alarms": "false alarms",
}
"""The headings of the table by the beginning of a measure's name."""


@dataclass(frozen=True)
class JudgeOptions:
    """What a person asks for."""

    folder: Path
    data: DataChoice
    plans: int | None
    device: str
    output: Path | None


def judge_model(options: JudgeOptions) -> None:
    """Judge a model, print a table, and write the judgement as JSON if a file is given.

    Raises:
        ValueError: the data cannot be used; the message names the file or the option.
        OSError: a file cannot be read or written.
    """
    if options.output is not None:
        check_writable(options.output)
    loaded = checkpoint.load(options.folder)
    device = training_device(options.device)
    plans = options.plans or default_plans(loaded.card.solver)
    loaded = replace(loaded, model=loaded.model.to(device))
    with (
        open_data(options.data, loaded.card) as data,
        training_progress(Console(stderr=True)) as progress,
    ):
        bars: dict[str, ProgressBar] = {}

        def show(what: str, done: int, total: int) -> None:
            bars.setdefault(what, ProgressBar(progress, what))(done, total)

        judgement = judge(
            loaded,
            data.pieces,
            space=data.space,
            plan=DefaultSearch(loaded, device),
            plans=plans,
            progress=show,
        )
    notes = [*_notes(data), *judgement.notes]
    judgement = replace(judgement, notes=tuple(notes))
    print_judgement(judgement, data)
    if options.output is not None:
        about = {"data": dict(data.described), "trained_on_data": data.was_trained_on}
        content = json.dumps({**about, **judgement.to_json()}, indent=2)
        options.output.write_text(content + "\n")


def default_plans(solver: SolverConfig) -> int:
    """How many plans recovery makes for each distance of goals."""
    candidates = sum(SOLVERS[solver.name].candidates_per_ask(solver))
    return max(MIN_PLANS, min(MAX_PLANS, CANDIDATE_STEPS // (candidates * solver.horizon)))


def _notes(data: OpenedData) -> Iterator[str]:
    if data.was_trained_on:
        yield "The model was trained on other episodes of this recording."
    elif data.was_trained_on is None:
        yield (
            "The card does not say whether the model was trained on these data: if it was, on "
            "these episodes too, the measures are too good."
        )


def print_judgement(judgement: Judgement, data: OpenedData) -> None:
    """The measures as a table, with a heading for each kind."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    console.print(
        f"{judgement.model} {judgement.version}, judged on {judgement.held_out_frames:,} frames of "
        f"{judgement.held_out_episodes:,} held-out episodes of {data.described['path']}",
        markup=False,
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("measure", "value", "95 % interval", "good", "baselines", "unit", "samples"):
        is_number = column in ("value", "samples")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    shown = ""
    for measure in judgement.measures:
        beginning = section_of(measure.name)
        if SECTIONS[beginning] != shown:
            shown = SECTIONS[beginning]
            table.add_row(Text(shown, style="bold"))
        table.add_row(*map(Text, _row(measure, beginning)))
    console.print(table)
    for note in judgement.notes:
        console.print(f"– {note}", markup=False, highlight=False)


def section_of(name: str) -> str:
    """The key in `SECTIONS` of a measure."""
    return next(beginning for beginning in SECTIONS if name.startswith(beginning))


def _row(measure: Measure, beginning: str) -> tuple[str, ...]:
    label = (measure.name.removeprefix(beginning) or measure.name).strip("_").replace("_", " ")
    interval = measure.estimate.interval_95
    return (
        f"  {label}",
        _number(measure.estimate.value),
        "–" if interval is None else " to ".join(map(_number, interval)),
        {"lower": "low", "higher": "high", "neither": "–"}[measure.better],
        ", ".join(f"{name} {_number(found.value)}" for name, found in measure.baselines.items()),
        measure.unit,
        f"{measure.samples:,}",
    )


def _number(value: float) -> str:
    return f"{value:.3g}"
