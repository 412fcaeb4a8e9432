"""The hyper-parameters of a public checkpoint: its tensors' widths, and what no shape shows.

`config.json` is a Hydra file whose `_target_` names differ between releases; they are never looked
up. Each of its numbers has to agree with the tensors, and head counts come from it alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lewm_models.card import CardError, config_from_json
from lewm_models.checkpoint import CheckpointError
from lewm_models.config import IMAGENET_MEAN, IMAGENET_STD, LeWMConfig
from lewm_models.importing.widths import Width

NUMBERS = {
    "encoder.patch_size": "patch_size",
    "encoder.hidden_size": "encoder_width",
    "encoder.num_hidden_layers": "encoder_depth",
    "encoder.intermediate_size": "encoder_mlp",
    "projector.input_dim": "encoder_width",
    "projector.hidden_dim": "projector_mlp",
    "projector.output_dim": "latent_dim",
    "predictor.num_frames": "history",
    "predictor.input_dim": "latent_dim",
    "predictor.hidden_dim": "predictor_width",
    "predictor.output_dim": "predictor_output",
    "predictor.depth": "predictor_depth",
    "predictor.mlp_dim": "predictor_mlp",
    "pred_proj.input_dim": "predictor_output",
    "pred_proj.hidden_dim": "pred_proj_mlp",
    "pred_proj.output_dim": "latent_dim",
    "action_encoder.input_dim": "block_width",
    "action_encoder.smoothed_dim": "action_smoothed",
    "action_encoder.emb_dim": "latent_dim",
}
"""Numbers of `config.json` and the width that each of them is."""

BUILT_IN = {
    "encoder.hidden_act": "gelu",
    "encoder.layer_norm_eps": 1e-12,
    "projector.norm_fn.eps": 1e-5,
    "pred_proj.norm_fn.eps": 1e-5,
}
"""What is fixed in our model and shows in no tensor: another value would be another model."""

ENCODER_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
"""What `encoder.size` says of heads where `encoder.num_attention_heads` is not given."""

PIXELS = {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}
"""What is assumed where the card is silent."""


def read_architecture(
    published: Mapping[str, Any], widths: Mapping[str, Width], card: Mapping[str, Any]
) -> LeWMConfig:
    """Put `config.json`, the tensors' widths and the card together.

    Raises:
        CheckpointError: `config.json` lacks something, or disagrees with the tensors.
        CardError: the card disagrees with the tensors, or holds an impossible value.
    """
    for path, name in NUMBERS.items():
        number = _number(published, path)
        if number is not None and number != widths[name].size:
            raise _disagreement(path, number, widths[name])
    for path, value in BUILT_IN.items():
        if (given := _entry(published, path)) not in (None, value):
            raise CheckpointError(f"config.json: {path}: expected {value!r}, got {given!r:.80}")
    dropout = _entry(published, "predictor.dropout")
    names = {field.name for field in fields(LeWMConfig)}
    read: dict[str, Any] = {
        **{name: width.size for name, width in widths.items() if name in names},
        "image_size": _image_size(published, widths),
        "encoder_heads": _encoder_heads(published, widths),
        "predictor_heads": _predictor_heads(published, widths),
        "dropout": 0.0 if dropout is None else dropout,
    }
    read["predictor_head_dim"] = widths["predictor_qkv"].size // (3 * read["predictor_heads"])
    return _with_card(read, widths, card)


def _image_size(published: Mapping[str, Any], widths: Mapping[str, Width]) -> int:
    patch, tokens = widths["patch_size"].size, widths["encoder_tokens"]
    side = math.isqrt(max(0, tokens.size - 1))
    size = _number(published, "encoder.image_size")
    if size is None:
        size = side * patch
    if side * side + 1 != tokens.size or size // patch != side:
        raise _disagreement("encoder.image_size", size, tokens)
    return size


def _encoder_heads(published: Mapping[str, Any], widths: Mapping[str, Width]) -> int:
    heads = _number(published, "encoder.num_attention_heads")
    size = _entry(published, "encoder.size")
    if heads is None:
        heads = ENCODER_HEADS.get(size) if isinstance(size, str) else None
    if heads is None:
        raise CheckpointError(
            "config.json: encoder.num_attention_heads: is missing, and encoder.size is "
            f"{size!r:.80}, not one of {sorted(ENCODER_HEADS)}; no tensor shows how many heads"
        )
    if widths["encoder_width"].size % heads:
        raise _disagreement("encoder.num_attention_heads", heads, widths["encoder_width"])
    return heads


def _predictor_heads(published: Mapping[str, Any], widths: Mapping[str, Width]) -> int:
    heads = _number(published, "predictor.heads")
    if heads is None:
        raise CheckpointError(
            "config.json: predictor.heads: is missing; no tensor shows how many heads"
        )
    qkv = widths["predictor_qkv"]
    if qkv.size % (3 * heads):
        raise _disagreement("predictor.heads", heads, qkv)
    head_dim = _number(published, "predictor.dim_head")
    if head_dim is not None and 3 * heads * head_dim != qkv.size:
        raise _disagreement(f"predictor.heads is {heads} and predictor.dim_head", head_dim, qkv)
    return heads


def _with_card(
    read: dict[str, Any], widths: Mapping[str, Width], card: Mapping[str, Any]
) -> LeWMConfig:
    nested = card.get("architecture", {})
    if not isinstance(nested, dict):
        raise CardError(f"architecture: expected an object, got {nested!r:.80}")
    names = {field.name for field in fields(LeWMConfig)}
    told = {**nested, **{name: value for name, value in card.items() if name in names}}
    config = config_from_json({**PIXELS, **read, **told})
    for name, value in read.items():
        if getattr(config, name) != value:
            evidence = f": {widths[name].evidence}" if name in widths else ""
            raise CardError(f"{name}: is {told[name]!r}, but {value} in the checkpoint{evidence}")
    if config.block_width != widths["block_width"].size:
        raise CardError(
            f"action_dim, action_block: are {config.action_dim} and {config.action_block}, "
            f"a block of {config.block_width} values, but {widths['block_width'].evidence}"
        )
    return config


def _entry(published: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    value: Any = published
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _number(published: Mapping[str, Any], path: str) -> int | None:
    value = _entry(published, path)
    if value is not None and (type(value) is not int or value < 1):
        raise CheckpointError(
            f"config.json: {path}: expected an integer of at least 1, got {value!r:.80}"
        )
    return value


def _disagreement(path: str, number: int, width: Width) -> CheckpointError:
    return CheckpointError(f"config.json: {path} is {number}, but {width.evidence}")
