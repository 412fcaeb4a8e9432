"""A model of random weights, small and quick, in which frames and actions matter."""

from pathlib import Path

from lewm_models.checkpoint import save
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card, random_model

NAME = "random"


def write_random_model(folder: Path, name: str = NAME) -> Path:
    """Write the model's folder and return it."""
    config = PRESETS["edge"]
    save(folder, random_model(config), random_card(name, config, {}))
    return folder
