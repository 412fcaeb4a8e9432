"""Small requests to the random model as JSON documents, and variations of them."""

from typing import Any

from tests.lewm_serve.support.frames import ACTION_BLOCK, ACTION_DIM, pixels

Document = dict[str, Any]

SMALL_SOLVER: Document = {"samples": 16, "iterations": 2, "elites": 4}

HOLD: Document = {"controller": "hold"}
WAYPOINT: Document = {"controller": "waypoint", "state": [50.0, 50.0, 60.0, 60.0]}
"""Fallbacks."""


def rows(count: int, value: float = 0.25) -> list[list[float]]:
    """Rows of actions."""
    return [[value] * ACTION_DIM for _ in range(count)]


def plan(**changes: Any) -> Document:
    """A small plan with changed fields; `...` removes a field."""
    document = {
        "frames": [pixels(0)],
        "goal": pixels(1),
        "solver": SMALL_SOLVER,
        "seed": 7,
    } | changes
    return {name: value for name, value in document.items() if value is not ...}


def plan_with_solver(**settings: Any) -> Document:
    """A small plan with changed settings of CEM."""
    return plan(solver=SMALL_SOLVER | settings)


def plan_by(solver: str, **settings: Any) -> Document:
    """A small plan by another solver than the card's."""
    return plan(solver={"name": solver, "samples": 16, "iterations": 2} | settings)


def predict(**changes: Any) -> Document:
    """A prediction of two steps with changed fields; `...` removes a field."""
    document = {"frames": [pixels(0)], "actions": rows(2 * ACTION_BLOCK)} | changes
    return {name: value for name, value in document.items() if value is not ...}
