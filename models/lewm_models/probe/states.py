"""Which states a recording or an environment has, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lewm_models.card import ModelCard
from lewm_models.config import StateInput
from lewm_models.environments.environment import Environment
from lewm_models.environments.registry import find_environment
from lewm_models.probe.network import StateSpace
from lewm_models.recordings.recording import Column, RecordingError
from lewm_models.training.prepared import PreparedData


def states_of_column(column: Column, periods: Mapping[str, float]) -> StateSpace:
    """The states of a column of a recording.

    Without names of their own they have the column's name, and numbers if there are several.

    Raises:
        ValueError: a period belongs to no state.
    """
    return StateSpace.of(column.labels or _numbered(column.name, column.shape[0]), periods)


def check_input(space: StateSpace | None, card: ModelCard, of: Path | str) -> None:
    """Refuse data without the states that a model takes, if it takes any.

    Args:
        space: the states of the data; None if there are none.
        card: the model's card.
        of: the data, for the error.

    Raises:
        ValueError: they are others.
    """
    given = card.config.state_input
    if given is not None and (space is None or space.names != given.names):
        found = "none" if space is None else ", ".join(space.names)
        raise ValueError(
            f"{of}: expected the states {', '.join(given.names)} ({card.name} takes them), got "
            f"{found}"
        )


def column_of_input(columns: Sequence[Column], given: StateInput, path: Path) -> Column:
    """The column of a recording whose states are those of a model's state input.

    Raises:
        RecordingError: there is none.
    """
    found = [states_of_column(column, {}).names for column in columns]
    if given.names not in found:
        recorded = "; ".join(", ".join(names) for names in found)
        raise RecordingError(
            f"{path}: expected the states {', '.join(given.names)}, which the model takes, got "
            f"{recorded or 'none'}"
        )
    return columns[found.index(given.names)]


def states_of_environment(
    environment: Environment, periods: Mapping[str, float] | None = None
) -> StateSpace:
    """The states of an environment.

    Raises:
        ValueError: a period belongs to no state.
    """
    names = environment.state_names or _numbered("state", environment.state_dim)
    return StateSpace.of(names, {**environment.state_periods, **(periods or {})})


def states_of_prepared_data(
    data: PreparedData, card: ModelCard, periods: Mapping[str, float]
) -> StateSpace | None:
    """The states of prepared data; None if there are none.

    Prepared data of a recording do not hold the names of states. They are those of the card's
    state input, or of its probe, if it has as many.

    Raises:
        ValueError: a period belongs to no state.
    """
    if data.states is None:
        return None
    count = data.states.shape[1]
    if (environment := data.made_from.get("environment")) is not None:
        return states_of_environment(find_environment(str(environment)), periods)
    if card.probe is not None and len(card.probe.states) == count:
        known = dict(zip(card.probe.states, card.probe.periods, strict=True))
        known = {name: period for name, period in known.items() if period}
        return StateSpace.of(card.probe.states, {**known, **periods})
    given = card.config.state_input
    if given is not None and len(given) == count:
        return StateSpace.of(given.names, periods)
    return StateSpace.of(_numbered(str(data.made_from.get("state")), count), periods)


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name}_{number}" for number in range(count))
