"""The environments by name: those of this package, those that packages add, and a user's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from lewm_models.environments.environment import Environment

ENTRY_POINT_GROUP = "lewm.environments"
"""Packages add environments by entry points of this group. Each names an `Environment`, or a class
or function without arguments that makes one."""

ENVIRONMENTS: Mapping[str, str] = {
    "cube": "lewm_models.environments.cube:CUBE",
    "push-t": "lewm_models.environments.push_t_environment:PUSH_T",
    "reacher": "lewm_models.environments.reacher:REACHER",
    "two-room": "lewm_models.environments.two_room_environment:TWO_ROOM",
}
"""The environments of this package. They are entry points too."""

DEFAULT_ENVIRONMENT = "two-room"
"""The environment of the embedded model."""


def environment_names() -> list[str]:
    """The names of all environments that are installed."""
    installed = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return [*ENVIRONMENTS, *sorted(installed - ENVIRONMENTS.keys())]


def find_environment(name: str | None) -> Environment:
    """The environment of this name, or that a factory makes; None: that of the embedded model.

    A factory is ``package.module:factory``. The module may be in the current folder.

    Raises:
        ValueError: there is none, or it needs a library that is not installed.
    """
    name = name or DEFAULT_ENVIRONMENT
    if ":" in name:
        return _from_factory(name)
    if name in ENVIRONMENTS:
        return _environment(name, _load(ENVIRONMENTS[name]))
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return _environment(name, point.load())
    raise ValueError(
        f"--env: expected one of {', '.join(environment_names())}, or package.module:factory, "
        f"got {name!r}"
    )


def _from_factory(reference: str) -> Environment:
    if "" not in sys.path:
        sys.path.insert(0, "")  # a program's path has no current folder
    try:
        factory = _load(reference)
    except (AttributeError, ImportError) as error:
        raise ValueError(f"--env {reference}: cannot be imported: {error}") from error
    return _environment(reference, factory)


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def _environment(name: str, loaded: Any) -> Environment:
    """The environment that an entry point or a factory stands for."""
    found = loaded if isinstance(loaded, Environment) or not callable(loaded) else loaded()
    if isinstance(found, Environment):
        return found
    if callable(loaded) and _is_gymnasium(found):
        from lewm_models.environments.gymnasium_environment import GymnasiumEnvironment

        found.close()
        return GymnasiumEnvironment(loaded)
    raise ValueError(
        f"--env {name}: expected an Environment of lewm_models, or a function that makes an "
        f"environment of gymnasium, got {type(found).__name__}"
    )


def _is_gymnasium(value: Any) -> bool:
    gymnasium = sys.modules.get("gymnasium")  # who makes such an environment has imported it
    return gymnasium is not None and isinstance(value, gymnasium.Env)
