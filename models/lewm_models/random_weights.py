"""Models of random weights, for benchmarks and tests: untrained, but every part takes effect."""

from __future__ import annotations

import torch
from torch import nn

from lewm_models.card import ModelCard
from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM, initialise

SCALE = 0.1
"""How far norms, biases and BatchNorm statistics are moved, as a standard deviation."""


def random_model(config: LeWMConfig, seed: int = 0) -> LeWM:
    """A model in ``eval()``; the same seed gives the same weights.

    Training starts with closed gates, neutral norms and no biases, so that actions change nothing
    and a mistake in any of them would not show. Here all are open and off their start, by little
    enough that roll-outs keep their scale.
    """
    model = LeWM(config)
    generator = torch.Generator().manual_seed(seed)
    initialise(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(noise, alpha=SCALE)
            elif "embedding" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                for statistic in ("running_mean", "running_var"):
                    value = module.get_buffer(statistic)
                    noise = torch.randn(value.shape, generator=generator)
                    value.add_(noise.clamp(-3, 3), alpha=SCALE)
    return model.eval()


def random_card(name: str, config: LeWMConfig, provenance: dict[str, object]) -> ModelCard:
    """A card whose actions are already z-scored: mean 0, deviation 1, bounds ±1."""
    each = config.action_dim
    return ModelCard(
        name=name,
        config=config,
        action_mean=(0.0,) * each,
        action_std=(1.0,) * each,
        action_low=(-1.0,) * each,
        action_high=(1.0,) * each,
        provenance={"weights": "random, untrained", **provenance},
    )
