"""`lewm data`: what recordings of robots hold."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from lewm_serve.cli.options import ActionOption, CameraOption, StateOption, one_name

if TYPE_CHECKING:
    from lewm_models.recordings.summary import Proposals, Series, Summary
    from lewm_models.recordings.usable import UsableEpisodes

MAX_NAMED_EPISODES = 5

app = typer.Typer(name="data", no_args_is_help=True, help="Recordings of robots.")


@app.callback()
def data() -> None:
    """Recordings of robots."""


@app.command("inspect")
def inspect(
    path: Annotated[Path, typer.Argument(help="file or folder of the recording")],
    camera: CameraOption = None,
    action: ActionOption = None,
    state: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="the contact sheet, a PNG; default: NAME-contact.png here, NAME of the recording"
        ),
    ] = None,
) -> None:
    """Print what a recording holds, what is wrong with it, and which settings fit it.

    The exit status is 1 if training can use nothing of it.
    """
    from lewm_models.recordings.images import CONTACT_SHEET_END
    from lewm_models.recordings.recording import RecordingError, open_recording
    from lewm_models.recordings.summary import summarise
    from lewm_serve.cli.contact_sheet import draw_contact_sheet

    sheet: Path | None = output or Path(f"{path.resolve().name}{CONTACT_SHEET_END}")
    console = Console(stderr=True)
    try:
        camera_name = one_name(camera, "--camera")
        action_name = one_name(action, "--action")
        state_name = one_name(state, "--state")
        with (
            open_recording(path) as recording,
            Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            reading = progress.add_task("reading actions and states", total=None)
            summary = summarise(
                recording,
                camera=camera_name,
                action=action_name,
                state=state_name,
                progress=lambda done, total: progress.update(reading, completed=done, total=total),
            )
            problem, damages = _problem(summary), []
            if problem is not None:
                sheet = None
            if sheet is not None:
                damages = draw_contact_sheet(
                    recording,
                    summary.cameras,
                    f"{path.resolve().name}, {summary.contents.format}",
                    sheet,
                )
    except (OSError, RecordingError, ValueError) as error:
        typer.echo(f"lewm data inspect: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        report = {
            **summary.to_json(),
            "held_out": _held_out(summary),
            "warnings": _warnings(summary),
            "unreadable_frames": damages,
            "contact_sheet": None if sheet is None else str(sheet),
        }
        typer.echo(json.dumps(report, indent=2, allow_nan=False))
    else:
        typer.echo("\n".join(_describe(summary, damages, sheet)))
    if problem is not None:
        typer.echo(f"lewm data inspect: {problem}", err=True)
        raise typer.Exit(1)


def _problem(summary: Summary) -> str | None:
    """Why training can use nothing of a recording; None if it can use some."""
    from lewm_models.recordings.recording import RecordingError, other_columns

    if not summary.actions:
        others = other_columns(summary.contents) or ", so that no model can learn from it"
        return f"{summary.path}: has no actions{others}"
    try:
        if summary.usable is not None:
            summary.usable.require_some(summary.path)
    except RecordingError as error:
        return str(error)
    return None


def _held_out(summary: Summary) -> dict[str, int] | None:
    """The episodes and frames that training holds out; None while that is not known."""
    from lewm_models.training.advice import held_out

    if summary.usable is None or not summary.usable.ranges:
        return None
    episodes, frames = held_out(summary.usable)
    return {"episodes": episodes, "frames": frames}


def _warnings(summary: Summary) -> list[str]:
    """What the recording lacks for a good model."""
    from lewm_models.training.advice import warnings_about

    if summary.usable is None or not summary.usable.ranges:
        return []
    return warnings_about(summary.usable)


def _describe(summary: Summary, damages: Sequence[str], sheet: Path | None) -> Iterator[str]:
    """The report for people, line by line."""
    from lewm_models.recordings.recording import KINDS_OF_COLUMNS

    contents = summary.contents
    lengths = sorted(contents.episode_steps)
    length = f"{lengths[0]}" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]}"
    rate = "unknown" if contents.rate_hz is None else f"{contents.rate_hz:.4g} Hz"
    yield f"{summary.path}"
    yield ""
    yield f"format      {contents.format}"
    yield f"episodes    {len(lengths):,} of {length} steps"
    yield f"steps       {summary.steps:,}"
    yield f"rate        {rate}"
    yield f"hours       {'unknown' if summary.hours is None else f'{summary.hours:.3g}'}"
    for number, camera in enumerate(summary.cameras):
        height, width = camera.shape[:2]
        yield f"{'' if number else 'cameras':<12}{camera.name}, {width} × {height} pixels"
    yield from _dimension_table("action", summary.actions)
    yield from _dimension_table("state", summary.states)
    if summary.usable is not None:
        yield from _describe_usable(summary.usable, summary)
    notes = [*contents.notes, *(f"Unreadable frame: {damage}" for damage in damages)]
    if damages:
        notes.append("Training stops at a frame that cannot be read.")
    if notes:
        yield ""
        yield "notes"
        yield from (f"  {note}" for note in notes)
    if warnings := _warnings(summary):
        yield ""
        yield "warnings"
        yield from (f"  {warning}" for warning in warnings)
    if sheet is not None:
        yield ""
        yield f"contact sheet: {sheet}"
    if summary.proposals is not None:
        yield from _describe_proposals(summary, summary.proposals)
    for option in summary.choices:
        columns = summary.cameras if option == "--camera" else summary.actions
        names = ", ".join(column.name for column in columns)
        yield ""
        yield (
            f"There are several {KINDS_OF_COLUMNS[option]}. Choose one with {option} ({names}): "
            "several at once are not supported. Then this command also proposes settings."
        )


def _describe_usable(usable: UsableEpisodes, summary: Summary) -> Iterator[str]:
    from lewm_models.recordings.usable import RULES

    yield ""
    yield (
        f"usable      {usable.episodes:,} of {len(summary.contents.episode_steps):,} episodes, "
        f"{usable.steps:,} of {summary.steps:,} steps; "
        f"one sample takes {usable.min_steps} steps in a row"
    )
    if (held_out := _held_out(summary)) and held_out["episodes"]:
        yield f"held out    {held_out['episodes']:,} episodes, {held_out['frames']:,} frames"
    problems = usable.by_kind()
    if not problems:
        yield "problems    none"
        return
    yield "problems"
    width = max(len(RULES[kind][0]) for kind in problems)
    for kind, found in problems.items():
        what, rule = RULES[kind]
        count = sum(problem.count for problem in found)
        episodes = _episode_list({problem.episode for problem in found})
        yield f"  {what:<{width}}   {count:>6,}   {rule} ({episodes})"


def _describe_proposals(summary: Summary, proposals: Proposals) -> Iterator[str]:
    from lewm_models.recordings.summary import largest_image_size
    from lewm_models.training.advice import MIN_EPISODES

    yield ""
    yield "proposals"
    yield f"  action block        {proposals.action_block} steps"
    yield f"  history             {proposals.history} frames"
    largest = largest_image_size(summary.cameras[0])
    more = (
        f"; up to {largest} shows more and takes longer" if largest > proposals.image_size else ""
    )
    yield f"  image size          {proposals.image_size} pixels{more}"
    if proposals.crop is not None:
        yield f"  crop                {proposals.crop}; pad and stretch show the whole frame"
    yield f"  action low          {_numbers(proposals.action_low)}"
    yield f"  action high         {_numbers(proposals.action_high)}"
    yield f"  action rate limit   {_numbers(proposals.action_rate_limit)}"
    if summary.usable is None or summary.usable.episodes < MIN_EPISODES:
        return
    yield ""
    command = ["lewm", "train", "--data", str(summary.path)]
    if len(summary.contents.cameras) > 1:
        command += ["--camera", summary.cameras[0].name]
    if [column.name for column in summary.contents.actions] != [summary.actions[0].name]:
        command += ["--action", summary.actions[0].name]
    command += ["--action-block", str(proposals.action_block)]
    command += ["--image-size", str(proposals.image_size)]
    if proposals.crop is not None:
        command += ["--crop", proposals.crop]
    yield f"to train: {shlex.join(command)}"


def _dimension_table(kind: str, columns: Sequence[Series]) -> Iterator[str]:
    """A line for each dimension of the columns."""
    if not columns:
        yield ""
        yield f"{kind + 's':<12}none"
        return
    rows: list[tuple[str, ...]] = [("low", "high", "mean", "deviation", "constant", "clipped")]
    titles = [f"{kind}s"]
    for column in columns:
        if not column.dimensions:
            titles.append(f"  {column.name}")
            rows.append(("no finite values", "", "", "", "", ""))
        for item in column.dimensions:
            titles.append(f"  {column.name} {item.label}")
            numbers = (item.low, item.high, item.mean, item.deviation)
            shares = (item.constant_share, item.clipped_share)
            rows.append((*(f"{x:.4g}" for x in numbers), *(f"{x:.1%}" for x in shares)))
    title_width = max(map(len, titles))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield ""
    for title, row in zip(titles, rows, strict=True):
        cells = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"{title:<{title_width}}   {'   '.join(cells)}".rstrip()


def _episode_list(episodes: set[int]) -> str:
    named = ", ".join(map(str, sorted(episodes)[:MAX_NAMED_EPISODES]))
    if len(episodes) == 1:
        return f"episode {named}"
    more = len(episodes) - MAX_NAMED_EPISODES
    return f"episodes {named}" + (f" and {more:,} more" if more > 0 else "")


def _numbers(values: Sequence[float]) -> str:
    return "  ".join(f"{value:.4g}" for value in values)
