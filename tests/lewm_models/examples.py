"""Small models and their cards, and public checkpoints made from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lewm_models.card import ModelCard
from lewm_models.config import LeWMConfig, StateInput
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_card, random_model

PARITY_FOLDER = Path(__file__).parents[1] / "parity"

TINY = LeWMConfig(
    image_size=16,
    patch_size=8,
    encoder_width=12,
    encoder_depth=2,
    encoder_heads=3,
    encoder_mlp=24,
    latent_dim=8,
    projector_mlp=16,
    predictor_width=8,
    predictor_output=8,
    predictor_depth=2,
    predictor_heads=2,
    predictor_head_dim=4,
    predictor_mlp=16,
    pred_proj_mlp=20,
    action_smoothed=5,
    action_mlp=14,
)
"""All parts of the paper's model in a few thousand weights. Most widths differ from each other, so
that code that confuses two of them fails."""


STATE_INPUT = StateInput(names=("x", "y"), mean=(100.0, -3.0), std=(50.0, 0.25))
"""Two states of different units."""


def tiny_model(seed: int = 0, **changes: Any) -> LeWM:
    """A model with random weights; ``changes`` replace hyper-parameters of `TINY`."""
    return random_model(replace(TINY, **changes), seed)


def example_card(model: LeWM, name: str = "example") -> ModelCard:
    """A card with action statistics that change nothing."""
    return random_card(name, model.config, {})


def import_card(config: LeWMConfig = TINY, **more_fields: Any) -> dict[str, Any]:
    """The card that an import needs: what a public checkpoint does not contain."""
    action_dim = config.action_dim
    return {
        "name": "imported",
        "action_dim": action_dim,
        "action_block": config.action_block,
        "action_mean": [0.25] * action_dim,
        "action_std": [0.5] * action_dim,
        "action_low": [-1.0] * action_dim,
        "action_high": [1.0] * action_dim,
        **more_fields,
    }


def public_config(config: LeWMConfig = TINY) -> dict[str, Any]:
    """The `config.json` of a public checkpoint. Its ``_target_`` names must not be imported."""
    target = "tests.lewm_models.forbidden_import.Target"
    projectors = {
        name: {
            "_target_": target,
            "input_dim": input_dim,
            "output_dim": config.latent_dim,
            "hidden_dim": hidden_dim,
            "norm_fn": {"_target_": target, "_partial_": True},
        }
        for name, input_dim, hidden_dim in (
            ("projector", config.encoder_width, config.projector_mlp),
            ("pred_proj", config.predictor_output, config.pred_proj_mlp),
        )
    }
    return {
        "_target_": target,
        "encoder": {
            "_target_": target,
            "size": "tiny",
            "patch_size": config.patch_size,
            "image_size": config.image_size,
            "num_attention_heads": config.encoder_heads,
        },
        "predictor": {
            "_target_": target,
            "num_frames": config.history,
            "input_dim": config.latent_dim,
            "hidden_dim": config.predictor_width,
            "output_dim": config.predictor_output,
            "depth": config.predictor_depth,
            "heads": config.predictor_heads,
            "mlp_dim": config.predictor_mlp,
            "dim_head": config.predictor_head_dim,
            "dropout": config.dropout,
            "emb_dropout": 0.0,
        },
        "action_encoder": {
            "_target_": target,
            "input_dim": config.block_width,
            "emb_dim": config.latent_dim,
        },
        **projectors,
    }


def write_public_checkpoint(
    folder: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    *,
    weights_file: str = "weights.pt",
) -> Path:
    """Write the folder of a public checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / weights_file)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
