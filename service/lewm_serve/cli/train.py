"""`lewm train`: collect data, train a model and write its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from lewm_serve.cli.messages import describe_error

if TYPE_CHECKING:
    import torch

    from lewm_models.training.trainer import TrainingMetrics


def train(
    env: Annotated[str, typer.Option(help="environment to collect data in")] = "two-room",
    preset: Annotated[str, typer.Option(help="architecture: edge or paper")] = "edge",
    output: Annotated[
        Path | None, typer.Option(help="folder of the run; default: runs/ENV-PRESET")
    ] = None,
    name: Annotated[str | None, typer.Option(help="name of the model; default: ENV")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="episodes to collect")] = 1500,
    episode_steps: Annotated[int, typer.Option(min=15, help="steps per episode")] = 150,
    steps: Annotated[
        int | None, typer.Option(min=1, help="training steps; default: the preset's")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**31 - 1, help="seed of the data, the weights and the order of samples"
        ),
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Collect data, train a model, calibrate it and write its folder.

    The same command continues a run that was interrupted. No step is repeated or left out.
    """
    from lewm_models.training.run import TrainingRun
    from lewm_models.training.run import train as run_training

    folder = output or Path("runs") / f"{env}-{preset}"
    console = Console(stderr=True)
    try:
        run = TrainingRun.from_preset(
            env, preset, episodes=episodes, episode_steps=episode_steps, steps=steps, seed=seed
        )
        with Progress(console=console) as progress:
            collecting = progress.add_task("collecting", total=episodes)
            training = progress.add_task("training", total=run.training.steps)

            def on_episode(done: int, total: int) -> None:
                progress.update(collecting, completed=done, total=total)

            def report(metrics: TrainingMetrics) -> None:
                progress.update(collecting, completed=episodes)
                progress.update(training, completed=metrics.step)
                progress.console.print(describe(metrics))

            model = run_training(
                run,
                folder,
                name=name or env,
                device=training_device(device),
                on_episode=on_episode,
                on_metrics=report,
            )
    except (FloatingPointError, OSError, ValueError) as error:
        typer.echo(f"lewm train: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None
    typer.echo(str(model))


def training_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: there is no such device.
    """
    from lewm_serve.registry.registry import resolve_device

    try:
        device = resolve_device(name)
    except RuntimeError as error:  # also torch's error for an unknown word
        raise ValueError(f"--device: there is no {name} here") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, got {name}")
    return device


def describe(metrics: TrainingMetrics) -> str:
    """One line of the training log: both losses, on training and on held-out episodes."""
    return (
        f"step {metrics.step:>6}  "
        f"prediction {metrics.prediction:.4f} (held out {metrics.held_out_prediction:.4f})  "
        f"sigreg {metrics.sigreg:.3f} (held out {metrics.held_out_sigreg:.3f})  "
        f"latent std {metrics.latent_std:.2f}  {metrics.seconds_per_step:.2f} s/step"
    )
