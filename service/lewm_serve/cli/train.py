"""`lewm train`: from a recording or an environment to a model folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lewm_serve.cli.messages import describe_error
from lewm_serve.cli.options import (
    ActionOption,
    CameraOption,
    Crop,
    Preset,
    StateOption,
    one_name,
)

if TYPE_CHECKING:
    import torch

    from lewm_models.distance.loop import TrainingReport
    from lewm_models.training.run import TrainingRun
    from lewm_models.training.trainer import TrainingMetrics

EPISODES, EPISODE_STEPS = 1500, 150

MAX_SHOWN_SPEED = 20.0
"""Of a faster bar, the seconds that a step takes are not shown."""


def train(
    data: Annotated[
        Path | None, typer.Option(help="recording to train on; see docs/recordings.md")
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(
            help="environment to record episodes in, or package.module:factory, instead of --data"
        ),
    ] = None,
    camera: CameraOption = None,
    action: ActionOption = None,
    state: StateOption = None,
    preset: Annotated[
        Preset | None, typer.Option(help="architecture; default: edge", show_default=False)
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option("--from", metavar="MODEL", help="model folder whose training is carried on"),
    ] = None,
    action_block: Annotated[
        int | None,
        typer.Option(min=1, help="actions between two frames of the model; default: half a second"),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="side of the model's frames; default: the preset's")
    ] = None,
    crop: Annotated[
        Crop | None, typer.Option(help="how frames become square; default: center")
    ] = None,
    action_rate_limit: Annotated[
        str | None,
        typer.Option(
            metavar="auto|none|V1,V2,…",
            help="largest change of each action from one step to the next in plans; "
            "auto: as the recording proposes; default: none",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="training steps; default: the preset's")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=1.0,
            help="the highest learning rate; default: the preset's, or 5e-5 with --from",
        ),
    ] = None,
    action_head: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="weight of a loss that only training has: which action led from one frame to "
            "another; default: 0",
        ),
    ] = None,
    distance_steps: Annotated[
        int | None,
        typer.Option(min=0, help="training steps of the learned distance; default: 9000; 0: none"),
    ] = None,
    state_input: Annotated[
        bool,
        typer.Option(
            "--state-input",
            help="show the model the named states beside the pixels; requests may then have them",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="folder of the run; default: runs/NAME")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="name of the model; default: that of the data")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=2, help=f"episodes of --env; default: {EPISODES}")
    ] = None,
    episode_steps: Annotated[
        int | None, typer.Option(min=15, help=f"steps per episode; default: {EPISODE_STEPS}")
    ] = None,
    frame_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="steps of --env from one frame to the next; default: 1, or one frame per action "
            "block where rendering is slow",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**31 - 1, help="seed of the data, the weights and the order of samples"
        ),
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Train a model on a recording or in an environment, calibrate it and write OUTPUT/model.

    The same command continues a run that was interrupted, with the same result. After Ctrl-C no
    step is repeated, after a kill at most 50 are.
    """
    from lewm_models.recordings.recording import open_recording
    from lewm_models.training.run import check_output
    from lewm_models.training.run import train as run_training
    from lewm_models.training.settings import Choices, environment_run, recording_run

    console = Console(stderr=True)
    try:
        _check_options(
            {"--camera": camera, "--action": action, "--state": state},
            {
                "--episodes": episodes,
                "--episode-steps": episode_steps,
                "--frame-every": frame_every,
            },
            has_data=data is not None,
            has_env=env is not None,
        )
        choices = Choices(
            preset=preset,
            initial=initial,
            action_block=action_block,
            image_size=image_size,
            crop=None if crop is None else crop.value,
            action_rate_limit=action_rate_limit,
            steps=steps,
            learning_rate=learning_rate,
            action_head=action_head,
            distance_steps=distance_steps,
            state_input=state_input,
            seed=seed,
        )
        torch_device = training_device(device)
        with (
            nullcontext() if data is None else open_recording(data) as recording,
            training_progress(console) as progress,
        ):
            if recording is None:
                assert env is not None
                run = environment_run(
                    env,
                    choices,
                    name=name,
                    episodes=episodes or EPISODES,
                    episode_steps=episode_steps or EPISODE_STEPS,
                    frame_every=frame_every,
                )
            else:
                run = recording_run(
                    recording,
                    choices,
                    name=name or name_of(recording.path),
                    camera=one_name(camera, "--camera"),
                    action=one_name(action, "--action"),
                    state=one_name(state, "--state"),
                    on_episode=ProgressBar(progress, "reading actions"),
                )
            folder = output or Path("runs") / run.name
            check_output(folder)
            log = _Log(folder, progress)
            for line in describe_run(run):
                log.say(line)
            model = run_training(
                run,
                folder,
                device=torch_device,
                on_progress=ProgressBar(progress, "preparing frames"),
                on_message=log.say,
                on_metrics=log.report,
                on_step=ProgressBar(progress, "training"),
                on_distance=log.report_distance,
            )
    except (FloatingPointError, OSError, ValueError) as error:
        typer.echo(f"lewm train: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None
    typer.echo(str(model))


def _check_options(
    of_data: dict[str, Any], of_env: dict[str, Any], *, has_data: bool, has_env: bool
) -> None:
    """Refuse options that would have no effect.

    Raises:
        ValueError: the message names the option.
    """
    if has_data == has_env:
        from lewm_models.environments.registry import environment_names

        raise ValueError(
            "expected one of --data PATH, a recording, and --env NAME, an environment "
            f"({', '.join(environment_names())})"
        )
    needed = "--env" if has_data else "--data"
    for option, value in (of_env if has_data else of_data).items():
        if value is not None:
            raise ValueError(f"{option}: is for {needed}")


def name_of(path: Path) -> str:
    """A model's name from the name of a recording."""
    from lewm_models.card import MAX_NAME_LENGTH

    name = re.sub("[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-.")
    return name[:MAX_NAME_LENGTH] or "model"


def describe_run(run: TrainingRun) -> list[str]:
    """What is trained, in lines for people."""
    config, recorded = run.config, run.provenance["recording"]
    lines = [
        f"model {run.name}: frames of {config.image_size} px, blocks of {config.action_block} × "
        f"{config.action_dim} actions, {config.history} frames of history"
    ]
    if left_out := recorded.get("left_out"):
        parts = ", ".join(f"{kind} {count:,}" for kind, count in left_out.items())
        lines.append(
            f"used are {recorded['usable_steps']:,} of {recorded['steps']:,} steps; left out or "
            f"cut: {parts} (`lewm data inspect` says more)"
        )
    if run.state_input and run.states is not None:
        lines.append(f"states that the model sees: {', '.join(run.states.names)}")
    if run.crop is not None:
        lines.append(f"frames that are not square: {run.crop} (--crop)")
    lines += [f"warning: {warning}" for warning in run.warnings]
    return lines


def training_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: there is no such device.
    """
    from lewm_serve.registry.loading import resolve_device

    try:
        device = resolve_device(name)
    except RuntimeError as error:  # also torch's error for an unknown word
        raise ValueError(f"--device: there is no {name} here") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got {name}")
    return device


@contextmanager
def training_progress(console: Console) -> Iterator[Progress]:
    """Progress bars. They take no line of the screen before there is one."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        _SecondsPerStep(),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=120,  # a step may take seconds
    )
    try:
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()


