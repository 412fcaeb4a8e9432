"""Recorded episodes, as `lewm train` collects them, to calibrate on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lewm_models.calibration.calibrate import Episode
from lewm_models.preprocessing import resize
from lewm_models.training.recording import Recording

MOST_FRAMES = 50_000
"""More only take time: a limit is a matter of rare frames, not of rarer ones."""


def recorded_episodes(recording: Recording, episodes: range, image_size: int) -> Iterator[Episode]:
    """These episodes, or evenly chosen ones where they hold more than `MOST_FRAMES` frames."""
    most = max(1, MOST_FRAMES // recording.frames.shape[1])
    chosen = np.linspace(episodes.start, episodes.stop - 1, min(len(episodes), most))
    for index in chosen.astype(np.int64):
        yield Episode(
            resize(torch.from_numpy(np.array(recording.frames[index])), image_size),
            torch.from_numpy(np.array(recording.actions[index])),
        )
