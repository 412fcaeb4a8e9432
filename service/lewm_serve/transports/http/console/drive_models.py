"""Which models can drive which simulated robots."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from lewm_models.environments.registry import ENVIRONMENTS, environment_names, find_environment
from lewm_serve.api.responses import ModelDescription
from lewm_serve.errors import InvalidRequest


def drivers(models: Sequence[ModelDescription]) -> dict[str, list[str]]:
    """The names of the served models that can drive the robot of each installed environment.

    Those that were made for the environment come first. A model whose card names no environment
    may have been made for any with as many actions.
    """
    return {name: _drivers_of(name, models) for name in environment_names()}


def check_driver(models: Sequence[ModelDescription], environment: str, model: str) -> None:
    """Refuse a model that cannot drive an environment's robot.

    Raises:
        InvalidRequest: the environment is unknown, or the model cannot drive its robot.
    """
    if environment not in (known := environment_names()):
        raise InvalidRequest(
            "invalid_choice",
            "environment",
            received=environment,
            expected=f"one of {', '.join(known)}",
        )
    if model not in (fitting := _drivers_of(environment, models)):
        expected = f"one that can drive {environment}: {', '.join(fitting) or 'none is served'}"
        raise InvalidRequest("invalid_choice", "model", received=model, expected=expected)


def check_actions(model: str, environment: str, *, model_actions: int, actions: int) -> None:
    """Refuse a model of other actions than the environment has.

    Raises:
        InvalidRequest: it is one.
    """
    if model_actions != actions:
        raise InvalidRequest(
            "shape_mismatch",
            "model",
            received=model,
            expected=f"a model of {actions} actions, as {environment} has",
        )


def _drivers_of(environment: str, models: Sequence[ModelDescription]) -> list[str]:
    made_for = [model.name for model in models if environment in _origins(model)]
    actions = _action_dim(environment)
    return made_for + [
        model.name
        for model in models
        if not _origins(model) and actions in (None, len(model.card["action_low"]))
    ]


def _origins(model: ModelDescription) -> set[str]:
    """The environments that a model names as those it was made for."""
    trained_on = str(model.card["provenance"].get("trained_on"))
    return {model.name, trained_on} & set(environment_names())


@cache
def _action_dim(environment: str) -> int | None:
    """The actions of an environment of this package. Others run in their own process only."""
    return find_environment(environment).action_dim if environment in ENVIRONMENTS else None