def say(progress: Progress, line: str) -> None:
    """Print a line above the bars, as it is."""
    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _SecondsPerStep(ProgressColumn):
    """What a step takes, where that is slow enough to be of interest."""

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        if not task.speed or task.speed > MAX_SHOWN_SPEED:
            return Text("")
        return Text(f"{1 / task.speed:.2f} s each")


class ProgressBar:
    """A progress bar that appears when it is first called."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._description = description
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._description, total=total, completed=done)
        self._progress.update(self._task, completed=done, total=total)


class _Log:
    """Shows the reports of a run: as lines, as `training.png`, and in TensorBoard."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress

    @cached_property
    def _tensorboard(self) -> Any:
        return tensorboard_writer(self._folder)

    def say(self, line: str) -> None:
        say(self._progress, line)

    def report(self, metrics: TrainingMetrics) -> None:
        from lewm_models.training.run import read_log
        from lewm_serve.cli.training_picture import draw_training

        self.say(describe(metrics))
        if metrics.collapse is not None:
            self.say(
                f"warning: the model has collapsed: {metrics.collapse}. Its plans will be no "
                "better than random; see docs/training.md"
            )
        draw_training(read_log(self._folder), self._folder / "training.png")
        if self._tensorboard is not None:
            for field, value in metrics.to_json().items():
                if isinstance(value, int | float) and field != "step":
                    self._tensorboard.add_scalar(field, value, metrics.step)
            self._tensorboard.flush()

    def report_distance(self, report: TrainingReport) -> None:
        self.say(describe_report(report))


def describe_report(report: TrainingReport) -> str:
    """One line of the log of a distance or of its proposal."""
    held_out = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" for name, value in report.held_out.items()
    )
    return (
        f"{report.part}, step {report.step:>6}  loss {report.loss:.4f}  held out: {held_out}  "
        f"{report.seconds_per_step:.3f} s/step"
    )


def tensorboard_writer(folder: Path) -> Any:
    """A writer of TensorBoard's files in ``folder/tensorboard``; None if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def describe(metrics: TrainingMetrics) -> str:
    """One line of the training log."""
    return (
        f"step {metrics.step:>6}  "
        f"prediction {metrics.prediction:.4f} (held out {metrics.held_out_prediction:.4f}, "
        f"{metrics.prediction_to_copy:.2f} × copying)  "
        f"sigreg {metrics.sigreg:.3f} (held out {metrics.held_out_sigreg:.3f})  "
        f"cost range {metrics.cost_range:.2f}  rank {metrics.effective_rank:.0f}  "
        f"latent std {metrics.latent_std:.2f}  {metrics.seconds_per_step:.2f} s/step"
    )
