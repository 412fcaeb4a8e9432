"""The hyper-parameters of a public checkpoint, from its tensors, its `config.json` and the card.

The shapes of the tensors show all widths, depths and norms, and `config.json` has to agree with
them. The numbers of attention heads and the activations are in `config.json` or in the card only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import filter as matching
from typing import Any

import torch
from torch import Tensor

from lewm_models.card import CardError, config_from_json
from lewm_models.checkpoint import CheckpointError
from lewm_models.config import ACTIVATIONS, IMAGENET_MEAN, IMAGENET_STD, LeWMConfig
from lewm_models.importing.settings import Settings, class_name
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
    "history": (("predictor.pos_embedding", 1),),
    "predictor_width": (
        ("predictor.transformer.norm.weight", 0),
        ("predictor.transformer.norm.bias", 0),
        (f"{PREDICTOR_LAYERS}.*.attn.norm.weight", 0),
        (f"{PREDICTOR_LAYERS}.*.mlp.net.0.weight", 0),
    ),
    "predictor_qkv": ((f"{PREDICTOR_LAYERS}.*.attn.to_qkv.weight", 0),),
    "predictor_mlp": (
        (f"{PREDICTOR_LAYERS}.*.mlp.net.1.weight", 0),
        (f"{PREDICTOR_LAYERS}.*.mlp.net.1.bias", 0),
        (f"{PREDICTOR_LAYERS}.*.mlp.net.4.weight", 1),
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

OUTPUT_SOURCES = (
    ("pred_proj.net.0.weight", 1),
    ("predictor.transformer.output_proj.weight", 0),
    ("predictor.transformer.output_proj.bias", 0),
)
"""The tensors that show ``predictor_output``; without them it is ``predictor_width``."""

DEPTH_SOURCES = {"encoder_depth": "encoder.layers", "predictor_depth": PREDICTOR_LAYERS}
"""The prefix of the layers that each depth counts."""

CONFIG_NUMBERS = {
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

PROJECTORS = ("projector", "pred_proj")

FREE_ACTIVATIONS = {
    "encoder": "encoder_activation",
    "projector": "projector_activation",
    "pred_proj": "pred_proj_activation",
}
"""The parts whose activation may be any of `ACTIVATIONS`, and the names of these fields."""

FIXED_ACTIVATIONS = {"predictor": "gelu", "action_encoder": "silu"}
"""The parts that have only one activation."""

ACTIVATION_NAMES = ("hidden_act", "act_fn", "act_layer", "act", "activation", "activation_fn")
"""What the setting of an activation is called: a name, or an object with a ``_target_``."""

SAME_ACTIVATIONS = {"swish": "silu"}
"""Other names of activations."""

NORM_FORMS = {
    "BatchNorm1d": "batchnorm",
    "SyncBatchNorm": "batchnorm",
    "LayerNorm": "layernorm",
    "Identity": "none",
}
"""The names of norms in a projector's ``norm_fn``, and what `LeWM` calls them."""

NORM_SETTINGS = {
    "eps": 1e-5,
    "affine": True,
    "track_running_stats": True,
    "elementwise_affine": True,
    "bias": True,
}
"""The arguments of a projector's ``norm_fn`` that matter, and the only values that `LeWM` has."""

FIXED_SETTINGS = {
    "encoder.layer_norm_eps": 1e-12,
    "encoder.qkv_bias": True,
    "encoder.num_channels": 3,
    **{
        f"{part}.norm_fn.{name}": value
        for part in PROJECTORS
        for name, value in NORM_SETTINGS.items()
    },
    **{
        f"{part}.{name}.approximate": "none"
        for part in (*FREE_ACTIVATIONS, *FIXED_ACTIVATIONS)
        for name in ACTIVATION_NAMES
    },
}
"""Settings of `config.json` that no tensor shows and that `LeWM` has only these values for."""

OTHER_SETTINGS = {
    "encoder.size",
    "encoder.patch_size",
    "encoder.image_size",
    "encoder.num_attention_heads",
    "predictor.heads",
    "predictor.dim_head",
    "predictor.dropout",
}
"""Settings that `read_architecture` uses in other ways."""

