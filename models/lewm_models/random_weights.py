"""Models with random weights, for tests and benchmarks: untrained, but every part has an effect."""

from __future__ import annotations

import torch
from torch import nn

from lewm_models.card import ModelCard
from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM, initialise

PERTURBATION_STD = 0.1
"""Standard deviation of the noise added to norms, biases and BatchNorm statistics."""


def random_model(config: LeWMConfig, seed: int = 0) -> LeWM:
    """Make a model with random weights, in ``eval()`` mode; the same seed gives the same weights.

    The initial weights of training have gates of zero, neutral norms and no biases. With those,
    actions change nothing, and an error in the code of a gate, norm or bias would not show. Here
    all of them differ from their initial values, by little enough that the scale of latents stays
    stable over a roll-out.
    """
    model = LeWM(config)
    generator = torch.Generator().manual_seed(seed)
    initialise(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(noise, alpha=PERTURBATION_STD)
            elif "embedding" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                for name in ("running_mean", "running_var"):
                    statistic = module.get_buffer(name)
                    noise = torch.randn(statistic.shape, generator=generator)
                    statistic.add_(noise.clamp(-3, 3), alpha=PERTURBATION_STD)
    return model.eval()


def random_card(name: str, config: LeWMConfig, provenance: dict[str, object]) -> ModelCard:
    """A card with action statistics that change nothing: mean 0, deviation 1, bounds ±1."""
    action_dim = config.action_dim
    return ModelCard(
        name=name,
        config=config,
        action_mean=(0.0,) * action_dim,
        action_std=(1.0,) * action_dim,
        action_low=(-1.0,) * action_dim,
        action_high=(1.0,) * action_dim,
        provenance={"weights": "random, untrained", **provenance},
    )
