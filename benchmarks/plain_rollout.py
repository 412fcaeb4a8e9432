"""The roll-out that speed is measured against: eager, everything computed in each step."""

from __future__ import annotations

import torch
from torch import Tensor

from lewm_models.lewm import LeWM


@torch.inference_mode()
def plain_rollout(model: LeWM, latents: Tensor, candidates: Tensor) -> Tensor:
    """FrameLatents (1, D), candidates (S, T, A) → the last predicted latents (S, D).

    Each step predicts all positions of the window of the last ``history`` latents: 12 predictor
    tokens a candidate over 5 steps from one frame with a history of 3. This is the roll-out of the
    public planners; its numbers are those of `LeWM.rollout`.
    """
    window = latents.expand(len(candidates), 1, -1)
    for step in range(candidates.shape[1]):
        first = max(0, step + 1 - model.config.history)
        predicted = model.predict(window, candidates[:, first : step + 1])
        window = torch.cat([window, predicted[:, -1:]], dim=1)[:, -model.config.history :]
    return window[:, -1]
