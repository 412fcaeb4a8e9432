"""The environments by name."""

from __future__ import annotations

from collections.abc import Mapping

from lewm_models.environments.environment import Environment
from lewm_models.environments.two_room_policy import TWO_ROOM

ENVIRONMENTS: Mapping[str, Environment] = {
    environment.name: environment for environment in (TWO_ROOM,)
}


def find_environment(name: str) -> Environment:
    """The environment of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in ENVIRONMENTS:
        raise ValueError(f"--env: expected one of {', '.join(ENVIRONMENTS)}, got {name!r}")
    return ENVIRONMENTS[name]
