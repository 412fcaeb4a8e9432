"""The parts of `lewm pilot`, one after another: inspect, train, judge, disturb, measure, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from lewm_models import checkpoint
from lewm_models.checkpoint import Checkpoint
from lewm_models.judging.judge import Judgement, judge
from lewm_models.judging.robustness import Disturbance, disturb
from lewm_models.recordings.recording import Recording, open_recording
from lewm_models.training.prepared import FILE
from lewm_models.training.run import MODEL_FOLDER, check_output, read_log, train
from lewm_models.training.settings import Choices, recording_run
from lewm_models.training.trainer import TrainingMetrics
from lewm_serve.cli.judge import default_plans
from lewm_serve.cli.pilot_business import Figure, Kpi, business_figures
from lewm_serve.cli.pilot_checks import (
    VERDICT_WORDS,
    Check,
    Threshold,
    Verdict,
    data_checks,
    model_checks,
    verdict_of,
)
from lewm_serve.cli.pilot_data import RecordedData, inspect_recording, sample_frames
from lewm_serve.cli.pilot_machine import Machine, measure_machine
from lewm_serve.cli.recorded_data import DataChoice, open_data
from lewm_serve.cli.search import DefaultSearch
from lewm_serve.cli.train import (
    ProgressBar,
    describe,
    describe_run,
    name_of,
    say,
    training_progress,
)
from lewm_serve.cli.training_picture import draw_training

DEFAULT_RATE_HZ = 2.0
MAX_TIMED_PLANS = 50
MAX_DISTURBED_PLANS = 30
FRAMES = 16
"""Recorded frames that the server is measured with."""

TRAINING_FOLDER, CONTACT_SHEET = "training", "contact.png"

Bars = Callable[[str, int, int], None]
"""Shows what is being done, and how much of it is done and there is in all."""


@dataclass(frozen=True)
class PilotOptions:
    """What a person asks for; see `lewm pilot --help`."""

    data: DataChoice
    model: Path | None
    rate_hz: float | None
    thresholds: dict[str, Threshold]
    kpi: Kpi | None
    output: Path
    plans: int | None
    device: torch.device


@dataclass(frozen=True)
class Pilot:
    """Everything that a report shows. What was not reached is None or empty.

    Attributes:
        data: the recording.
        checks: all checks that were made.
        folder: the model.
        model: the same, loaded.
        training: the log, if the model was trained here.
        judgement: on held-out episodes.
        disturbances: of the camera.
        machine: costs on this machine.
        business: figures of the person's own numbers.
        notes: what limits the report, one sentence each.
    """

    data: RecordedData
    checks: tuple[Check, ...]
    folder: Path | None = None
    model: Checkpoint | None = None
    training: tuple[TrainingMetrics, ...] = ()
    judgement: Judgement | None = None
    disturbances: tuple[Disturbance, ...] = ()
    machine: Machine | None = None
    business: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst result of all checks."""
        return verdict_of(self.checks)

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        model = self.model
        return {
            "verdict": self.verdict,
            "checks": [check.to_json() for check in self.checks],
            "notes": list(self.notes),
            "data": self.data.to_json(),
            "model": None
            if model is None
            else {
                "name": model.card.name,
                "version": model.version,
                "folder": str(self.folder),
                "trained_here": bool(self.training),
                "provenance": model.card.provenance,
            },
            "training": [report.to_json() for report in self.training],
            "judgement": None if self.judgement is None else self.judgement.to_json(),
            "robustness": [asdict(found) for found in self.disturbances],
            "machine": None if self.machine is None else self.machine.to_json(),
            "business": [figure.to_json() for figure in self.business],
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "lewm_serve": version("lewm-serve"),
        }


def run_pilot(options: PilotOptions) -> Verdict:
    """Make the report, write it, and print the verdict with its reasons.

    Raises:
        ValueError: the data, the model or an option cannot be used.
        OSError: a file cannot be read or written.
        LocalServerError: the server did not start.
        PlannerError: the server made no plan.
    """
    from lewm_serve.cli.pilot_report import write_report

    if (options.data.path / FILE).is_file():
        raise ValueError(f"--data: expected a recording, {options.data.path} holds prepared data")
    options.output.mkdir(parents=True, exist_ok=True)
    with open_recording(options.data.path) as recording:
        data = inspect_recording(recording, options.data, options.output / CONTACT_SHEET)
        checks = data_checks(options.thresholds, data)
        if verdict_of(checks) == "no-go":
            note = "The recording failed, so no model was trained, judged or measured."
            pilot = Pilot(data, tuple(checks), notes=(note,))
        else:
            pilot = _with_model(options, recording, data, checks)
    write_report(pilot, options.output)
    _print(pilot, options.output)
    return pilot.verdict


