"""Hyper-parameters come from shapes and `config.json`, which have to agree."""

import re
from pathlib import Path
from typing import Any

import pytest

from lewm_models.checkpoint import CheckpointError
from lewm_models.importing import import_checkpoint
from tests.lewm_models.examples import (
    TINY,
    import_card,
    public_config,
    tiny_model,
    write_public_checkpoint,
)
from tests.lewm_models.importing.public_checkpoints import copy_state, with_config_entry

ANY_ACTIVATION = "expected 'gelu' or 'relu' or 'silu'"
ANY_NORM = "expected one of BatchNorm1d, SyncBatchNorm, LayerNorm, Identity or null"


def test_the_size_of_the_encoder_tells_its_heads_if_no_number_does(source: Path) -> None:
    checkpoint = with_config_entry(source, "encoder.num_attention_heads", None)
    _, card = import_checkpoint(checkpoint, import_card())
    assert card.config.encoder_heads == 3


def test_numbers_that_shapes_show_may_be_missing(source: Path) -> None:
    for path in ("encoder.image_size", "predictor.dim_head", "predictor.output_dim"):
        checkpoint = with_config_entry(source, path, None)
        assert import_checkpoint(checkpoint, import_card())[1].config == TINY


@pytest.mark.parametrize(
    ("path", "value", "evidence"),
    [
        ("encoder.patch_size", 14, r"patch_embeddings.projection.weight has shape \(12, 3, 8, 8\)"),
        ("encoder.image_size", 224, r"position_embeddings has shape \(1, 5, 12\)"),
        ("encoder.hidden_size", 192, r"cls_token has shape \(1, 1, 12\)"),
        ("encoder.num_hidden_layers", 12, r"2 layers, up to encoder.layers.1"),
        ("encoder.intermediate_size", 48, r"encoder.layers.0.mlp.fc1.weight has shape \(24, 12\)"),
        ("encoder.num_attention_heads", 5, r"cls_token has shape \(1, 1, 12\)"),
        ("predictor.num_frames", 4, r"predictor.pos_embedding has shape \(1, 3, 8\)"),
        ("predictor.input_dim", 9, r"predictor.pos_embedding has shape \(1, 3, 8\)"),
        ("predictor.hidden_dim", 9, r"predictor.transformer.norm.weight has shape \(8,\)"),
        ("predictor.output_dim", 9, r"pred_proj.net.0.weight has shape \(20, 8\)"),
        ("predictor.depth", 3, r"2 layers, up to predictor.transformer.layers.1"),
        ("predictor.heads", 3, r"attn.to_qkv.weight has shape \(24, 8\)"),
        ("predictor.dim_head", 64, r"attn.to_qkv.weight has shape \(24, 8\)"),
        ("predictor.mlp_dim", 9, r"mlp.net.1.weight has shape \(16, 8\)"),
        ("projector.input_dim", 9, r"cls_token has shape \(1, 1, 12\)"),
        ("projector.output_dim", 9, r"pos_embedding has shape \(1, 3, 8\)"),
        ("projector.hidden_dim", 9, r"projector.net.0.weight has shape \(16, 12\)"),
        ("pred_proj.hidden_dim", 9, r"pred_proj.net.0.weight has shape \(20, 8\)"),
        ("action_encoder.input_dim", 9, r"action_encoder.patch_embed.weight has shape \(5, 10, 1"),
        ("action_encoder.smoothed_dim", 9, r"action_encoder.patch_embed.weight has shape \(5,"),
        ("action_encoder.emb_dim", 9, r"predictor.pos_embedding has shape \(1, 3, 8\)"),
    ],
)
def test_a_number_that_disagrees_with_the_tensors_is_named(
    source: Path, path: str, value: int, evidence: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"{path} is {value}, but .*{evidence}"):
        import_checkpoint(with_config_entry(source, path, value), import_card())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("predictor.heads", None, "is missing"),
        ("predictor.heads", "16", "expected an integer of at least 1, got '16'"),
        ("predictor.heads", 0, "expected an integer of at least 1, got 0"),
        ("predictor.input_dim", "${embed_dim}", "expected an integer"),
        ("encoder.hidden_act", "gelu_new", f"{ANY_ACTIVATION}, got 'gelu_new'"),
        ("encoder.qkv_bias", False, "expected True, got False"),
        ("projector.act_fn", {"_target_": "torch.nn.ELU"}, f"{ANY_ACTIVATION}, got 'ELU'"),
        ("projector.act_fn", "torch.nn.Tanh", f"{ANY_ACTIVATION}, got 'Tanh'"),
        ("projector.act_fn", 3, f"{ANY_ACTIVATION}, got 3"),
        ("pred_proj.act_fn", {"_partial_": True}, f"{ANY_ACTIVATION}, got {{'_partial_': True}}"),
        ("pred_proj.activation", "tanh", f"{ANY_ACTIVATION}, got 'tanh'"),
        ("predictor.act_layer", "torch.nn.SiLU", "expected 'gelu', got 'SiLU'"),
        ("action_encoder.act_fn", "torch.nn.GELU", "expected 'silu', got 'GELU'"),
        ("projector.norm_fn._target_", "torch.nn.RMSNorm", f"{ANY_NORM}, got 'RMSNorm'"),
        ("projector.norm_fn", ["BatchNorm1d"], f"{ANY_NORM}, got ['BatchNorm1d']"),
        ("predictor.norm_fn", "torch.nn.RMSNorm", "expected 'LayerNorm', got 'RMSNorm'"),
        ("encoder.image_size", [16, 24], "expected a square, got [16, 24]"),
        ("encoder.image_size", [16], "expected one or two integers, got [16]"),
        ("encoder.patch_size", [8, 4], "expected a square, got [8, 4]"),
        ("encoder", {"hidden_act": "relu", "act_fn": "gelu"}, "expected one activation, got {"),
        ("projector.norm_fn.affine", False, "expected True, got False"),
        ("encoder", "vit-tiny", "expected an object, got 'vit-tiny'"),
        ("encoder.layer_norm_eps", 1e-6, "expected 1e-12, got 1e-06"),
        ("projector.norm_fn.eps", 1e-3, "expected 1e-05, got 0.001"),
    ],
)
def test_an_entry_that_is_missing_or_wrong_is_named(
    source: Path, path: str, value: Any, message: str
) -> None:
    checkpoint = with_config_entry(source, path, value)
    path = path.removesuffix("._target_")
    with pytest.raises(CheckpointError, match=rf"^config.json: {path}: {re.escape(message)}"):
        import_checkpoint(checkpoint, import_card())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("projector.act_fn", {"_target_": "torch.nn.GELU", "_partial_": True}),
        ("projector.act_fn", {"_target_": "torch.nn.GELU", "approximate": "none"}),
        ("pred_proj.act_fn", "torch.nn.modules.activation.GELU"),
        ("action_encoder.act_fn", "swish"),
        ("projector.norm_fn._target_", "torch.nn.modules.batchnorm.BatchNorm1d"),
        ("encoder.qkv_bias", True),
        ("encoder.hidden_dropout_prob", 0.1),
    ],
)
def test_what_the_model_has_may_be_named(source: Path, path: str, value: Any) -> None:
    _, card = import_checkpoint(with_config_entry(source, path, value), import_card())
    assert "unknown_settings" not in card.provenance


