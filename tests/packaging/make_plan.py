"""Print a plan of the embedded model as JSON. This also runs where only the client is installed.

Usage: make_plan.py TARGET START_IMAGE GOAL_IMAGE
"""

import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from lewm_client import PlannerClient

TIMEOUT_S = 300.0
"""Much longer than a plan takes, so that the deadline does not end the search."""


def make_plan(target: str, start: Path, goal: Path) -> dict[str, Any]:
    """Plan from a start image to a goal image; the parts of the plan that the tests look at."""
    with PlannerClient(target) as client:
        (model,) = client.models()
        plan = client.plan([start.read_bytes()], goal.read_bytes(), seed=7, timeout_s=TIMEOUT_S)
    card = MessageToDict(model.card)
    return {
        "model": plan.model,
        "backend": plan.backend,
        "status": plan.status,
        "cost": plan.cost,
        "health": plan.health.status,
        "solver": plan.solver,
        "action_block": plan.action_block,
        "actions": plan.actions.tolist(),
        "action_low": card["action_low"],
        "action_high": card["action_high"],
    }


if __name__ == "__main__":
    _, target, start, goal = sys.argv
    print(json.dumps(make_plan(target, Path(start), Path(goal))))
