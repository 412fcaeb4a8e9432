"""A small model with random weights. Its plans depend on frames and actions."""

from pathlib import Path

from lewm_models.checkpoint import save
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card, random_model

MODEL_NAME = "random"


def write_random_model(folder: Path, name: str = MODEL_NAME) -> Path:
    """Write the model's folder and return it."""
    config = PRESETS["edge"]
    save(folder, random_model(config), random_card(name, config, {}))
    return folder
