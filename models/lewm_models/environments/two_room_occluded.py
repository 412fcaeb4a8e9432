"""Two-Room with an occluder: a grey bar before the camera hides the agent in a third of the frames.

The rooms, the policy and the tasks are those of Two-Room. The bar reaches over both rooms, below
the door, and does not move. No pixel shows an agent whose middle is well behind it: the faint rim
of its dot, which reaches 41 pixels far, is not drawn either. It is for studies of models that see
the agent's position beside the pixels (`lewm train --state-input`):

    lewm train --env lewm_models.environments.two_room_occluded:OCCLUDED_TWO_ROOM --state-input
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lewm_models.environments.environment import FloatArray, Frame, RecordedEpisode
from lewm_models.environments.two_room import background
from lewm_models.environments.two_room_environment import TwoRoom, TwoRoomSimulation

OCCLUDER_GREY = 128
OCCLUDER_TOP, OCCLUDER_BOTTOM = 84, 176
"""The rows of pixels that the bar covers."""

DOT_RADIUS = 14.0
"""Two standard deviations of the agent's dot: an agent this far inside the bar is hidden."""


class OccludedSimulation(TwoRoomSimulation):
    """One agent, and the bar before it."""

    def frame(self) -> Frame:
        return occlude(super().frame(), self.state())


class OccludedTwoRoom(TwoRoom):
    """See the module."""

    name = "two-room-occluded"

    def simulation(self) -> OccludedSimulation:
        return OccludedSimulation()

    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        for episode in super().record(episodes, steps, seed, frame_every):
            frames = occlude(episode.frames, episode.states[::frame_every])
            yield replace(episode, frames=frames)


def occlude(frames: Frame, states: FloatArray) -> Frame:
    """Draw the bar over frames (…, 224, 224, 3) of agents at these positions (…, 2), in place."""
    frames[hides(states)] = background(torch.device("cpu")).numpy()
    frames[..., OCCLUDER_TOP : OCCLUDER_BOTTOM + 1, :, :] = OCCLUDER_GREY
    return frames


def hides(states: FloatArray) -> NDArray[np.bool_]:
    """Whether the bar hides agents at these positions (…, 2): (…,) bool."""
    heights = states[..., 1]
    low, high = OCCLUDER_TOP + DOT_RADIUS, OCCLUDER_BOTTOM - DOT_RADIUS
    return np.asarray((heights > low) & (heights < high))


OCCLUDED_TWO_ROOM = OccludedTwoRoom()
