"""The hyper-parameters of a public checkpoint, from its tensors, its `config.json` and the card.

The shapes of the tensors show all widths and depths, and `config.json` has to agree with them. The
numbers of attention heads are in `config.json` only. It is a Hydra file, whose ``_target_`` names
differ between releases; they are never imported. The names of activations and norms are compared
with what `LeWM` has; other names are ignored.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import filter as matching
from typing import Any

from lewm_models.card import CardError, config_from_json
from lewm_models.checkpoint import CheckpointError
from lewm_models.config import IMAGENET_MEAN, IMAGENET_STD, LeWMConfig
from lewm_models.importing.state_dict import StateDict

PREDICTOR_LAYERS = "predictor.transformer.layers"

WIDTH_SOURCES: Mapping[str, tuple[tuple[str, int], ...]] = {
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
        (f"{PREDICTOR_LAYERS}.*.attn.norm.weight", 0),
        (f"{PREDICTOR_LAYERS}.*.mlp.net.0.weight", 0),
    ),
    "predictor_output": (
        ("pred_proj.net.0.weight", 1),
        ("predictor.transformer.output_proj.weight", 0),
        ("predictor.transformer.output_proj.bias", 0),
    ),
    "predictor_qkv": ((f"{PREDICTOR_LAYERS}.*.attn.to_qkv.weight", 0),),
    "predictor_mlp": (
        (f"{PREDICTOR_LAYERS}.*.mlp.net.1.weight", 0),
        (f"{PREDICTOR_LAYERS}.*.mlp.net.1.bias", 0),
        (f"{PREDICTOR_LAYERS}.*.mlp.net.4.weight", 1),
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
"""The tensors (as patterns) and axes that show each width. The most common size is taken, so that
an error later names the one tensor that differs and not all the others."""

DEPTH_SOURCES = {"encoder_depth": "encoder.layers", "predictor_depth": PREDICTOR_LAYERS}
"""The prefix of the layers that each depth counts."""

CONFIG_NUMBERS = {
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
"""Numbers of `config.json`, and the width or depth that each has to agree with."""

ACTIVATIONS = {
    "encoder": "gelu",
    "predictor": "gelu",
    "projector": "gelu",
    "pred_proj": "gelu",
    "action_encoder": "silu",
}
"""The parts of `config.json`, and the activation that `LeWM` has in each."""

ACTIVATION_NAMES = ("hidden_act", "act_fn", "act_layer", "act", "activation", "activation_fn")
"""What the setting of an activation is called: a name, or an object with a ``_target_``."""

SAME_ACTIVATIONS = {"swish": "silu"}
"""Other names of activations."""

NORM_SETTINGS = {"eps": 1e-5, "affine": True, "track_running_stats": True}
"""The arguments of a projector's ``norm_fn`` that matter, and the only values that `LeWM` has."""

FIXED_SETTINGS = {
    "encoder.layer_norm_eps": 1e-12,
    "encoder.qkv_bias": True,
    "encoder.num_channels": 3,
    **{
        f"{part}.norm_fn.{name}": value
        for part in ("projector", "pred_proj")
        for name, value in NORM_SETTINGS.items()
    },
    **{f"{part}.{name}.approximate": "none" for part in ACTIVATIONS for name in ACTIVATION_NAMES},
}
"""Settings of `config.json` that no tensor shows and that `LeWM` has only these values for."""

OTHER_SETTINGS = {
    "encoder.size",
    "encoder.image_size",
    "encoder.num_attention_heads",
    "predictor.heads",
    "predictor.dim_head",
    "predictor.dropout",
}
"""Settings that `read_architecture` uses in other ways."""

TRAINING_SETTINGS = {
    "encoder.hidden_dropout_prob",
    "encoder.attention_probs_dropout_prob",
    "encoder.initializer_range",
    "predictor.emb_dropout",
    "projector.norm_fn.momentum",
    "pred_proj.norm_fn.momentum",
}
"""Settings that have no effect after training."""

BATCH_NORMS = ("BatchNorm1d", "SyncBatchNorm")
"""The norms of projectors that `LeWM` can be. Tensors show which norm a projector has."""

HYDRA_NAMES = ("_target_", "_partial_", "_recursive_", "_convert_")

ENCODER_HEADS_BY_SIZE = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
"""The number of heads for each `encoder.size`, used if `encoder.num_attention_heads` is missing."""

DEFAULT_PIXEL_STATISTICS = {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}


@dataclass(frozen=True)
class Width:
    """A width or depth, and the evidence for it as a clause of an error message."""

    size: int
    evidence: str


