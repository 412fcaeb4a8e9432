"""The policy that gathers Two-Room's training data: through the door to the goal, very noisily."""

import torch
from torch import Tensor

from lewm_models.environments.two_room import DOOR_Y, WALL_X, distance, same_room

DOOR_REACHED = 10.5
"""Within this distance of the door's centre, in pixels, the policy turns to the goal."""


def waypoint_actions(positions: Tensor, goals: Tensor) -> Tensor:
    """Head for the goal, or for the door's centre first if the goal lies in the other room.

    Source: the public expert policy of Two-Room (`stable_worldmodel`).

    Args:
        positions: where the agents are, (N, 2) float32 pixels.
        goals: where they should be, (N, 2) float32 pixels.

    Returns:
        Directions of length 1, (N, 2) float32; zero for an agent that stands on its waypoint.
    """
    door = positions.new_tensor((WALL_X, DOOR_Y)).expand_as(positions)
    by_door = ~same_room(positions, goals) & (distance(positions, door) > DOOR_REACHED)
    offsets = torch.where(by_door[:, None], door, goals) - positions
    lengths = torch.linalg.vector_norm(offsets, dim=-1, keepdim=True)
    return torch.where(lengths > 1e-8, offsets / lengths.clamp_min(1e-8), 0.0)


class DataPolicy:
    """`waypoint_actions` with noise and, if asked for, repeated actions.

    One generator seeds everything: the same seed and the same calls give the same actions, on
    any device, since it draws where it lives.

    Args:
        generator: the source of all randomness.
        noise_std: standard deviation of the Gaussian noise added to each component before
            clipping, in units of the action. 2.0 is what the public data was gathered with.
        repeat_probability: how likely an agent takes its previous action once more. The public
            collection asks for 0.05, but its code never stores an action to repeat: 0.0 is what
            its data has.

    Raises:
        ValueError: for a negative deviation or a probability outside [0, 1].
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
        """Forget the previous actions, so that the next ones repeat nothing."""
        self._previous = None

    def actions(self, positions: Tensor, goals: Tensor) -> Tensor:
        """Choose the next actions.

        Args:
            positions: where the agents are, (N, 2) float32 pixels.
            goals: where they should be, (N, 2) float32 pixels.

        Returns:
            (N, 2) float32, each component in [-1, 1].

        Raises:
            ValueError: if actions may repeat and N changed without a `reset`.
        """
        count, device = len(positions), positions.device
        drawn_on = self.generator.device
        noise = torch.randn(count, 2, generator=self.generator, device=drawn_on).to(device)
        actions = (waypoint_actions(positions, goals) + self.noise_std * noise).clamp(-1.0, 1.0)
        if self.repeat_probability == 0:
            return actions
        draws = torch.rand(count, 1, generator=self.generator, device=drawn_on).to(device)
        if self._previous is not None:
            if len(self._previous) != count:
                raise ValueError(
                    f"{count} agents after {len(self._previous)}: reset the policy in between"
                )
            actions = torch.where(draws < self.repeat_probability, self._previous, actions)
        self._previous = actions
        return actions
