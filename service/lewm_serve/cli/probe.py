"""`lewm models probe` and `lewm models decoder`: a small network for a model that is there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lewm_models import checkpoint
from lewm_models.card import FrameDecoderCard, ModelCard, StateProbeCard
from lewm_models.decoder.run import DecoderTraining, train_decoder_of_model
from lewm_models.probe.run import fit_probe_of_model
from lewm_models.training.environment_source import EnvironmentSource
from lewm_serve.cli.recorded_data import DataChoice, OpenedData, open_data
from lewm_serve.cli.train import ProgressBar, say, training_device, training_progress


@dataclass(frozen=True)
class NetworkOptions:
    """What a person asks for: the model's folder, and where the frames and states come from.

    ``part`` is the command: probe or decoder. A decoder needs no states.
    """

    part: str
    folder: Path
    data: Path | None
    camera: str | None
    action: str | None
    state: str | None
    periods: Mapping[str, float]
    environment: str | None
    episodes: int
    episode_steps: int
    seed: int
    device: str

    @property
    def command(self) -> str:
        """The command that makes the same network again."""
        words = ["lewm", "models", self.part, self.folder.resolve().name]
        if self.data is not None:
            words.append(self.data.resolve().name)
        options: dict[str, Any] = {
            "--camera": self.camera,
            "--action": self.action,
            "--state": self.state,
        }
        if self.environment is not None:
            options = {
                "--env": self.environment,
                "--episodes": self.episodes,
                "--episode-steps": self.episode_steps,
                "--seed": self.seed,
            }
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        for name, period in self.periods.items():
            words += ["--period", f"{name}={period:g}"]
        return shlex.join(words)


def fit_into(options: NetworkOptions) -> tuple[StateProbeCard, str]:
    """Fit a probe, and write it into the model's folder.

    Returns:
        What the card says about it, and the model's version.

    Raises:
        ValueError: the data cannot be used; the message names the file or the option.
    """
    loaded = checkpoint.load(options.folder)
    card = loaded.card
    with ExitStack() as stack:
        progress = stack.enter_context(training_progress(Console(stderr=True)))
        data = _open(options, card, progress=progress, stack=stack)
        if data.space is None:
            raise ValueError(
                f"{data.described['path']}: has no column of states, or several of which --state "
                "has to choose one"
            )
        fitted = fit_probe_of_model(
            loaded.model.to(training_device(options.device)),
            card,
            data.pieces,
            data.space,
            progress=ProgressBar(progress, "encoding frames"),
        )
    card = fitted.on_card(_with_provenance(card, options, data))
    checkpoint.write_probe(options.folder, card, fitted.network)
    return fitted.described, checkpoint.version(options.folder)


def train_decoder_into(options: NetworkOptions, training: DecoderTraining) -> FrameDecoderCard:
    """Train a decoder, and write it into the model's folder.

    Returns:
        What the card says about it.

    Raises:
        ValueError: the data cannot be used; the message names the file or the option.
    """
    loaded = checkpoint.load(options.folder)
    with ExitStack() as stack:
        progress = stack.enter_context(training_progress(Console(stderr=True)))
        data = _open(options, loaded.card, progress=progress, stack=stack)
        trained = train_decoder_of_model(
            loaded.model.to(training_device(options.device)),
            loaded.card,
            data.pieces,
            training,
            on_encoded=ProgressBar(progress, "encoding frames"),
            on_step=ProgressBar(progress, "training"),
        )
    card = trained.on_card(_with_provenance(loaded.card, options, data))
    checkpoint.write_decoder(options.folder, card, trained.network)
    return trained.described


def _with_provenance(card: ModelCard, options: NetworkOptions, data: OpenedData) -> ModelCard:
    described = dict(data.described)
    if options.environment is not None:
        del described["path"]  # a folder that is gone
    made = {"data": described, "command": options.command}
    return replace(card, provenance={**card.provenance, options.part: made})


def _open(
    options: NetworkOptions, card: ModelCard, *, progress: Progress, stack: ExitStack
) -> OpenedData:
    path = options.data
    if options.environment is not None:
        path = Path(stack.enter_context(TemporaryDirectory(prefix=f"lewm-{options.part}-")))
        source = EnvironmentSource.for_model(
            options.environment,
            episodes=options.episodes,
            steps=options.episode_steps,
            seed=options.seed,
            config=card.config,
        )
        source.prepare(path, ProgressBar(progress, "recording"), partial(say, progress))
    assert path is not None
    choice = DataChoice(path, options.camera, options.action, options.state, options.periods)
    return stack.enter_context(open_data(choice, card))
