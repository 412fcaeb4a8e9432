"""Print a plan of the embedded model as JSON. This also runs where only the client is installed.

Usage: make_plan.py TARGET
"""

import json
import sys
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from lewm_client import PlannerClient

PROGRAM = Path(__file__)
FRAMES = PROGRAM.parents[2] / "docs" / "frames"

TIMEOUT_S = 300.0
"""Much longer than a plan takes, so that the deadline does not end the search."""


def make_plan(target: str) -> dict[str, Any]:
    """Ask a server for a plan and return the parts of it that the tests look at."""
    start, goal = ((FRAMES / name).read_bytes() for name in ("start.png", "goal.png"))
    with PlannerClient(target) as client:
        (model,) = client.models()
        plan = client.plan([start], goal, seed=7, timeout_s=TIMEOUT_S)
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
    print(json.dumps(make_plan(sys.argv[1])))
