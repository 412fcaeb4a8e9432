"""A model of random weights, small and quick, in which frames and actions matter."""

from pathlib import Path

import torch

from models.card import ModelCard
from models.checkpoint import save
from models.config import PRESETS
from models.lewm import LeWM, initialise

NAME = "random"


def write_random_model(folder: Path, name: str = NAME) -> Path:
    """Write the model's folder and return it."""
    generator = torch.Generator().manual_seed(0)
    model = LeWM(PRESETS["edge"])
    initialise(model, generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    card = ModelCard(
        name=name,
        config=PRESETS["edge"],
        action_mean=(0.0, 0.0),
        action_std=(0.5, 0.5),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
    )
    save(folder, model.eval(), card)
    return folder
