"""The work of `lewm models import`: the card, frames from a recording, the choice of the solver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.card import CardError, ModelCard, SolverConfig, read_json
from lewm_models.importing.action_statistics import action_fields, summarise_for_import
from lewm_models.importing.importer import PublicCheckpoint
from lewm_models.lewm import LeWM
from lewm_models.preprocessing import CROPS
from lewm_models.recordings.recording import Recording, open_recording
from lewm_models.recordings.summary import Summary
from lewm_serve.backends.comparison import synthetic_frames
from lewm_serve.cli.image_files import MAX_FILE_PIXELS, read_frames
from lewm_serve.cli.options import Crop, SolverChoice
from lewm_serve.cli.solver_comparison import (
    MAX_PAIRS,
    Comparison,
    can_be_compared,
    candidates,
    compare_solvers,
    icem_within,
)
from lewm_serve.cli.train import training_device
from lewm_serve.errors import InvalidRequest
from lewm_serve.frames.decode import frame_from_pixels
from lewm_serve.registry.loading import check_solver
from lewm_serve.registry.registry import ModelLoadError


@dataclass(frozen=True)
class ImportOptions:
    """The options of the command. ``camera`` and ``action`` choose columns of ``data``."""

    source: Path
    destination: Path
    card: Path | None
    data: Path | None
    camera: str | None
    action: str | None
    crop: Crop | None
    frames: tuple[Path, ...]
    solver: SolverChoice


@dataclass(frozen=True)
class Imported:
    """A model folder that was written.

    Attributes:
        card: its card.
        version: its version.
        frames: what the frames were that solvers were compared on, for people.
        comparison: the comparison of solvers; None if there was none.
    """

    card: ModelCard
    version: str
    frames: str
    comparison: Comparison | None


def import_model(options: ImportOptions, console: Console) -> Imported:
    """Import a checkpoint and write its model folder.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the checkpoint, the card or the recording is wrong; the message says what.
    """
    if options.card is None and options.data is None:
        raise CardError(
            "a public checkpoint contains neither the statistics nor the bounds of actions; with a "
            "recording of the robot, this command computes them: lewm models import "
            f"{options.source} {options.destination} --data RECORDING; else give them in a file: "
            "--card FILE.json (see docs/models.md)"
        )
    fields = {} if options.card is None else read_json(options.card)
    if options.crop is not None:
        fields["crop"] = options.crop.value
    public = PublicCheckpoint.read(options.source)
    with ExitStack() as stack:
        progress = stack.enter_context(
            Progress(console=console, transient=True, disable=not console.is_terminal)
        )
        recording = summary = None
        if options.data is not None:
            recording = stack.enter_context(open_recording(options.data))
            summary = summarise_for_import(
                recording,
                camera=options.camera,
                action=options.action,
                progress=_report(progress, "reading actions"),
            )
            fields = _with_recording(fields, summary, public.block_width, options.destination)
        model, card = public.with_card(fields)
        _check_solver(card)
        frames = read_frames(options.frames, card)
        pairs, compared_frames = None, "synthetic frames"
        if frames is not None:
            compared_frames = "the given frames"
            pairs = torch.stack([frames[:-1], frames[1:]], dim=1)
        elif recording is not None and summary is not None:
            compared_frames = "frames of the recording"
            pairs = _recorded_pairs(recording, summary, card)
            frames = pairs.flatten(0, 1)
        else:
            provenance = {**card.provenance, "precision_judged_on": "synthetic frames"}
            card = replace(card, provenance=provenance)
        card, comparison = _with_solver(
            model, card, pairs, options.solver, _report(progress, "comparing solvers")
        )
    version = checkpoint.save(options.destination, model, card, frames=frames)
    return Imported(card, version, compared_frames, comparison)


def _with_recording(
    fields: dict[str, Any], summary: Summary, block_width: int, destination: Path
) -> dict[str, Any]:
    """The card's fields, and those from the recording that the card does not give."""
    [camera] = summary.cameras
    height, width = camera.shape[:2]
    if height != width and fields.get("crop") is None:
        raise CardError(
            f"--crop: the frames of {summary.path} are {width} × {height} pixels, not square; say "
            f"how they became square when the model was trained: {' or '.join(CROPS)}"
        )
    from_recording = action_fields(summary, block_width)
    provenance = {**from_recording["provenance"], **fields.get("provenance", {})}
    name = {"name": destination.resolve().name}
    given = {name: value for name, value in fields.items() if value is not None}
    return {**name, **from_recording, **given, "provenance": provenance}


def _recorded_pairs(recording: Recording, summary: Summary, card: ModelCard) -> Tensor:
    """Frames of starts and goals (P, 2, size, size, 3), evenly over the recording.

    A goal is as far from its start as a plan reaches, or at the end of the episode.
    """
    assert summary.usable is not None
    ranges = summary.usable.ranges
    steps = card.solver.horizon * card.config.action_block
    pairs = []
    for index in range(MAX_PAIRS):
        chosen = ranges[index * len(ranges) // MAX_PAIRS]
        # Several pairs of one range begin at different steps.
        free = max(0, chosen.steps - 1 - steps)
        start = chosen.first + free * index // MAX_PAIRS
        goal = min(start + steps, chosen.stop - 1)
        pair = [
            _frame(recording, summary.cameras[0].name, chosen.episode, step, card)
            for step in (start, goal)
        ]
        pairs.append(torch.stack(pair))
    return torch.stack(pairs)


def _frame(recording: Recording, camera: str, episode: int, step: int, card: ModelCard) -> Tensor:
    [pixels] = recording.read_frames(camera, episode, first=step, count=1)
    field = f"{recording.path}: episode {episode}, step {step}"
    try:
        return frame_from_pixels(pixels, card, max_pixels=MAX_FILE_PIXELS, field=field)
    except InvalidRequest as error:
        raise ValueError(error.detail) from error


def _with_solver(
    model: LeWM,
    card: ModelCard,
    pairs: Tensor | None,
    choice: SolverChoice,
    progress: Callable[[int, int], None],
) -> tuple[ModelCard, Comparison | None]:
    """The card with the chosen solver, and the comparison, if there was one."""
    if choice is SolverChoice.KEEP:
        return card, None
    if choice is SolverChoice.CEM and card.solver.name != "cem":
        card = replace(card, solver=SolverConfig(horizon=card.solver.horizon))
    if not can_be_compared(card.solver):
        if choice is SolverChoice.ICEM and card.solver.name != "icem":
            usual = SolverConfig(horizon=card.solver.horizon)
            icem = icem_within(candidates(usual), horizon=card.solver.horizon)
            card = replace(card, solver=icem)
        return card, None
    if pairs is None:
        frames = synthetic_frames(card.config.image_size)
        pairs = torch.stack([frames[:-1], frames[1:]], dim=1)
    comparison = compare_solvers(
        model, card, pairs, device=training_device("auto"), progress=progress
    )
    chosen = {
        SolverChoice.AUTO: comparison.better,
        SolverChoice.CEM: comparison.usual,
        SolverChoice.ICEM: comparison.icem,
    }[choice]
    return replace(card, solver=chosen.settings), comparison


def _check_solver(card: ModelCard) -> None:
    try:
        check_solver(card)
    except ModelLoadError as error:
        raise ValueError(str(error)) from error


def _report(progress: Progress, description: str) -> Callable[[int, int], None]:
    """A function that shows how much is done."""
    task = None

    def show(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            task = progress.add_task(description, total=total)
        progress.update(task, completed=done, total=total)

    return show