def test_another_kind_of_gelu_is_refused(source: Path) -> None:
    gelu = {"_target_": "torch.nn.GELU", "approximate": "tanh"}
    with pytest.raises(CheckpointError, match=r"projector.act_fn.approximate: expected 'none'"):
        import_checkpoint(with_config_entry(source, "projector.act_fn", gelu), import_card())


@pytest.mark.parametrize(
    ("path", "value"),
    [("loss", {"weight": 1}), ("predictor.causal", False), ("projector.act_fn.x", 1)],
)
def test_a_setting_that_is_not_used_is_listed(source: Path, path: str, value: Any) -> None:
    config = public_config()
    config["projector"]["act_fn"] = {"_target_": "torch.nn.GELU"}
    *parents, last = path.split(".")
    parent = config
    for name in parents:
        parent = parent[name]
    parent[last] = value
    write_public_checkpoint(source, copy_state(tiny_model()), config)
    _, card = import_checkpoint(source, import_card())
    assert card.provenance["unknown_settings"] == [path]


def test_layers_without_numbers_are_missing_layers(source: Path) -> None:
    state = {
        re.sub(r"^encoder\.layers\.\d+", "encoder.layers.x", name): tensor
        for name, tensor in copy_state(tiny_model()).items()
    }
    write_public_checkpoint(source, state, public_config())
    with pytest.raises(CheckpointError, match=r"^encoder\.layers\.0: its tensors are missing"):
        import_checkpoint(source, import_card())


def test_an_encoder_of_unknown_size_needs_a_number_of_heads(source: Path) -> None:
    config = public_config()
    config["encoder"].update(size="gigantic", num_attention_heads=None)
    write_public_checkpoint(source, copy_state(tiny_model()), config)
    with pytest.raises(
        CheckpointError, match=r"encoder\.num_attention_heads: is missing.*gigantic"
    ):
        import_checkpoint(source, import_card())
