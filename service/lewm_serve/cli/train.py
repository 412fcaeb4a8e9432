"""`lewm train`: from nothing to a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    import torch

    from lewm_models.training.trainer import Metrics


def train(
    env: Annotated[str, typer.Option(help="environment to learn")] = "two-room",
    preset: Annotated[str, typer.Option(help="size of the model: edge or paper")] = "edge",
    output: Annotated[
        Path | None, typer.Option(help="folder of the run; default runs/ENV-PRESET")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the model's name; default ENV")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="episodes to collect")] = 1500,
    episode_steps: Annotated[int, typer.Option(min=15, help="steps of an episode")] = 150,
    steps: Annotated[
        int | None, typer.Option(min=1, help="training steps; default: the preset's")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="of the data, the weights and the order")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Collect data, train a model, calibrate it and write its folder.

    The same command resumes a run that was cut off, without repeating or skipping a step.
    """
    from lewm_models.training.run import Run
    from lewm_models.training.run import train as run_training

    folder = output or Path("runs") / f"{env}-{preset}"
    console = Console(stderr=True)
    try:
        run = Run.of(
            env, preset, episodes=episodes, episode_steps=episode_steps, steps=steps, seed=seed
        )
        with Progress(console=console) as progress:
            collecting = progress.add_task("collecting", total=episodes)
            training = progress.add_task("training", total=run.training.steps)

            def on_frames(done: int, total: int) -> None:
                progress.update(collecting, completed=done, total=total)

            def report(metrics: Metrics) -> None:
                progress.update(collecting, completed=episodes)
                progress.update(training, completed=metrics.step)
                progress.console.print(describe(metrics))

            model = run_training(
                run,
                folder,
                name=name or env,
                device=training_device(device),
                on_frames=on_frames,
                report=report,
            )
    except (FloatingPointError, OSError, ValueError) as error:
        typer.echo(f"lewm train: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(str(model))


def training_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: there is none.
    """
    from lewm_serve.served import resolve_device

    try:
        device = resolve_device(name)
    except RuntimeError as error:  # torch's own for a word that is no device at all
        raise ValueError(f"--device: there is no {name} here") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got {name}")
    return device


def describe(metrics: Metrics) -> str:
    """One line of the run's log: both losses, in training and on held-out episodes."""
    return (
        f"step {metrics.step:>6}  "
        f"prediction {metrics.prediction:.4f} (held out {metrics.held_out_prediction:.4f})  "
        f"sigreg {metrics.sigreg:.3f} (held out {metrics.held_out_sigreg:.3f})  "
        f"latent std {metrics.latent_std:.2f}  {metrics.seconds_a_step:.2f} s/step"
    )
