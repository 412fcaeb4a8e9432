"""Two-Room for one agent as a gymnasium environment, registered as `lewm/TwoRoom-v0`.

An import of this module registers the environment. `gymnasium.make` imports the module itself if
the id is `lewm_models.environments.two_room_gym:lewm/TwoRoom-v0`.
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
    """An agent that moves to a goal, by up to 5 pixels per axis and step.

    Observations are (agent x, agent y, goal x, goal y), (4,) float32, in pixels. Actions are (2,)
    float32 in [-1, 1]. The step that ends less than 16 pixels from the goal terminates the episode
    with a reward of 1; all other rewards are 0. An episode is never truncated.

    `info` holds `goal_frame`, (224, 224, 3) uint8, which shows the agent at the goal, and
    `distance`, the distance from the goal in pixels.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: Literal["rgb_array"] | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(
            0, IMAGE_SIZE - 1, shape=(4,), dtype=np.float32
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, shape=(2,), dtype=np.float32)
        self._environment: VectorTwoRoom | None = None
        self._goal_frame = np.empty(0, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the random starts and goals of this and all later episodes.
            options: `position` and `goal`, each (x, y) in pixels, replace the random ones. The
                random value of one does not depend on whether the other is given.

        Raises:
            ValueError: another option, or a point outside the image.
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
        self._environment = VectorTwoRoom(position, goal)
        self._goal_frame = self._environment.goal_frames()[0].numpy()
        return self._observation(self._environment), self._info(self._environment)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the agent by an action (2,); its components are clipped to [-1, 1]."""
        environment = self._started()
        reached = environment.step(torch.as_tensor(action, dtype=torch.float32)[None])
        terminated = bool(reached[0])
        observation, info = self._observation(environment), self._info(environment)
        return observation, float(terminated), terminated, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """A frame (224, 224, 3) uint8, or None without a render mode."""
        if self.render_mode is None:
            return None
        return self._started().frames()[0].numpy()

    def _started(self) -> VectorTwoRoom:
        if self._environment is None:
            raise gymnasium.error.ResetNeeded("reset the environment before its first step")
        return self._environment

    def _observation(self, environment: VectorTwoRoom) -> Observation:
        return torch.cat((environment.positions[0], environment.goals[0])).numpy()

    def _info(self, environment: VectorTwoRoom) -> dict[str, Any]:
        # A copy, so that a caller who changes the frame does not change later ones.
        return {
            "goal_frame": self._goal_frame.copy(),
            "distance": float(environment.distances()[0]),
        }


def _point(name: str, value: object) -> Tensor:
    point = torch.as_tensor(value, dtype=torch.float32)
    if point.shape != (2,) or not bool(((point >= 0) & (point <= IMAGE_SIZE - 1)).all()):
        raise ValueError(f"{name} must be (x, y) within [0, {IMAGE_SIZE - 1}], got {value}")
    return point[None]


gymnasium.register(ENV_ID, entry_point=f"{__name__}:TwoRoomEnv")
