"""Small models and cards, and public checkpoint folders made from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lewm_models.card import ModelCard
from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_card, random_model

PARITY = Path(__file__).parents[1] / "parity"

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
"""Every part of the paper's model at a few thousand values, and no two widths that could be mixed
up by chance but those that have to be equal."""


def tiny(seed: int = 0, **changes: Any) -> LeWM:
    """A model of random weights; ``changes`` replace hyper-parameters of `TINY`."""
    return random_model(replace(TINY, **changes), seed)


def card_of(model: LeWM, name: str = "example") -> ModelCard:
    """A card with plain statistics."""
    return random_card(name, model.config, {})


def statistics(config: LeWMConfig = TINY, **others: Any) -> dict[str, Any]:
    """The card file of an import: what a public checkpoint lacks."""
    each = config.action_dim
    return {
        "name": "imported",
        "action_dim": each,
        "action_block": config.action_block,
        "action_mean": [0.25] * each,
        "action_std": [0.5] * each,
        "action_low": [-1.0] * each,
        "action_high": [1.0] * each,
        **others,
    }


def published(config: LeWMConfig = TINY) -> dict[str, Any]:
    """The `config.json` of a public checkpoint. What its `_target_` names must not be imported."""
    boobytrap = "tests.lewm_models.boobytrap.Trap"
    heads = {
        name: {
            "_target_": boobytrap,
            "input_dim": input_dim,
            "output_dim": config.latent_dim,
            "hidden_dim": hidden_dim,
            "norm_fn": {"_target_": boobytrap, "_partial_": True},
        }
        for name, input_dim, hidden_dim in (
            ("projector", config.encoder_width, config.projector_mlp),
            ("pred_proj", config.predictor_output, config.pred_proj_mlp),
        )
    }
    return {
        "_target_": boobytrap,
        "encoder": {
            "_target_": boobytrap,
            "size": "tiny",
            "patch_size": config.patch_size,
            "image_size": config.image_size,
            "num_attention_heads": config.encoder_heads,
        },
        "predictor": {
            "_target_": boobytrap,
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
            "_target_": boobytrap,
            "input_dim": config.block_width,
            "emb_dim": config.latent_dim,
        },
        **heads,
    }


def publish(
    folder: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    weights: str = "weights.pt",
) -> Path:
    """Write a public checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
