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
        ("encoder.hidden_act", "relu", "expected 'gelu', got 'relu'"),
        ("encoder.layer_norm_eps", 1e-6, "expected 1e-12, got 1e-06"),
        ("projector.norm_fn.eps", 1e-3, "expected 1e-05, got 0.001"),
    ],
)
def test_an_entry_that_is_missing_or_wrong_is_named(
    source: Path, path: str, value: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"^config.json: {path}: {message}"):
        import_checkpoint(with_config_entry(source, path, value), import_card())


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
