"""The hyper-parameters of a public checkpoint: from its tensors, checked against `config.json`.

`config.json` is a Hydra file whose `_target_` names differ between releases; they are never looked
up. Widths are read from the tensors' shapes, and each number that the file has must agree with
them. Only what no shape shows, such as head counts, comes from the file.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import filter as matching
from typing import Any

from models.card import CardError, config_from_json
from models.checkpoint import CheckpointError
from models.config import IMAGENET_MEAN, IMAGENET_STD, LeWMConfig
from models.importing.state_dict import StateDict

ENCODER_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
"""What `encoder.size` says of the heads where `encoder.num_attention_heads` is not given."""

BLOCKS = "predictor.transformer.layers.*"

WIDTHS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "patch_size": (("encoder.embeddings.patch_embeddings.projection.weight", 2),),
    "encoder_tokens": (("encoder.embeddings.position_embeddings", 1),),
    "encoder_width": (
        ("encoder.embeddings.cls_token", 2),
        ("encoder.layernorm.weight", 0),
        ("encoder.layernorm.bias", 0),
        ("projector.net.0.weight", 1),
    ),
    "encoder_mlp": (
        ("encoder.layers.*.mlp.fc1.weight", 0),
        ("encoder.layers.*.mlp.fc1.bias", 0),
        ("encoder.layers.*.mlp.fc2.weight", 1),
    ),
    "latent_dim": (
        ("predictor.pos_embedding", 2),
        ("projector.net.3.weight", 0),
        ("projector.net.3.bias", 0),
        ("pred_proj.net.3.weight", 0),
        ("pred_proj.net.3.bias", 0),
    ),
    "projector_mlp": (
        ("projector.net.0.weight", 0),
        ("projector.net.0.bias", 0),
        ("projector.net.3.weight", 1),
    ),
    "history": (("predictor.pos_embedding", 1),),
    "predictor_width": (
        ("predictor.transformer.norm.weight", 0),
        ("predictor.transformer.norm.bias", 0),
        (f"{BLOCKS}.attn.norm.weight", 0),
        (f"{BLOCKS}.mlp.net.0.weight", 0),
    ),
    "predictor_output": (
        ("pred_proj.net.0.weight", 1),
        ("predictor.transformer.output_proj.weight", 0),
        ("predictor.transformer.output_proj.bias", 0),
    ),
    "predictor_qkv": ((f"{BLOCKS}.attn.to_qkv.weight", 0),),
    "predictor_mlp": (
        (f"{BLOCKS}.mlp.net.1.weight", 0),
        (f"{BLOCKS}.mlp.net.1.bias", 0),
        (f"{BLOCKS}.mlp.net.4.weight", 1),
    ),
    "pred_proj_mlp": (
        ("pred_proj.net.0.weight", 0),
        ("pred_proj.net.0.bias", 0),
        ("pred_proj.net.3.weight", 1),
    ),
    "block_width": (("action_encoder.patch_embed.weight", 1),),
    "action_smoothed": (
        ("action_encoder.patch_embed.weight", 0),
        ("action_encoder.patch_embed.bias", 0),
        ("action_encoder.embed.0.weight", 1),
    ),
    "action_mlp": (
        ("action_encoder.embed.0.weight", 0),
        ("action_encoder.embed.0.bias", 0),
        ("action_encoder.embed.2.weight", 1),
    ),
}
"""Where each width shows: tensors and their axis. The most common size counts, so that it is the
one tensor that differs which is called mis-shaped, and not all the others."""

DEPTHS = {"encoder_depth": r"encoder\.layers", "predictor_depth": r"predictor\.transformer\.layers"}

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
"""The numbers of `config.json` and the width that each of them is."""

FIXED = {
    "encoder.hidden_act": "gelu",
    "encoder.layer_norm_eps": 1e-12,
    "projector.norm_fn.eps": 1e-5,
    "pred_proj.norm_fn.eps": 1e-5,
}
"""What our model has built in and neither a shape nor a missing tensor would show."""


@dataclass(frozen=True)
class Width:
    """A size read from the tensors, and the tensor that shows it, in words."""

    size: int
    evidence: str


def read_architecture(
    published: Mapping[str, Any], state: StateDict, card: Mapping[str, Any]
) -> LeWMConfig:
    """Hyper-parameters of a checkpoint; the pixels' and actions' ones are the card's.

    Raises:
        CheckpointError: a number of `config.json` is missing, is no integer, or disagrees with a
            tensor's shape; a tensor that shows a width is missing.
        CardError: the card disagrees with the tensors.
    """
    widths = {name: _width(state, places) for name, places in WIDTHS.items()}
    widths |= {name: _depth(state, prefix) for name, prefix in DEPTHS.items()}
    for path, name in NUMBERS.items():
        number = _number(published, path)
        if number is not None and number != widths[name].size:
            raise _disagreement(f"{path} is {number}", widths[name])
    for path, value in FIXED.items():
        if (given := _entry(published, path)) not in (None, value):
            raise CheckpointError(f"config.json: {path}: expected {value!r}, got {given!r:.80}")
    for head in ("projector", "pred_proj"):
        _check_batch_norm(state, head)
    heads, head_dim = _predictor_heads(published, widths["predictor_qkv"])
    dropout = _entry(published, "predictor.dropout")
    read = {name: width.size for name, width in widths.items() if name in LeWMConfig.names()}
    read |= {
        "image_size": _image_size(published, widths["encoder_tokens"], widths["patch_size"].size),
        "encoder_heads": _encoder_heads(published, widths["encoder_width"]),
        "predictor_heads": heads,
        "predictor_head_dim": head_dim,
        "dropout": 0.0 if dropout is None else dropout,
    }
    return _with_card(read, widths, card)


def _width(state: StateDict, places: tuple[tuple[str, int], ...]) -> Width:
    sizes = [
        (tensor.shape[axis], name)
        for pattern, axis in places
        for name in matching(state.tensors, pattern)
        if (tensor := state.tensors[name]).ndim > axis
    ]
    if not sizes:
        first = places[0][0].replace("*", "0")
        raise CheckpointError(f"{state.spelling(first)}: missing tensor")
    size, _ = Counter(size for size, _ in sizes).most_common(1)[0]
    name = next(name for other, name in sizes if other == size)
    return Width(size, _shape(state, name))


def _depth(state: StateDict, prefix: str) -> Width:
    layers = {
        int(found[1]): name
        for name in state.tensors
        if (found := re.match(rf"{prefix}\.(\d{{1,9}})\.", name))
    }
    if not layers:
        raise CheckpointError(f"{state.spelling(prefix.replace(chr(92), '') + '.0')}: missing")
    last = state.spelling(layers[max(layers)])
    return Width(len(layers), f"there are {len(layers)} layers, up to {last}")
