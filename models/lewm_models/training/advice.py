"""What a recording lacks for a good model, said before hours of training."""

from __future__ import annotations

import numpy as np

from lewm_models.calibration.calibrate import MIN_CALIBRATION_FRAMES
from lewm_models.recordings.usable import UsableEpisodes
from lewm_models.training.windows import held_out_episodes

ADVISED_STEPS = 20_000
"""A first try needs about as many steps."""

MIN_EPISODES = 2
"""Training needs as many episodes, because whole ones are held out."""


def held_out(usable: UsableEpisodes) -> tuple[int, int]:
    """The episodes and the frames that training holds out; none of a single episode."""
    if usable.episodes < MIN_EPISODES:
        return 0, 0
    episodes = np.array([steps.episode for steps in usable.ranges])
    frames = np.array([steps.steps for steps in usable.ranges])
    chosen = held_out_episodes(episodes, frames)
    return len(chosen), int(frames[np.isin(episodes, chosen)].sum())


def warnings_about(usable: UsableEpisodes) -> list[str]:
    """One sentence for each thing that training will lack. ``usable`` has some steps."""
    warnings = []
    if usable.episodes < MIN_EPISODES:
        warnings.append(
            "Only one episode can be used, so no model can be trained: training needs at least "
            f"{MIN_EPISODES} episodes, because whole ones are held out."
        )
    if usable.steps < ADVISED_STEPS:
        warnings.append(
            f"Only {usable.steps:,} steps can be used; a first try needs some {ADVISED_STEPS:,}."
        )
    episodes, frames = held_out(usable)
    if 0 < frames < MIN_CALIBRATION_FRAMES:
        warnings.append(
            f"Too few frames are held out to calibrate the model: {frames:,} in {episodes:,} "
            f"episodes, of {MIN_CALIBRATION_FRAMES:,}. An uncalibrated model reports no anomaly. "
            "Record more, or run `lewm models calibrate` on another recording afterwards."
        )
    return warnings
