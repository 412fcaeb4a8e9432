"""Two-Room as an environment whose frames take long; it can be interrupted by a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lewm_models.environments.environment import RecordedEpisode
from lewm_models.environments.two_room_environment import TwoRoom

STOP_FILE = "SLOW_ROOMS_STOP_FILE"
"""The variable with the path of a file. While it exists, seeds in it cannot be recorded."""


class SlowRooms(TwoRoom):
    """Two-Room without fast frames."""

    name = "slow-rooms"
    has_fast_frames = False

    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        stop = Path(os.environ.get(STOP_FILE, "absent"))
        if stop.exists() and (str(seed) in stop.read_text().split()):
            raise KeyboardInterrupt
        return super().record(episodes, steps, seed, frame_every)
