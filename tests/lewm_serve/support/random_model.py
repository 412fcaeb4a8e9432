"""A small model with random weights. Its plans depend on frames and actions."""

from dataclasses import replace
from pathlib import Path

import torch

from lewm_models.calibration.reference import sha256_of
from lewm_models.card import LearnedDistance, StateProbeCard
from lewm_models.checkpoint import save
from lewm_models.config import PRESETS, StateInput
from lewm_models.distance.network import GoalDistance, PlanProposal
from lewm_models.probe.network import StateProbe
from lewm_models.random_weights import random_card, random_model

MODEL_NAME = "random"


STATES = StateProbeCard(
    network="0" * 64,
    states=("x", "y", "angle"),
    periods=(0.0, 0.0, 360.0),
    training_frames=1000,
    held_out_frames=100,
    r2=(0.9,) * 3,
    error=(0.5,) * 3,
    ridge_r2=(0.8,) * 3,
    ridge_error=(1.0,) * 3,
    low=(0.0, 0.0, -180.0),
    high=(200.0, 200.0, 180.0),
)
"""What a random probe reads."""


def random_probe(latent_dim: int) -> StateProbe:
    """A probe with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return StateProbe(
            torch.zeros(latent_dim),
            torch.ones(latent_dim),
            state_mean=torch.tensor([100.0, 100.0, 0.0]),
            state_std=torch.tensor([50.0, 50.0, 100.0]),
            periods=torch.tensor(STATES.periods),
            width=16,
        )


def describe(probe: StateProbe) -> StateProbeCard:
    """What the card says about a random probe."""
    return replace(STATES, network=sha256_of(probe.to_bytes()))


STATE_INPUT = StateInput(names=("x", "y"), mean=(100.0, 100.0), std=(50.0, 40.0))
"""What a model with a state input takes."""


def write_random_model(
    folder: Path,
    name: str = MODEL_NAME,
    *,
    distance: bool = False,
    probe: bool = False,
    state_input: StateInput | None = None,
) -> Path:
    """Write the model's folder and return it; ``distance`` and ``probe`` add random ones."""
    config = replace(PRESETS["edge"], state_input=state_input)
    card, network, reader = random_card(name, config, {}), None, None
    if probe:
        reader = random_probe(config.latent_dim)
        card = replace(card, probe=describe(reader))
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
    save(folder, random_model(config), card, distance=network, probe=reader)
    return folder
