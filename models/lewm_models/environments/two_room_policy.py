"""The policy that Two-Room's training data are collected with, and the motion that it gives."""

import torch
from torch import Tensor

from lewm_models.environments.environment import evaluation_seed
from lewm_models.environments.two_room import (
    DOOR_Y,
    GOAL_RADIUS,
    WALL_X,
    VectorTwoRoom,
    distance,
    same_room,
    sample_goals,
    sample_positions,
)

DOOR_RADIUS = 10.5
"""An agent nearer than this to the door's centre, in pixels, heads for its goal."""

NEW_GOAL_RADIUS = GOAL_RADIUS / 2
"""An agent nearer than this to its goal, in pixels, gets a new goal."""


def waypoint_actions(positions: Tensor, goals: Tensor) -> Tensor:
    """Head for the goal, or first for the door's centre if the goal is in the other room.

    Source: the public expert policy of Two-Room (`stable_worldmodel`).

    Args:
        positions: of the agents, (N, 2) float32 pixels.
        goals: of the agents, (N, 2) float32 pixels.

    Returns:
        Directions of length 1, (N, 2) float32; zero for an agent that is at its waypoint.
    """
    door = positions.new_tensor((WALL_X, DOOR_Y)).expand_as(positions)
    to_door = ~same_room(positions, goals) & (distance(positions, door) > DOOR_RADIUS)
    offsets = torch.where(to_door[:, None], door, goals) - positions
    lengths = torch.linalg.vector_norm(offsets, dim=-1, keepdim=True)
    return torch.where(lengths > 1e-8, offsets / lengths.clamp_min(1e-8), 0.0)


class DataPolicy:
    """`waypoint_actions` with noise and, if asked for, repeated actions.

    The same seed and the same calls give the same actions, wherever the positions are, since all
    numbers are drawn on the generator's device.

    Args:
        generator: the source of randomness.
        noise_std: the standard deviation of the Gaussian noise that is added to each component
            before it is clipped, in units of the action. The public data were collected with 2.0.
        repeat_probability: the probability that an agent repeats its previous action. The public
            collection asks for 0.05, but its code never stores an action to repeat, so its data
            were collected with 0.0.

    Raises:
        ValueError: a negative deviation, or a probability outside [0, 1].
    """

    def __init__(
        self,
        generator: torch.Generator,
        *,
        noise_std: float = 2.0,
        repeat_probability: float = 0.0,
    ) -> None:
        if noise_std < 0:
            raise ValueError(f"noise_std must not be negative, got {noise_std}")
        if not 0 <= repeat_probability <= 1:
            raise ValueError(f"repeat_probability must lie in [0, 1], got {repeat_probability}")
        self.generator = generator
        self.noise_std = noise_std
        self.repeat_probability = repeat_probability
        self._previous: Tensor | None = None

    def reset(self) -> None:
        """Forget the previous actions, so that the next call repeats none."""
        self._previous = None

    def actions(self, positions: Tensor, goals: Tensor) -> Tensor:
        """Choose the next actions.

        Args:
            positions: of the agents, (N, 2) float32 pixels.
            goals: of the agents, (N, 2) float32 pixels.

        Returns:
            (N, 2) float32, each component in [-1, 1].

        Raises:
            ValueError: actions may repeat, and N changed without a `reset`.
        """
        count, device = len(positions), positions.device
        generator, drawn_on = self.generator, self.generator.device
        noise = torch.randn(count, 2, generator=generator, device=drawn_on).to(device)
        actions = (waypoint_actions(positions, goals) + self.noise_std * noise).clamp(-1.0, 1.0)
        if self.repeat_probability == 0:
            return actions
        draws = torch.rand(count, 1, generator=generator, device=drawn_on).to(device)
        if self._previous is not None:
            if len(self._previous) != count:
                raise ValueError(
                    f"expected {len(self._previous)} agents, got {count}; reset the policy first"
                )
            actions = torch.where(draws < self.repeat_probability, self._previous, actions)
        self._previous = actions
        return actions


def evaluation_generator(seed: int) -> torch.Generator:
    """The random generator of an evaluation seed, see `evaluation_seed`.

    Raises:
        ValueError: the seed is outside [0, 2³¹).
    """
    # torch's CPU generator uses the lower 32 bits of a seed, which is all that a seed has.
    return torch.Generator().manual_seed(evaluation_seed(seed))


def simulate_trajectories(
    agents: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Simulate agents that the data policy moves from random starts to one goal after another.

    An agent that arrives gets a new goal from both rooms, so that agents keep going through the
    door.

    Returns:
        Positions (steps + 1, agents, 2), the starts first, and the actions between them (steps,
        agents, 2), float32.
    """
    policy = DataPolicy(generator)
    environment = VectorTwoRoom(
        sample_positions(agents, generator), sample_goals(agents, generator)
    )
    positions, actions = [environment.positions], []
    for _ in range(steps):
        actions.append(policy.actions(environment.positions, environment.goals))
        environment.step(actions[-1])
        positions.append(environment.positions)
        new_goals = sample_goals(agents, generator)
        arrived = environment.distances() < NEW_GOAL_RADIUS
        environment.goals = torch.where(arrived[:, None], new_goals, environment.goals)
    return torch.stack(positions), torch.stack(actions)
