"""The environments by name."""

from __future__ import annotations

from collections.abc import Mapping

from lewm_models.environments.environment import Environment
from lewm_models.environments.two_room_policy import TWO_ROOM

ENVIRONMENTS: Mapping[str, Environment] = {
    environment.name: environment for environment in (TWO_ROOM,)
}


DEFAULT_ENVIRONMENT = TWO_ROOM.name
"""The environment of the embedded model."""


def find_environment(name: str | None) -> Environment:
    """The environment of this name; None: that of the embedded model.

    Raises:
        ValueError: there is none.
    """
    if name is None:
        return ENVIRONMENTS[DEFAULT_ENVIRONMENT]
    if name not in ENVIRONMENTS:
        raise ValueError(f"--env: expected one of {', '.join(ENVIRONMENTS)}, got {name!r}")
    return ENVIRONMENTS[name]
