"""Versions of a small random model, in folders that a server reads again."""

from dataclasses import replace
from pathlib import Path

from lewm_models.card import ModelCard
from lewm_models.checkpoint import save
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card, random_model
from tests.lewm_serve.support.random_model import MODEL_NAME, describe, random_probe


def write_version(
    folder: Path,
    seed: int = 0,
    *,
    name: str = MODEL_NAME,
    elites: int = 4,
    probe: bool = False,
) -> str:
    """Write a version with other weights, or with other settings on the card; returns its hash.

    ``probe`` adds a random probe of states.
    """
    config = PRESETS["edge"]
    card: ModelCard = random_card(name, config, {})
    card = replace(card, solver=replace(card.solver, samples=16, iterations=2, elites=elites))
    reader = random_probe(config.latent_dim) if probe else None
    if reader is not None:
        card = replace(card, probe=describe(reader))
    return save(folder, random_model(config, seed), card, probe=reader)
