"""Two-Room for one agent behind gymnasium's interface, registered as `lewm/TwoRoom-v0`.

Importing this module registers it, as does `gymnasium.make` when given the module's name too:
`lewm_models.environments.two_room_gym:lewm/TwoRoom-v0`.
"""

from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.environments.two_room import (
    IMAGE_SIZE,
    VectorTwoRoom,
    sample_goals,
    sample_positions,
)

ENV_ID = "lewm/TwoRoom-v0"

Observation = NDArray[np.float32]
Action = NDArray[np.float32]


class TwoRoomEnv(gymnasium.Env[Observation, Action]):
    """A dot moves by up to 5 pixels an axis and step to a goal, perhaps through the door.

    Observations are (agent x, agent y, goal x, goal y), (4,) float32 pixels. Actions are (2,)
    float32 in [-1, 1]. An episode terminates, with a reward of 1, on the step that ends strictly
    within 16 pixels of the goal; all other rewards are 0. It never truncates by itself.

    `info` holds `goal_frame`, (224, 224, 3) uint8, the agent drawn at the goal, and `distance`,
    the pixels that are left.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: Literal["rgb_array"] | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, IMAGE_SIZE - 1, (4,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self._rooms: VectorTwoRoom | None = None
        self._goal_frame = np.empty(0, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: where the random starts and goals of this and later episodes begin.
            options: `position` and `goal`, each (x, y) in pixels, replace the random ones. One
                that is given leaves the other as the seed would have it.

        Raises:
            ValueError: for any other option, or a point outside the image.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := options.keys() - {"position", "goal"}:
            raise ValueError(f"options are 'position' and 'goal', got {sorted(unknown)}")
        generator = torch.Generator().manual_seed(int(self.np_random.integers(2**63)))
        position = sample_positions(1, generator)
        goal = sample_goals(1, generator)
        if "position" in options:
            position = _point("position", options["position"])
        if "goal" in options:
            goal = _point("goal", options["goal"])
        self._rooms = VectorTwoRoom(position, goal)
        self._goal_frame = self._rooms.goal_frames()[0].numpy()
        return self._observe(self._rooms), self._inform(self._rooms)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move by an action, (2,), whose components are clipped to [-1, 1]."""
        rooms = self._started()
        reached = rooms.step(torch.as_tensor(action, dtype=torch.float32)[None])
        terminated = bool(reached[0])
        return self._observe(rooms), float(terminated), terminated, False, self._inform(rooms)

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the agent, (224, 224, 3) uint8, if the environment was made to."""
        if self.render_mode is None:
            return None
        return self._started().frames()[0].numpy()

    def _started(self) -> VectorTwoRoom:
        if self._rooms is None:
            raise gymnasium.error.ResetNeeded("reset the environment before its first step")
        return self._rooms

    def _observe(self, rooms: VectorTwoRoom) -> Observation:
        return torch.cat((rooms.positions[0], rooms.goals[0])).numpy()

    def _inform(self, rooms: VectorTwoRoom) -> dict[str, Any]:
        # A copy, so that nobody who draws on it spoils the frames still to be handed out.
        return {"goal_frame": self._goal_frame.copy(), "distance": float(rooms.distances()[0])}


def _point(name: str, value: object) -> Tensor:
    point = torch.as_tensor(value, dtype=torch.float32)
    if point.shape != (2,) or not bool(((point >= 0) & (point <= IMAGE_SIZE - 1)).all()):
        raise ValueError(f"{name} must be (x, y) within [0, {IMAGE_SIZE - 1}], got {value}")
    return point[None]


gymnasium.register(ENV_ID, entry_point=f"{__name__}:TwoRoomEnv")
