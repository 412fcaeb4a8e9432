"""What the shapes of a public checkpoint's tensors say of its widths and depths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import filter as matching

from lewm_models.checkpoint import CheckpointError
from lewm_models.importing.state_dict import StateDict

BLOCKS = "predictor.transformer.layers"

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
        (f"{BLOCKS}.*.attn.norm.weight", 0),
        (f"{BLOCKS}.*.mlp.net.0.weight", 0),
    ),
    "predictor_output": (
        ("pred_proj.net.0.weight", 1),
        ("predictor.transformer.output_proj.weight", 0),
        ("predictor.transformer.output_proj.bias", 0),
    ),
    "predictor_qkv": ((f"{BLOCKS}.*.attn.to_qkv.weight", 0),),
    "predictor_mlp": (
        (f"{BLOCKS}.*.mlp.net.1.weight", 0),
        (f"{BLOCKS}.*.mlp.net.1.bias", 0),
        (f"{BLOCKS}.*.mlp.net.4.weight", 1),
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
one tensor that differs which is called mis-shaped later, and not all the others."""

DEPTHS = {"encoder_depth": "encoder.layers", "predictor_depth": BLOCKS}


@dataclass(frozen=True)
class Width:
    """A size read from tensors, and what shows it, in words."""

    size: int
    evidence: str


def read_widths(state: StateDict) -> dict[str, Width]:
    """All of `WIDTHS` and `DEPTHS`.

    Raises:
        CheckpointError: no tensor shows one of them.
    """
    widths = {name: _width(state, places) for name, places in WIDTHS.items()}
    return widths | {name: _depth(state, prefix) for name, prefix in DEPTHS.items()}


def _width(state: StateDict, places: tuple[tuple[str, int], ...]) -> Width:
    sizes = [
        (state.tensors[name].shape[axis], name)
        for pattern, axis in places
        for name in matching(state.tensors, pattern)
        if state.tensors[name].ndim > axis
    ]
    if not sizes:
        first = state.spelling(places[0][0].replace("*", "0"))
        raise CheckpointError(f"{first}: missing tensor, or one of too few axes")
    [(common, _)] = Counter(size for size, _ in sizes).most_common(1)
    shown_by = next(name for size, name in sizes if size == common)
    shape = tuple(state.tensors[shown_by].shape)
    return Width(common, f"{state.spelling(shown_by)} has shape {shape}")


def _depth(state: StateDict, prefix: str) -> Width:
    layers: dict[str, list[str]] = {}
    for name in state.tensors:
        if found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name):
            layers.setdefault(found[1], []).append(name)
    if not layers:
        raise CheckpointError(f"{state.spelling(f'{prefix}.0')}: its tensors are missing")
    # A stray tensor makes no layer, nor does a missing one unmake it: each is to be named itself.
    fullest = max(map(len, layers.values()))
    whole = {layer: names for layer, names in layers.items() if 2 * len(names) > fullest}
    last = state.spelling(whole[max(whole, key=int)][0])
    return Width(len(whole), f"there are {len(whole)} layers, up to {last}")
