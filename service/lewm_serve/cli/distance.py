"""`lewm models distance`: train a distance for a model that is there already."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lewm_models import checkpoint
from lewm_models.card import ModelCard
from lewm_models.distance.loop import TrainingReport
from lewm_models.distance.run import MIN_RANK_CORRELATION, train_distance
from lewm_models.probe.states import check_input, column_of_input, states_of_prepared_data
from lewm_models.recordings.recording import Recording, choose_action, choose_column, open_recording
from lewm_models.recordings.usable import usable_episodes
from lewm_models.training.environment_source import EnvironmentSource
from lewm_models.training.preparation import RecordingSource
from lewm_models.training.prepared import FILE, PreparedData
from lewm_models.training.run import DATA_FOLDER
from lewm_models.training.settings import Choices
from lewm_models.training.windows import split_episodes
from lewm_serve.cli.options import Objective
from lewm_serve.cli.train import (
    ProgressBar,
    describe_report,
    say,
    training_device,
    training_progress,
)


@dataclass(frozen=True)
class DistanceOptions:
    """What a person asks for: the model's folder, where the frames come from, and the training."""

    folder: Path
    data: Path | None
    camera: str | None
    action: str | None
    environment: str | None
    episodes: int
    episode_steps: int
    steps: int | None
    seed: int
    output: Path | None
    objective: Objective | None
    device: str

    @property
    def command(self) -> str:
        """The command that trains the same distance again."""
        words = ["lewm", "models", "distance", self.folder.resolve().name]
        if self.data is not None:
            words.append(self.data.resolve().name)
        options: dict[str, Any] = {"--camera": self.camera, "--action": self.action}
        if self.environment is not None:
            options = {
                "--env": self.environment,
                "--episodes": self.episodes,
                "--episode-steps": self.episode_steps,
            }
        options |= {"--steps": self.steps, "--seed": self.seed, "--objective": self.objective}
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        return shlex.join(words)


def train_into(options: DistanceOptions, console: Console) -> tuple[ModelCard, str]:
    """Train a distance, and write it into the model's folder.

    Returns:
        The card, and the model's version.

    Raises:
        ValueError: the data cannot be used; the message names the file or the option.
    """
    loaded = checkpoint.load(options.folder)
    card = loaded.card
    work = options.output or Path("runs") / f"{card.name}-distance"
    with ExitStack() as stack:
        progress = stack.enter_context(training_progress(console))
        data = _prepare(options, card, work, progress=progress, stack=stack)
        check_input(
            states_of_prepared_data(data, card, {}), card, options.environment or str(options.data)
        )
        config = Choices(distance_steps=options.steps, seed=options.seed).distance
        assert config is not None  # there is at least one step

        def report(line: TrainingReport) -> None:
            say(progress, describe_report(line))

        trained = train_distance(
            loaded.model.to(training_device(options.device)),
            card,
            data,
            work,
            pieces=split_episodes(data),
            config=config,
            on_progress=ProgressBar(progress, "encoding frames"),
            on_report=report,
        )
    if not trained.ranks_well:
        say(
            progress,
            f"warning: the rank correlation on held-out episodes is "
            f"{trained.described.rank_correlation:.2f}, less than {MIN_RANK_CORRELATION:g}: the "
            "distance is hardly worth planning with",
        )
    card = trained.on_card(card, as_default=options.objective is Objective.DISTANCE)
    if options.objective is Objective.LATENT:
        card = replace(card, solver=replace(card.solver, objective=None))
    distance = {
        **card.provenance["distance"],
        "recording": dict(data.made_from),
        "command": options.command,
    }
    card = replace(card, provenance={**card.provenance, "distance": distance})
    checkpoint.write_distance(options.folder, card, trained.network)
    return card, checkpoint.version(options.folder)


def _prepare(
    options: DistanceOptions,
    card: ModelCard,
    work: Path,
    *,
    progress: Progress,
    stack: ExitStack,
) -> PreparedData:
    """The recorded steps, with frames at the model's size."""
    bar = ProgressBar(progress, "preparing frames")
    folder, announce = work / DATA_FOLDER, partial(say, progress)
    if options.environment is not None:
        source = EnvironmentSource.for_model(
            options.environment,
            episodes=options.episodes,
            steps=options.episode_steps,
            seed=options.seed,
            config=card.config,
        )
        return source.prepare(folder, bar, announce)
    assert options.data is not None
    if (options.data / FILE).is_file():
        return PreparedData.open(options.data)
    recording = stack.enter_context(open_recording(options.data))
    return _recording_source(recording, options, card).prepare(folder, bar, announce)


def _recording_source(
    recording: Recording, options: DistanceOptions, card: ModelCard
) -> RecordingSource:
    """The usable steps of a recording, treated as the card says.

    Raises:
        ValueError: nothing can be used, or frames or actions are not those of the model.
    """
    path, contents = recording.path, recording.contents
    camera = choose_column(contents.cameras, options.camera, option="--camera", path=path)
    action = choose_action(contents, options.action, path)
    height, width = camera.shape[:2]
    if height != width and card.crop is None:
        raise ValueError(
            f"{path}: frames of {camera.name} are {width} × {height} pixels, and the card of "
            f"{card.name} does not say how they become square (crop)"
        )
    usable = usable_episodes(recording, action=action.name, min_steps=card.config.action_block + 1)
    usable.require_some(path)
    given = card.config.state_input
    return RecordingSource(
        recording=recording,
        camera=camera,
        action=action,
        state=None if given is None else column_of_input(contents.states, given, path),
        ranges=usable.ranges,
        image_size=card.config.image_size,
        crop=card.crop,
    )
