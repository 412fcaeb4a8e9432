"""The settings of a training run, from what a person asks for and what the data propose."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lewm_models import checkpoint
from lewm_models.card import ModelCard, SolverConfig, check_name
from lewm_models.checkpoint import Checkpoint
from lewm_models.config import PRESETS, LeWMConfig
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.environments.registry import find_environment
from lewm_models.preprocessing import CROPS, Crop
from lewm_models.probe.network import StateSpace
from lewm_models.probe.states import states_of_column, states_of_environment
from lewm_models.recordings.recording import (
    Column,
    Recording,
    RecordingError,
    choose_action,
    choose_column,
)
from lewm_models.recordings.summary import Proposals, summarise
from lewm_models.recordings.usable import UsableEpisodes
from lewm_models.training.advice import MIN_EPISODES, warnings_about
from lewm_models.training.environment_source import EnvironmentSource
from lewm_models.training.preparation import Progress, RecordingSource
from lewm_models.training.run import TrainingRun
from lewm_models.training.trainer import TrainingConfig

DEFAULT_PRESET = "edge"

PRESET_TRAINING: Mapping[str, TrainingConfig] = {
    "edge": TrainingConfig(steps=4000, learning_rate=5e-4, directions=256),
    "paper": TrainingConfig(steps=20_000, learning_rate=5e-5),
}

PRESET_SOLVERS: Mapping[str, SolverConfig] = {
    "edge": SolverConfig(name="icem", samples=48, iterations=2, elites=5),
    "paper": SolverConfig(),
}

LARGE_ACTION_DIM = 3
LARGE_ACTION_SOLVER = SolverConfig(name="icem", samples=96, iterations=6, elites=10)
"""The defaults of plans by `edge` for actions with at least this many values. With five of them,
plans of 48 × 2 candidates had twice the cost."""

FINE_TUNING = TrainingConfig(steps=2000, learning_rate=5e-5, directions=256)
"""Training that starts from a trained model."""

DISTANCE_TRAINING = DistanceTraining()
"""Training of the distance, for all presets."""

AUTO, NONE = "auto", "none"
"""Words for a rate limit: the one that the data propose, and no limit."""


@dataclass(frozen=True)
class Choices:
    """What a person asks for; None takes the default.

    Attributes:
        preset: the architecture and the settings of training: see `PRESETS`.
        initial: the folder of a model to start from.
        action_block: actions between two frames of the model.
        image_size: the side of the model's frames in pixels.
        crop: how frames become square.
        action_rate_limit: "auto", "none", or numbers with commas between them.
        steps: training steps.
        learning_rate: the highest one.
        action_head: the weight of `ActionHead` in the loss; 0 trains without it.
        distance_steps: training steps of the distance; 0 trains none.
        state_input: whether the model sees the named states beside the pixels. Training that starts
            from a model with a state input shows them in any case.
        seed: of the data, the weights and the order of samples.
    """

    preset: str | None = None
    initial: Path | None = None
    action_block: int | None = None
    image_size: int | None = None
    crop: Crop | None = None
    action_rate_limit: str | None = None
    steps: int | None = None
    learning_rate: float | None = None
    action_head: float | None = None
    distance_steps: int | None = None
    state_input: bool = False
    seed: int = 0

    @property
    def distance(self) -> DistanceTraining | None:
        """The settings of the training of the distance."""
        if self.distance_steps == 0:
            return None
        settings = replace(DISTANCE_TRAINING, seed=self.seed)
        steps = settings.steps if self.distance_steps is None else self.distance_steps
        return replace(settings, steps=steps)

    def command(self, *source: str) -> str:
        """The command of a run with these choices; ``source`` are the options of its data."""
        options = {
            "--preset": self.preset if self.initial is None else None,
            "--from": None if self.initial is None else self.initial.resolve().name,
            "--action-block": self.action_block,
            "--image-size": self.image_size,
            "--crop": self.crop,
            "--action-rate-limit": self.action_rate_limit,
            "--steps": self.steps,
            "--learning-rate": self.learning_rate,
            "--action-head": self.action_head,
            "--distance-steps": self.distance_steps,
            "--seed": self.seed,
        }
        given = [
            word
            for option, value in options.items()
            if value is not None
            for word in (option, str(value))
        ]
        if self.state_input:
            given.append("--state-input")
        return shlex.join(["lewm", "train", *source, *given])


@dataclass(frozen=True)
class _Base:
    """What a run starts from: a preset or a trained model."""

    config: LeWMConfig
    training: TrainingConfig
    solver: SolverConfig
    initial: Checkpoint | None

    @property
    def card(self) -> ModelCard | None:
        return None if self.initial is None else self.initial.card


def environment_run(
    environment: str,
    choices: Choices,
    *,
    episodes: int,
    episode_steps: int,
    frame_every: int | None = None,
    name: str | None = None,
) -> TrainingRun:
    """A run on episodes that are recorded in an environment, whose name the model gets by default.

    By default all frames are recorded where they cost little, else one per action block.

    Raises:
        ValueError: a choice is impossible; the message names the option.
    """
    found = find_environment(environment)
    base = _base(choices, action_dim=found.action_dim, of=f"--env {environment}")
    block = base.config.action_block
    source = EnvironmentSource.for_model(
        environment,
        episodes=episodes,
        steps=episode_steps,
        seed=choices.seed,
        config=base.config,
    )
    if frame_every:
        source = replace(source, frame_every=frame_every)
    if choices.crop is not None:
        raise ValueError("--crop: is for --data")
    if choices.action_rate_limit == AUTO:
        raise ValueError("--action-rate-limit: auto is for --data; give numbers")
    shortest = base.config.history * base.config.action_block
    if episode_steps < shortest:
        raise ValueError(
            f"--episode-steps: expected at least {shortest} (history · action block), got "
            f"{episode_steps}"
        )
    if block % source.frame_every:
        raise ValueError(
            f"--frame-every: expected a divisor of the action block, {block}, got {frame_every}"
        )
    options: list[object] = ["--env", environment]
    options += ["--episodes", episodes, "--episode-steps", episode_steps]
    options += [] if frame_every is None else ["--frame-every", frame_every]
    return TrainingRun(
        name=name or found.name,
        source=source,
        config=base.config,
        training=base.training,
        solver=base.solver,
        action_low=found.action_low,
        action_high=found.action_high,
        action_rate_limit=_rate_limit(choices, base, None),
        controllers=found.controllers,
        crop=None if base.card is None else base.card.crop,
        distance=choices.distance,
        states=states_of_environment(found),
        state_input=_takes_states(
            choices, base, states_of_environment(found), f"--env {environment}"
        ),
        initial=base.initial,
        provenance=_provenance(
            environment,
            base,
            recording=asdict(source),
            command=replace(choices, steps=base.training.steps).command(*map(str, options)),
        ),
    )


def recording_run(
    recording: Recording,
    choices: Choices,
    *,
    name: str,
    camera: str | None = None,
    action: str | None = None,
    state: str | None = None,
    on_episode: Progress | None = None,
) -> TrainingRun:
    """A run on a recording. What is not chosen is as `lewm data inspect` proposes it.

    Args:
        recording: an open recording.
        choices: the settings.
        name: the model's name.
        camera: the name of the camera, if there are several.
        action: the name of the column of actions, if there are several.
        state: the name of a column of states. Steps without a finite state are left out.
        on_episode: called while the actions are read.

    Raises:
        RecordingError: the recording cannot be used.
        ValueError: a choice is impossible; the message names the option.
    """
    check_name(name)
    path, contents = recording.path, recording.contents
    camera_column = choose_column(contents.cameras, camera, option="--camera", path=path)
    action_column = choose_action(contents, action, path)
    state_column = None
    if state is not None:
        state_column = choose_column(contents.states, state, option="--state", path=path)
    elif len(contents.states) == 1 and contents.states[0] != action_column:
        state_column = contents.states[0]
    states = None if state_column is None else states_of_column(state_column, {})
    base = _base(choices, action_dim=action_column.shape[0], of=f"{path}: {action_column.name}")
    card = base.card
    takes_states = _takes_states(choices, base, states, str(path))
    if choices.action_rate_limit != AUTO:
        _rate_limit(choices, base, None)  # refused before the actions are read
    summary = summarise(
        recording,
        camera=camera_column.name,
        action=action_column.name,
        state=state,
        action_block=choices.action_block if card is None else card.config.action_block,
        history=None if card is None else card.config.history,
        progress=on_episode,
    )
    usable, proposals = summary.usable, summary.proposals
    assert usable is not None  # one column of actions was chosen
    usable.require_some(path)
    assert proposals is not None
    if usable.episodes < MIN_EPISODES:
        raise RecordingError(
            f"{path}: only one episode can be used; training needs at least {MIN_EPISODES}, "
            "because whole episodes are held out"
        )
    config = base.config
    if card is None:
        config = replace(config, action_block=proposals.action_block, history=proposals.history)
        config = _with_action_encoder(config)
    crop = _crop(choices, camera_column, card, proposals)
    source = RecordingSource(
        recording=recording,
        camera=camera_column,
        action=action_column,
        state=state_column,
        ranges=usable.ranges,
        image_size=config.image_size,
        crop=crop,
    )
    options = ["--data", path.resolve().name]
    for option, column in (("--camera", camera), ("--action", action), ("--state", state)):
        options += [] if column is None else [option, column]
    return TrainingRun(
        name=name,
        source=source,
        config=config,
        training=base.training,
        solver=base.solver,
        action_low=_float32(proposals.action_low) if card is None else card.action_low,
        action_high=_float32(proposals.action_high) if card is None else card.action_high,
        action_rate_limit=_rate_limit(choices, base, proposals),
        controllers=() if card is None else card.controllers,
        crop=crop,
        distance=choices.distance,
        states=states,
        state_input=takes_states,
        initial=base.initial,
        provenance=_provenance(
            path.resolve().name,
            base,
            recording=_describe(recording, source, usable),
            command=replace(choices, steps=base.training.steps).command(*options),
        ),
        warnings=tuple(warnings_about(usable)),
    )


def _base(choices: Choices, *, action_dim: int, of: str) -> _Base:
    """The architecture and the settings of training.

    ``of`` is where actions with ``action_dim`` values come from, for the error.

    Raises:
        ValueError: the choices contradict each other, or do not fit the model.
    """
    if choices.initial is not None:
        loaded = checkpoint.load(choices.initial)
        _check_model(choices, loaded.card, action_dim=action_dim, of=of)
        config, training = loaded.card.config, FINE_TUNING
        solver = replace(loaded.card.solver, objective=None)  # its distance is of other latents
    else:
        loaded = None
        preset = choices.preset or DEFAULT_PRESET
        if preset not in PRESETS:
            raise ValueError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        config, training, solver = PRESETS[preset], PRESET_TRAINING[preset], PRESET_SOLVERS[preset]
        if preset == DEFAULT_PRESET and action_dim >= LARGE_ACTION_DIM:
            solver = LARGE_ACTION_SOLVER
        _check_image_size(choices.image_size, config, preset)
        config = _with_action_encoder(
            replace(
                config,
                action_dim=action_dim,
                action_block=choices.action_block or config.action_block,
                image_size=choices.image_size or config.image_size,
            )
        )
    rate = choices.learning_rate
    return _Base(
        config=config,
        training=replace(
            training,
            steps=training.steps if choices.steps is None else choices.steps,
            learning_rate=training.learning_rate if rate is None else rate,
            seed=choices.seed,
            action_head_weight=choices.action_head or 0.0,
        ),
        solver=solver,
        initial=loaded,
    )


def _takes_states(choices: Choices, base: _Base, states: StateSpace | None, of: str) -> bool:
    """Whether the model sees the states, which are ``of`` these data.

    Raises:
        ValueError: they are not there, or are not those of the model to start from.
    """
    given = base.config.state_input
    if given is None and not choices.state_input:
        return False
    if given is None and base.card is not None:
        raise ValueError(
            f"--state-input: {base.card.name} (--from) sees pixels only; train a new model"
        )
    names = "" if states is None else ", ".join(states.names)
    if given is not None and (states is None or states.names != given.names):
        assert base.card is not None
        raise ValueError(
            f"--from: {base.card.name} takes the states {', '.join(given.names)}, got "
            f"{names or 'none'} of {of}; --state NAME chooses their column"
        )
    if states is None:
        raise ValueError(
            f"--state-input: {of} has no column of states, or several; --state NAME chooses one"
        )
    return True


def _with_action_encoder(config: LeWMConfig) -> LeWMConfig:
    """The same architecture, with an action encoder that loses nothing of a larger block."""
    smoothed = max(LeWMConfig.action_smoothed, config.block_width)
    return replace(config, action_smoothed=smoothed)


def _check_model(choices: Choices, card: ModelCard, *, action_dim: int, of: str) -> None:
    """Refuse choices and actions that do not fit the model to start from."""
    if choices.preset is not None:
        raise ValueError(f"--preset: --from takes the architecture of {card.name}; give only one")
    config = card.config
    for option, value, expected in (
        ("--action-block", choices.action_block, config.action_block),
        ("--image-size", choices.image_size, config.image_size),
    ):
        if value not in (None, expected):
            raise ValueError(f"{option}: {card.name} (--from) has {expected}, got {value}")
    if card.crop is not None and choices.crop not in (None, card.crop):
        raise ValueError(f"--crop: {card.name} (--from) has {card.crop}, got {choices.crop}")
    if action_dim != config.action_dim:
        raise ValueError(
            f"--from: actions of {card.name} have {config.action_dim} values, those of {of} have "
            f"{action_dim}"
        )


def _check_image_size(size: int | None, config: LeWMConfig, preset: str) -> None:
    patch = config.patch_size
    if size is not None and (size < patch or size % patch):
        nearest = max(patch, round(size / patch) * patch)
        raise ValueError(
            f"--image-size: expected a multiple of {patch} for the preset {preset}, such as "
            f"{nearest}, got {size}"
        )


def _crop(
    choices: Choices, camera: Column, card: ModelCard | None, proposals: Proposals
) -> Crop | None:
    """How the frames of a camera become square."""
    if choices.crop is not None or card is None:
        return choices.crop or proposals.crop
    height, width = camera.shape[:2]
    if card.crop is None and height != width:
        raise ValueError(
            f"--crop: frames of {camera.name} are {width} x {height} and {card.name} (--from) does "
            f"not say how they become square; choose {', '.join(CROPS)}"
        )
    return card.crop


def _rate_limit(
    choices: Choices, base: _Base, proposals: Proposals | None
) -> tuple[float, ...] | None:
    """The limit in the card. By default there is none, or that of the model to start from.

    Raises:
        ValueError: the choice is no limit.
    """
    choice = choices.action_rate_limit
    if choice is None:
        return None if base.card is None else base.card.action_rate_limit
    if choice == NONE:
        return None
    if choice == AUTO:
        assert proposals is not None
        return _float32(proposals.action_rate_limit)
    action_dim = base.config.action_dim
    try:
        limit = tuple(map(float, choice.split(",")))
    except ValueError:
        limit = ()
    if len(limit) != action_dim or not all(0 < value < float("inf") for value in limit):
        raise ValueError(
            f"--action-rate-limit: expected {AUTO}, {NONE}, or {action_dim} numbers above 0 with "
            f"commas between them, got {choice!r}"
        )
    return limit


def _float32(values: Sequence[float]) -> tuple[float, ...]:
    """The values as answers show them: the shortest decimals of float32.

    So an action at a bound is not outside of it.
    """
    return tuple(float(str(np.float32(value))) for value in values)


def _provenance(
    trained_on: str, base: _Base, *, recording: Mapping[str, Any], command: str
) -> dict[str, Any]:
    provenance = {"trained_on": trained_on, "recording": recording, "command": command}
    if base.initial is not None:
        started = {"name": base.initial.card.name, "version": base.initial.version}
        provenance["from"] = {**started, "provenance": base.initial.card.provenance}
    return provenance


def _describe(
    recording: Recording, source: RecordingSource, usable: UsableEpisodes
) -> dict[str, Any]:
    """What the card says about a recording."""
    contents, (height, width) = recording.contents, source.camera.shape[:2]
    labels = {"action_labels": list(source.action.labels)} if source.action.labels else {}
    return {
        "format": contents.format,
        "rate_hz": None if contents.rate_hz is None else float(f"{contents.rate_hz:.6g}"),
        "camera": source.camera.name,
        "frame": {"height": height, "width": width},
        "action": source.action.name,
        **labels,
        "episodes": len(contents.episode_steps),
        "steps": sum(contents.episode_steps),
        "usable_episodes": usable.episodes,
        "usable_steps": usable.steps,
        "left_out": {
            kind.value: sum(problem.count for problem in problems)
            for kind, problems in usable.by_kind().items()
        },
    }