def read_architecture(
    published: Mapping[str, Any], state: StateDict, card: Mapping[str, Any]
) -> LeWMConfig:
    """The hyper-parameters of a checkpoint.

    Args:
        published: the content of `config.json`.
        state: the tensors.
        card: may give hyper-parameters, at the top or in ``architecture``; each has to agree.

    Raises:
        CheckpointError: `config.json` lacks a number or disagrees with the tensors, or a tensor
            that shows a width is missing.
        CardError: the card disagrees with the tensors or holds an impossible value.
    """
    widths = _read_widths(state)
    _check_config_numbers(published, widths)
    _check_named_parts(published)
    dropout = _entry(published, "predictor.dropout")
    names = {field.name for field in fields(LeWMConfig)}
    from_checkpoint: dict[str, Any] = {
        **{name: width.size for name, width in widths.items() if name in names},
        "image_size": _image_size(published, widths),
        "encoder_heads": _encoder_heads(published, widths),
        "predictor_heads": _predictor_heads(published, widths),
        "dropout": 0.0 if dropout is None else dropout,
    }
    heads = from_checkpoint["predictor_heads"]
    from_checkpoint["predictor_head_dim"] = widths["predictor_qkv"].size // (3 * heads)
    return _combine_with_card(from_checkpoint, widths, card)


def unknown_settings(published: Mapping[str, Any]) -> list[str]:
    """The paths in `config.json` that `read_architecture` makes nothing of."""
    known = {*CONFIG_NUMBERS, *FIXED_SETTINGS, *OTHER_SETTINGS, *TRAINING_SETTINGS}
    known |= {f"{part}.{name}" for part in ACTIVATIONS for name in ACTIVATION_NAMES}
    known |= {"projector.norm_fn", "pred_proj.norm_fn"}
    opened = {path.rpartition(".")[0] for path in known}
    unknown = []
    pending = [(name, value) for name, value in published.items()]
    while pending:
        path, value = pending.pop()
        if path.rpartition(".")[2] in HYDRA_NAMES:
            continue
        if path in opened and isinstance(value, dict):
            pending += [(f"{path}.{name}", entry) for name, entry in value.items()]
        elif path not in known:
            unknown.append(path)
    return sorted(unknown)


def _read_widths(state: StateDict) -> dict[str, Width]:
    widths = {name: _read_width(state, sources) for name, sources in WIDTH_SOURCES.items()}
    return widths | {name: _read_depth(state, prefix) for name, prefix in DEPTH_SOURCES.items()}


def _read_width(state: StateDict, sources: tuple[tuple[str, int], ...]) -> Width:
    sizes = [
        (state.tensors[name].shape[axis], name)
        for pattern, axis in sources
        for name in matching(state.tensors, pattern)
        if state.tensors[name].ndim > axis
    ]
    if not sizes:
        first = state.name_in_file(sources[0][0].replace("*", "0"))
        raise CheckpointError(f"{first}: missing tensor, or one with too few axes")
    [(size, _)] = Counter(size for size, _ in sizes).most_common(1)
    shown_by = next(name for name_size, name in sizes if name_size == size)
    shape = tuple(state.tensors[shown_by].shape)
    return Width(size, f"{state.name_in_file(shown_by)} has shape {shape}")


def _read_depth(state: StateDict, prefix: str) -> Width:
    layers: dict[str, list[str]] = {}
    for name in state.tensors:
        if match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name):
            layers.setdefault(match[1], []).append(name)
    if not layers:
        raise CheckpointError(f"{state.name_in_file(f'{prefix}.0')}: its tensors are missing")
    # A layer counts if more than half of its tensors are there: then an error later names the one
    # tensor that is missing or unknown.
    most_tensors = max(map(len, layers.values()))
    counted = {layer: names for layer, names in layers.items() if 2 * len(names) > most_tensors}
    last = state.name_in_file(counted[max(counted, key=int)][0])
    return Width(len(counted), f"there are {len(counted)} layers, up to {last}")


def _check_config_numbers(published: Mapping[str, Any], widths: Mapping[str, Width]) -> None:
    for path, name in CONFIG_NUMBERS.items():
        number = _number(published, path)
        if number is not None and number != widths[name].size:
            raise _disagreement(path, number, widths[name])
    for path, value in FIXED_SETTINGS.items():
        if (given := _entry(published, path)) not in (None, value):
            raise CheckpointError(f"config.json: {path}: expected {value!r}, got {given!r:.80}")