TRAINING_SETTINGS = {
    "encoder.pretrained",
    "encoder.use_mask_token",
    "encoder.hidden_dropout_prob",
    "encoder.attention_probs_dropout_prob",
    "encoder.initializer_range",
    "predictor.emb_dropout",
    "projector.norm_fn.momentum",
    "pred_proj.norm_fn.momentum",
    *(f"{part}.{name}.inplace" for part in FREE_ACTIVATIONS for name in ACTIVATION_NAMES),
}
"""Settings that have no effect after training."""

HYDRA_NAMES = ("_target_", "_partial_", "_recursive_", "_convert_")

ENCODER_HEADS_BY_SIZE = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
"""The number of heads for each `encoder.size`, used if `encoder.num_attention_heads` is missing."""

DEFAULT_PIXEL_STATISTICS = {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}


@dataclass(frozen=True)
class Width:
    """A width or depth, and the evidence for it as a clause of an error message."""

    size: int
    evidence: str


def read_architecture(settings: Settings, state: StateDict, card: Mapping[str, Any]) -> LeWMConfig:
    """The hyper-parameters of a checkpoint.

    Args:
        settings: those of `config.json`; may be empty.
        state: the tensors.
        card: may give hyper-parameters, at the top or in ``architecture``; each has to agree.

    Raises:
        CheckpointError: a number is missing or disagrees with the tensors, or a tensor that shows a
            width is missing.
        CardError: the card disagrees with the tensors or holds an impossible value.
    """
    from_card = _card_fields(card)
    widths = _read_widths(state)
    _check_numbers(settings, widths)
    dropout = settings.entry("predictor.dropout")
    names = {field.name for field in fields(LeWMConfig)}
    heads = _predictor_heads(settings, widths, from_card)
    from_checkpoint: dict[str, Any] = {
        **{name: width.size for name, width in widths.items() if name in names},
        **_norms(settings, state),
        **_activations(settings),
        "image_size": _image_size(settings, widths, from_card),
        "encoder_heads": _encoder_heads(settings, widths, from_card),
        "predictor_heads": heads,
        "predictor_head_dim": widths["predictor_qkv"].size // (3 * heads),
        "dropout": 0.0 if dropout is None else dropout,
    }
    return _combine_with_card(from_checkpoint, widths, from_card)


def read_block_width(state: StateDict) -> int:
    """The numbers in one action block.

    Raises:
        CheckpointError: the tensor that shows it is missing.
    """
    return _read_width(state, WIDTH_SOURCES["block_width"]).size


