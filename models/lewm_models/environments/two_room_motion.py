"""How agents move when the data-collecting policy drives them from goal to goal."""

from __future__ import annotations

import torch
from torch import Tensor

from lewm_models.environments import two_room
from lewm_models.environments.two_room_policy import DataPolicy

ARRIVED = two_room.GOAL_RADIUS / 2
"""Pixels from its goal at which an agent is given another one."""


def simulate(agents: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Let agents go from random starts to one goal after another.

    A goal that is reached is replaced by one drawn from both rooms, so that they keep crossing
    through the door.

    Returns:
        Positions (steps + 1, agents, 2), the starts first, and the actions (steps, agents, 2)
        between them, float32.
    """
    policy = DataPolicy(generator)
    rooms = two_room.VectorTwoRoom(
        two_room.sample_positions(agents, generator), two_room.sample_goals(agents, generator)
    )
    positions, actions = [rooms.positions], []
    for _ in range(steps):
        actions.append(policy.actions(rooms.positions, rooms.goals))
        rooms.step(actions[-1])
        positions.append(rooms.positions)
        fresh = two_room.sample_goals(agents, generator)
        arrived = rooms.distances() < ARRIVED
        rooms.goals = torch.where(arrived[:, None], fresh, rooms.goals)
    return torch.stack(positions), torch.stack(actions)
