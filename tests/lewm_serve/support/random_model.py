"""A small model with random weights. Its plans depend on frames and actions."""

from dataclasses import replace
from pathlib import Path

import torch

from lewm_models.calibration.reference import sha256_of
from lewm_models.card import LearnedDistance
from lewm_models.checkpoint import save
from lewm_models.config import PRESETS
from lewm_models.distance.network import GoalDistance, PlanProposal
from lewm_models.random_weights import random_card, random_model

MODEL_NAME = "random"


def write_random_model(folder: Path, name: str = MODEL_NAME, *, distance: bool = False) -> Path:
    """Write the model's folder and return it; ``distance`` adds a random one."""
    config = PRESETS["edge"]
    card, network = random_card(name, config, {}), None
    if distance:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = GoalDistance(
                torch.zeros(config.latent_dim), torch.ones(config.latent_dim), width=32
            )
            bound = torch.ones(config.block_width)
            network.proposal = PlanProposal(
                config.latent_dim, -bound, bound, horizon=card.solver.horizon, width=16
            )
        described = LearnedDistance(
            network=sha256_of(network.to_bytes()),
            training_frames=1000,
            held_out_frames=100,
            rank_correlation=0.9,
            mean_error=1.5,
            next_frame=1.0,
            same_frame=0.1,
        )
        card = replace(card, distance=described)
    save(folder, random_model(config), card, distance=network)
    return folder