def _check_named_parts(published: Mapping[str, Any]) -> None:
    """Refuse activations and norms that `LeWM` does not have."""
    for part, activation in ACTIVATIONS.items():
        settings = published.get(part, {})
        if not isinstance(settings, dict):
            raise CheckpointError(f"config.json: {part}: expected an object, got {settings!r:.80}")
        for name in ACTIVATION_NAMES:
            if name not in settings:
                continue
            given = _class_name(settings[name])
            if given is None or SAME_ACTIVATIONS.get(given.lower(), given.lower()) != activation:
                raise CheckpointError(
                    f"config.json: {part}.{name}: expected {activation!r}, "
                    f"got {given or settings[name]!r:.80}"
                )
        norm_fn = settings.get("norm_fn", {})
        norm = _class_name(norm_fn)
        is_other = norm is not None and "norm" in norm.lower() and norm not in BATCH_NORMS
        if is_other or not isinstance(norm_fn, str | dict):
            raise CheckpointError(
                f"config.json: {part}.norm_fn: expected {BATCH_NORMS[0]!r}, "
                f"got {norm or norm_fn!r:.80}"
            )


def _class_name(value: object) -> str | None:
    """The last part of the name of a function or class; None if the value has no name."""
    if isinstance(value, dict):
        value = value.get("_target_")
    return value.rpartition(".")[2] if isinstance(value, str) else None


def _image_size(published: Mapping[str, Any], widths: Mapping[str, Width]) -> int:
    patch, tokens = widths["patch_size"].size, widths["encoder_tokens"]
    patches_per_side = math.isqrt(max(0, tokens.size - 1))
    size = _number(published, "encoder.image_size")
    if size is None:
        size = patches_per_side * patch
    if patches_per_side**2 + 1 != tokens.size or size // patch != patches_per_side:
        raise _disagreement("encoder.image_size", size, tokens)
    return size


def _encoder_heads(published: Mapping[str, Any], widths: Mapping[str, Width]) -> int:
    heads = _number(published, "encoder.num_attention_heads")
    size = _entry(published, "encoder.size")
    if size is not None and not isinstance(size, str):
        raise CheckpointError(f"config.json: encoder.size: expected a name, got {size!r:.80}")
    if heads is None and size is not None:
        heads = ENCODER_HEADS_BY_SIZE.get(size)
    if heads is None:
        raise CheckpointError(
            "config.json: encoder.num_attention_heads: is missing, and encoder.size is "
            f"{size!r:.80}, not one of {sorted(ENCODER_HEADS_BY_SIZE)}; no tensor shows the number "
            "of heads"
        )
    if widths["encoder_width"].size % heads:
        raise _disagreement("encoder.num_attention_heads", heads, widths["encoder_width"])
    return heads


def _predictor_heads(published: Mapping[str, Any], widths: Mapping[str, Width]) -> int:
    heads = _number(published, "predictor.heads")
    if heads is None:
        raise CheckpointError(
            "config.json: predictor.heads: is missing; no tensor shows the number of heads"
        )
    qkv = widths["predictor_qkv"]
    if qkv.size % (3 * heads):
        raise _disagreement("predictor.heads", heads, qkv)
    head_dim = _number(published, "predictor.dim_head")
    if head_dim is not None and 3 * heads * head_dim != qkv.size:
        raise _disagreement(f"predictor.heads is {heads} and predictor.dim_head", head_dim, qkv)
    return heads


def _combine_with_card(
    from_checkpoint: dict[str, Any], widths: Mapping[str, Width], card: Mapping[str, Any]
) -> LeWMConfig:
    architecture = card.get("architecture", {})
    if not isinstance(architecture, dict):
        raise CardError(f"architecture: expected an object, got {architecture!r:.80}")
    names = {field.name for field in fields(LeWMConfig)}
    top_level = {name: value for name, value in card.items() if name in names}
    from_card = {**architecture, **top_level}
    config = config_from_json({**DEFAULT_PIXEL_STATISTICS, **from_checkpoint, **from_card})
    for name, value in from_checkpoint.items():
        if getattr(config, name) != value:
            evidence = f": {widths[name].evidence}" if name in widths else ""
            raise CardError(
                f"{name}: is {from_card[name]!r}, but {value} in the checkpoint{evidence}"
            )
    if config.block_width != widths["block_width"].size:
        raise CardError(
            f"action_dim, action_block: are {config.action_dim} and {config.action_block}, "
            f"a block of {config.block_width} values, but {widths['block_width'].evidence}"
        )
    return config


def _entry(published: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, None if there is none."""
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
