"""What ordinary latents look like: the norms of a model's latents of held-out frames."""

from __future__ import annotations

import torch
from torch import Tensor

from models.card import Calibration
from models.lewm import LeWM

LIMIT_QUANTILE = 0.999
"""The share of ordinary frames whose norm is called ordinary."""

ROWS = 256


@torch.inference_mode()
def calibrate(model: LeWM, frames: Tensor) -> Calibration:
    """Calibrate on frames (N, H, H, 3) uint8 that the model was not trained on; N ≥ 2."""
    model.eval()
    device = next(model.parameters()).device
    norms = torch.cat(
        [model.encode(part.to(device)).norm(dim=-1) for part in torch.split(frames, ROWS)]
    )
    mean, std = norms.mean(), norms.std()
    zscores = ((norms - mean) / std).abs()
    return Calibration(
        frames=len(frames),
        norm_mean=float(mean),
        norm_std=float(std),
        zscore_limit=float(zscores.quantile(LIMIT_QUANTILE)),
    )