def _with_model(
    options: PilotOptions, recording: Recording, data: RecordedData, checks: list[Check]
) -> Pilot:
    folder = options.model
    with training_progress(Console(stderr=True)) as progress:
        bars: dict[str, ProgressBar] = {}

        def show(what: str, done: int, total: int) -> None:
            bars.setdefault(what, ProgressBar(progress, what))(done, total)

        if folder is None:
            folder = _train(options, recording, show, lambda line: say(progress, line))
            training = tuple(read_log(folder.parent))
        else:
            training = ()
        loaded = checkpoint.load(folder)
        loaded = replace(loaded, model=loaded.model.to(options.device))
        plans = options.plans or default_plans(loaded.card.solver)
        plan = DefaultSearch(loaded, options.device)
        with open_data(options.data, loaded.card) as opened:
            judgement = judge(
                loaded, opened.pieces, space=opened.space, plan=plan, plans=plans, progress=show
            )
            disturbances = disturb(
                loaded,
                opened.pieces,
                plan=plan,
                plans=min(plans, MAX_DISTURBED_PLANS),
                progress=lambda done, total: show("disturbing the camera", done, total),
            )
            was_trained_on = opened.was_trained_on
        machine = measure_machine(
            folder,
            loaded.card,
            sample_frames(recording, data, FRAMES),
            rate_hz=options.rate_hz or _rate(recording, loaded),
            plans=min(options.plans or MAX_TIMED_PLANS, MAX_TIMED_PLANS),
            progress=lambda done, total: show("timing solvers", done, total),
        )
    checks = [
        *checks,
        *model_checks(
            options.thresholds, judgement, disturbances, horizon=loaded.card.solver.horizon
        ),
        Check(options.thresholds["latency"], machine.recommended.p99_s * machine.rate_hz),
    ]
    alarms = [m.estimate for m in judgement.measures if m.name == "false_alarms_any"]
    notes = [*judgement.notes]
    if was_trained_on is None:
        notes.append(
            "The card does not say whether the model was trained on this recording: if it was, on "
            "these episodes too, the measures are too good."
        )
    notes += machine.notes
    return Pilot(
        data=data,
        checks=tuple(checks),
        folder=folder,
        model=loaded,
        training=training,
        judgement=judgement,
        disturbances=tuple(disturbances),
        machine=machine,
        business=()
        if options.kpi is None
        else tuple(business_figures(options.kpi, machine, alarms[0] if alarms else None)),
        notes=tuple(notes),
    )


def _train(
    options: PilotOptions, recording: Recording, show: Bars, message: Callable[[str], None]
) -> Path:
    """Train a model with the settings that `lewm data inspect` proposes."""
    choice, output = options.data, options.output / TRAINING_FOLDER
    run = recording_run(
        recording,
        Choices(),
        name=name_of(recording.path),
        camera=choice.camera,
        action=choice.action,
        state=choice.state,
    )
    check_output(output)
    for line in describe_run(run):
        message(line)

    def report(metrics: TrainingMetrics) -> None:
        message(describe(metrics))
        draw_training(read_log(output), output / "training.png")

    train(
        run,
        output,
        device=options.device,
        on_progress=lambda done, total: show("preparing frames", done, total),
        on_message=message,
        on_metrics=report,
        on_step=lambda done, total: show("training", done, total),
    )
    return output / MODEL_FOLDER


def _rate(recording: Recording, loaded: Checkpoint) -> float:
    """One plan per action block, if the recording says how long a step takes."""
    rate_hz = recording.contents.rate_hz
    return DEFAULT_RATE_HZ if rate_hz is None else rate_hz / loaded.card.config.action_block


def _print(pilot: Pilot, output: Path) -> None:
    typer.echo(f"verdict: {VERDICT_WORDS[pilot.verdict]}")
    for check in pilot.checks:
        if check.verdict != "go":
            typer.echo(f"  {check.describe()}")
    typer.echo(f"report: {output / 'report.html'}")
