"""Recorded data that a model is judged on, or that a probe is fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lewm_models.card import ModelCard
from lewm_models.probe.network import StateSpace
from lewm_models.probe.states import (
    check_input,
    column_of_input,
    states_of_column,
    states_of_prepared_data,
)
from lewm_models.recorded_sample import Pieces, PreparedPieces, RecordingPieces
from lewm_models.recordings.recording import (
    Column,
    Recording,
    choose_action,
    choose_column,
    open_recording,
)
from lewm_models.recordings.usable import usable_episodes
from lewm_models.training.preparation import fingerprint
from lewm_models.training.prepared import FILE, PreparedData

IDENTITIES = (("fingerprint",), ("environment", "seed", "episodes", "steps"))
"""What tells a recording, and episodes of an environment, from others."""


@dataclass(frozen=True)
class DataChoice:
    """What a person chooses of recorded data.

    Attributes:
        path: a recording, or data that `lewm train` prepared.
        camera: the camera, if there are several; so are ``action`` and ``state``.
        action: the column of actions.
        state: the column of states.
        periods: the periods of states that have one.
    """

    path: Path
    camera: str | None = None
    action: str | None = None
    state: str | None = None
    periods: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenedData:
    """Recorded data, ready to be read for a model.

    Attributes:
        pieces: the recorded steps.
        space: the states; None if there are none, or if there are several columns of them.
        described: the data, for JSON.
        was_trained_on: whether the model was trained on them; None if the card does not say.
    """

    pieces: Pieces
    space: StateSpace | None
    described: Mapping[str, Any]
    was_trained_on: bool | None


def state_periods(texts: Sequence[str] | None) -> dict[str, float]:
    """The periods of states from texts NAME=NUMBER.

    Raises:
        ValueError: a text has another form.
    """
    periods: dict[str, float] = {}
    for text in texts or ():
        name, _, number = text.rpartition("=")
        try:
            periods[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"--period: expected NAME=NUMBER, such as angle=360, got {text}")
    return periods


@contextmanager
def open_data(choice: DataChoice, card: ModelCard) -> Iterator[OpenedData]:
    """Open recorded data for a model, for the duration of the block.

    Raises:
        ValueError: they cannot be used, or are not those of the model. The message names the file
            or the option.
    """
    if (choice.path / FILE).is_file():
        yield _prepared(choice, card)
        return
    with open_recording(choice.path) as recording:
        yield _recording(choice, recording, card)


def _prepared(choice: DataChoice, card: ModelCard) -> OpenedData:
    for option, name in (
        ("--camera", choice.camera),
        ("--action", choice.action),
        ("--state", choice.state),
    ):
        if name is not None:
            raise ValueError(f"{option}: {choice.path} holds prepared data, which have one only")
    data = PreparedData.open(choice.path)
    _check_actions(choice.path, data.actions.shape[1], card)
    space = states_of_prepared_data(data, card, choice.periods)
    _check_periods(choice, space)
    check_input(space, card, choice.path)
    return OpenedData(
        pieces=PreparedPieces(data, card.config.image_size),
        space=space,
        described={"path": choice.path.resolve().name, **_described(data.made_from)},
        was_trained_on=_was_trained_on(card, data.made_from),
    )


def _described(made_from: Mapping[str, Any]) -> dict[str, Any]:
    names = ("environment", "recording", "camera", "action", "state", "seed")
    return {name: made_from[name] for name in names if made_from.get(name) is not None}


def _recording(choice: DataChoice, recording: Recording, card: ModelCard) -> OpenedData:
    path, contents, config = recording.path, recording.contents, card.config
    camera = choose_column(contents.cameras, choice.camera, option="--camera", path=path)
    action = choose_action(contents, choice.action, path)
    _check_actions(path, action.shape[0], card)
    height, width = camera.shape[:2]
    if height != width and card.crop is None:
        raise ValueError(
            f"{path}: frames of {camera.name} are {width} × {height} pixels, and the card of "
            f"{card.name} does not say how they become square (crop)"
        )
    state = _state_column(choice, recording, action, card)
    # As in training, so that the same episodes are held out.
    usable = usable_episodes(
        recording,
        action=action.name,
        min_steps=config.history * config.action_block + 1,
        state=choice.state,
    )
    usable.require_some(path)
    space = None if state is None else states_of_column(state, choice.periods)
    _check_periods(choice, space)
    check_input(space, card, path)
    found = fingerprint(recording, usable.ranges, action=action.name, camera=camera.name)
    return OpenedData(
        pieces=RecordingPieces(
            recording=recording,
            camera=camera,
            action=action,
            state=state,
            ranges=usable.ranges,
            image_size=config.image_size,
            crop=card.crop,
        ),
        space=space,
        described={
            "path": path.resolve().name,
            "format": contents.format,
            "camera": camera.name,
            "action": action.name,
            "state": None if state is None else state.name,
        },
        was_trained_on=_was_trained_on(card, {"fingerprint": found}),
    )


def _state_column(
    choice: DataChoice, recording: Recording, action: Column, card: ModelCard
) -> Column | None:
    """The column of this name; without a name, the one that the model takes, or the only one there
    is, else none."""
    states = [column for column in recording.contents.states if column != action]
    if choice.state is None and card.config.state_input is not None:
        return column_of_input(states, card.config.state_input, recording.path)
    if choice.state is None and len(states) != 1:
        return None
    return choose_column(states, choice.state, option="--state", path=recording.path)


def _check_actions(path: Path, found: int, card: ModelCard) -> None:
    if found != (expected := card.config.action_dim):
        raise ValueError(
            f"{path}: expected actions of {expected} values ({card.name}), got {found}"
        )


def _check_periods(choice: DataChoice, space: StateSpace | None) -> None:
    if choice.periods and space is None:
        raise ValueError(f"--period: {choice.path} has no states, or needs --state")


def _was_trained_on(card: ModelCard, made_from: Mapping[str, Any]) -> bool | None:
    """Whether the model was trained on data that were made from this; None if it is not known."""
    recording = card.provenance.get("recording")
    for names in IDENTITIES:
        if isinstance(recording, dict) and all(
            part.get(name) is not None for part in (recording, made_from) for name in names
        ):
            return all(recording[name] == made_from[name] for name in names)
    return None