def with_counters(config: LeWMConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the counters of BatchNorm, which older code does not write."""
    counters = {
        f"{name}.net.1.num_batches_tracked": torch.tensor(0)
        for name in PROJECTORS
        if getattr(config, f"{name}_mlp") and getattr(config, f"{name}_norm") == "batchnorm"
    }
    return {**counters, **tensors}


def unknown_settings(settings: Settings) -> list[str]:
    """The paths of the settings that `read_architecture` makes nothing of."""
    known = {*CONFIG_NUMBERS, *FIXED_SETTINGS, *OTHER_SETTINGS, *TRAINING_SETTINGS}
    parts = (*FREE_ACTIVATIONS, *FIXED_ACTIVATIONS)
    known |= {
        f"{part}.{name}{end}"
        for part in parts
        for name in ACTIVATION_NAMES
        for end in ("", ".path")
    }
    known |= {f"{part}{end}" for part in PROJECTORS for end in ("", ".norm_fn", ".norm_fn.path")}
    opened = {path.rpartition(".")[0] for path in known}
    unknown = []
    pending = [(name, value) for name, value in settings.values.items()]
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
    widths |= {name: _read_depth(state, prefix) for name, prefix in DEPTH_SOURCES.items()}
    widths |= {f"{name}_mlp": _projector_width(state, name) for name in PROJECTORS}
    has_output = any(name in state.tensors for name, _ in OUTPUT_SOURCES)
    widths["predictor_output"] = (
        _read_width(state, OUTPUT_SOURCES) if has_output else widths["predictor_width"]
    )
    return widths


def _projector_width(state: StateDict, name: str) -> Width:
    """The hidden width of a projector, 0 if there is no projector."""
    tensors = sorted(tensor for tensor in state.tensors if tensor.startswith(f"{name}."))
    if not tensors:
        return Width(0, f"there are no tensors {state.prefix}{name}")
    if not any(tensor.startswith(f"{name}.net.") for tensor in tensors):
        raise CheckpointError(
            f"{name}: expected a linear map, a norm, an activation and a linear map ({name}.net.0 "
            f"to {name}.net.3) or nothing, got {tensors}"
        )
    sources = ((f"{name}.net.0.weight", 0), (f"{name}.net.0.bias", 0), (f"{name}.net.3.weight", 1))
    return _read_width(state, sources)


def _norms(settings: Settings, state: StateDict) -> dict[str, str]:
    """The norm of each projector that there is."""
    for part in (*FREE_ACTIVATIONS, *FIXED_ACTIVATIONS):
        given = class_name(settings.entry(f"{part}.norm_fn"))
        if part not in PROJECTORS and given not in (None, "LayerNorm"):
            raise settings.error(f"{part}.norm_fn", f"expected 'LayerNorm', got {given!r:.80}")
    return {
        f"{name}_norm": _norm(settings, state, name)
        for name in PROJECTORS
        if any(tensor.startswith(f"{name}.net.") for tensor in state.tensors)
    }


def _norm(settings: Settings, state: StateDict, projector: str) -> str:
    """The norm that the tensors of a projector show; `config.json` has to agree."""
    path, norm = f"{projector}.norm_fn", f"{projector}.net.1"
    kinds = sorted(name[len(norm) + 1 :] for name in state.tensors if name.startswith(f"{norm}."))
    value = settings.entry(path)
    given = class_name(value)
    if given in NORM_FORMS:
        expected: str | None = NORM_FORMS[given]
    elif "norm_fn" in (settings.entry(projector) or {}) and value is None:
        expected = "none"
    elif not isinstance(value, str | dict | None) or "norm" in (given or "").lower():
        raise settings.error(
            path, f"expected one of {', '.join(NORM_FORMS)} or null, got {given or value!r:.80}"
        )
    else:
        expected = None  # the name of another function, which may return any norm
    found = "none"
    if {"running_mean", "running_var"} & set(kinds):
        found = "batchnorm"
    elif {"weight", "bias"} <= set(kinds):
        found = "layernorm"
    elif kinds:
        raise CheckpointError(
            f"{norm}: expected a BatchNorm1d with running_mean and running_var, a LayerNorm with "
            f"weight and bias, or no norm, got {kinds}"
        )
    if expected not in (None, found):
        shown = f"its tensors are {kinds}" if kinds else "there are no such tensors"
        raise settings.disagreement(path, given or "null", f"{state.name_in_file(norm)}: {shown}")
    return found


def _activations(settings: Settings) -> dict[str, str]:
    """The activations that `config.json` names, by their hyper-parameters."""
    named = {}
    for part in (*FREE_ACTIVATIONS, *FIXED_ACTIVATIONS):
        values = settings.entry(part)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise settings.error(part, f"expected an object, got {values!r:.80}")
        allowed = ACTIVATIONS if part in FREE_ACTIVATIONS else (FIXED_ACTIVATIONS[part],)
        given = {
            name: _activation(settings, f"{part}.{name}", allowed)
            for name in ACTIVATION_NAMES
            if name in values
        }
        if len(set(given.values())) > 1:
            raise settings.error(part, f"expected one activation, got {given}")
        if given and part in FREE_ACTIVATIONS:
            named[FREE_ACTIVATIONS[part]] = next(iter(given.values()))
    return named


def _activation(settings: Settings, path: str, allowed: tuple[str, ...]) -> str:
    value = settings.entry(path)
    given = class_name(value)
    name = "" if given is None else SAME_ACTIVATIONS.get(given.lower(), given.lower())
    if name not in allowed:
        expected = " or ".join(map(repr, allowed))
        raise settings.error(path, f"expected {expected}, got {given or value!r:.80}")
    return name


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


def _check_numbers(settings: Settings, widths: Mapping[str, Width]) -> None:
    patch_size = settings.side("encoder.patch_size")
    if patch_size not in (None, widths["patch_size"].size):
        raise settings.disagreement("encoder.patch_size", patch_size, widths["patch_size"].evidence)
    for path, name in CONFIG_NUMBERS.items():
        number = settings.number(path)
        if number is not None and number != widths[name].size:
            raise settings.disagreement(path, number, widths[name].evidence)
    for path, value in FIXED_SETTINGS.items():
        if (given := settings.entry(path)) not in (None, value):
            raise settings.error(path, f"expected {value!r}, got {given!r:.80}")
    for name in PROJECTORS:
        if class_name(settings.entry(name)) == "Identity" and widths[f"{name}_mlp"].size:
            raise settings.disagreement(name, "Identity", widths[f"{name}_mlp"].evidence)


def _image_size(
    settings: Settings, widths: Mapping[str, Width], from_card: Mapping[str, Any]
) -> int:
    patch, tokens = widths["patch_size"].size, widths["encoder_tokens"]
    patches_per_side = math.isqrt(max(0, tokens.size - 1))
    size = settings.side("encoder.image_size")
    if size is None:
        size = patches_per_side * patch
        card_size = from_card.get("image_size")
        if type(card_size) is int and card_size // patch == patches_per_side:
            size = card_size  # pixels beyond the last patch, which no tensor shows
    if patches_per_side**2 + 1 != tokens.size or size // patch != patches_per_side:
        raise settings.disagreement("encoder.image_size", size, tokens.evidence)
    return size


def _encoder_heads(
    settings: Settings, widths: Mapping[str, Width], from_card: Mapping[str, Any]
) -> int:
    heads = settings.number("encoder.num_attention_heads")
    size = settings.entry("encoder.size")
    if size is not None and not isinstance(size, str):
        raise settings.error("encoder.size", f"expected a name, got {size!r:.80}")
    if heads is None and size is not None:
        heads = ENCODER_HEADS_BY_SIZE.get(size)
    if heads is None:
        heads = _heads_of_card(from_card, "encoder_heads")
    if heads is None:
        raise settings.error(
            "encoder.num_attention_heads",
            f"is missing, and encoder.size is {size!r:.80}, not one of "
            f"{sorted(ENCODER_HEADS_BY_SIZE)}; no tensor shows the number of heads, so config.json "
            'or the card\'s "architecture" ("encoder_heads") has to give it',
        )
    if widths["encoder_width"].size % heads:
        raise settings.disagreement(
            "encoder.num_attention_heads", heads, widths["encoder_width"].evidence
        )
    return heads


def _predictor_heads(
    settings: Settings, widths: Mapping[str, Width], from_card: Mapping[str, Any]
) -> int:
    heads = settings.number("predictor.heads") or _heads_of_card(from_card, "predictor_heads")
    if heads is None:
        raise settings.error(
            "predictor.heads",
            "is missing; no tensor shows the number of heads, so config.json or the card's "
            '"architecture" ("predictor_heads") has to give it',
        )
    qkv = widths["predictor_qkv"]
    if qkv.size % (3 * heads):
        raise settings.disagreement("predictor.heads", heads, qkv.evidence)
    head_dim = settings.number("predictor.dim_head")
    if head_dim is not None and 3 * heads * head_dim != qkv.size:
        path = f"predictor.heads is {heads} and predictor.dim_head"
        raise settings.disagreement(path, head_dim, qkv.evidence)
    return heads


def _heads_of_card(from_card: Mapping[str, Any], name: str) -> int | None:
    heads = from_card.get(name)
    if heads is not None and (type(heads) is not int or heads < 1):
        raise CardError(f"{name}: expected an integer of at least 1, got {heads!r:.80}")
    return heads


def _card_fields(card: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters in a card."""
    architecture = card.get("architecture", {})
    if not isinstance(architecture, dict):
        raise CardError(f"architecture: expected an object, got {architecture!r:.80}")
    names = {field.name for field in fields(LeWMConfig)}
    return {**architecture, **{name: value for name, value in card.items() if name in names}}


def _combine_with_card(
    from_checkpoint: dict[str, Any], widths: Mapping[str, Width], from_card: Mapping[str, Any]
) -> LeWMConfig:
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
