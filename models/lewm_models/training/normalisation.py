"""BatchNorm's statistics, taken afresh once the weights stand still."""

from __future__ import annotations

import torch
from torch import nn

from lewm_models.lewm import LeWM
from lewm_models.training.recording import Windows, batch_order

BATCHES = 64


@torch.no_grad()
def reestimate(model: LeWM, windows: Windows, batch: int, seed: int) -> None:
    """Replace the running averages by plain ones over `BATCHES` training batches; then ``eval()``.

    What all frames share drifts in the encoder from step to step by more than frames differ, so
    averages over past steps put served latents far off those of training (their mean's norm was
    25 in a run stopped at full learning rate, and 0.8 afterwards).
    """
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    order = batch_order(len(windows), min(batch, len(windows)), seed, 0)
    for _, indices in zip(range(BATCHES), order, strict=False):
        frames, actions = (part.to(device) for part in windows.batch(indices))
        latents = model.encode(frames.flatten(0, 1))
        latents = latents.reshape(*frames.shape[:2], latents.shape[-1])
        model.predict(latents[:, :-1], actions)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
