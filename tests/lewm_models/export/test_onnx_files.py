"""Exported files run without this project and give what the model gives."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lewm_models import checkpoint
from lewm_models.checkpoint import Checkpoint, CheckpointError
from lewm_models.export import onnx_files
from lewm_models.export.encoder import encoder_graph
from lewm_models.export.onnx_files import ENCODER_FILE, PREDICTOR_FILE, export_onnx
from lewm_models.export.runtime import onnxruntime
from lewm_models.lewm import LeWM
from tests.lewm_models.examples import STATE_INPUT, example_card, tiny_model


def checkpoint_of(model: LeWM) -> Checkpoint:
    return Checkpoint(model, example_card(model), "0123456789abcdef")


def open_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"predictor_width": 12, "predictor_output": 10},
        {"predictor_heads": 1, "predictor_head_dim": 8},
    ],
)
@torch.no_grad()
def test_exported_files_give_what_the_model_gives(tmp_path: Path, changes: dict[str, int]) -> None:
    model = tiny_model(**changes)
    exported = dict(export_onnx(checkpoint_of(model), tmp_path))
    assert set(exported) == {tmp_path / ENCODER_FILE, tmp_path / PREDICTOR_FILE}
    assert {path.name for path in tmp_path.iterdir()} == {
        ENCODER_FILE,
        PREDICTOR_FILE,
        checkpoint.CARD_FILE,
    }
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    (latents,) = open_session(tmp_path / ENCODER_FILE).run(["latents"], {"frames": frames})
    assert np.allclose(latents, model.encode(torch.from_numpy(frames)), atol=1e-5)

    window = latents[None, : model.config.history]
    actions = np.ones((1, model.config.history, model.config.block_width), np.float32)
    predictor = open_session(tmp_path / PREDICTOR_FILE)
    for context in range(1, model.config.history + 1):
        inputs = {"latents": window[:, :context], "actions": actions[:, :context]}
        expected = model.predict(
            torch.from_numpy(inputs["latents"]), torch.from_numpy(inputs["actions"])
        )
        (predicted,) = predictor.run(["next"], inputs)
        assert np.allclose(predicted, expected, atol=1e-5)


def test_exported_files_name_their_model_and_use_standard_operators(tmp_path: Path) -> None:
    list(export_onnx(checkpoint_of(tiny_model()), tmp_path))
    for name in (ENCODER_FILE, PREDICTOR_FILE):
        graph = onnx.load(tmp_path / name)
        assert {entry.key: entry.value for entry in graph.metadata_props} == {
            "model": "example",
            "model_version": "0123456789abcdef",
        }
        assert [opset.domain for opset in graph.opset_import] == [""]


def test_a_file_that_differs_from_the_model_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_model = tiny_model(seed=1)
    monkeypatch.setattr(onnx_files, "encoder_graph", lambda _model: encoder_graph(other_model))
    with pytest.raises(CheckpointError, match=r"encoder\.onnx: differs from the model by"):
        list(export_onnx(checkpoint_of(tiny_model()), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_error_is_nan_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([0.0, float("nan")])
    monkeypatch.setattr(onnx_files, "_relative_error", lambda _actual, _expected: next(errors))
    with pytest.raises(CheckpointError, match=r"encoder\.onnx: differs from the model by nan"):
        list(export_onnx(checkpoint_of(tiny_model()), tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"projector_mlp": 0, "encoder_width": 12, "latent_dim": 12},
        {"projector_norm": "layernorm"},
    ],
)
@torch.no_grad()
def test_an_exported_encoder_takes_states_in_their_units(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = tiny_model(state_input=STATE_INPUT, **changes)
    dict(export_onnx(checkpoint_of(model), tmp_path))
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    states = np.array([[100, -3], [0, -2.5], [np.nan, -3], [90, np.inf]], np.float32)
    inputs = {"frames": frames, "states": states}
    (latents,) = open_session(tmp_path / ENCODER_FILE).run(["latents"], inputs)
    expected = model.encode(torch.from_numpy(frames), torch.from_numpy(states))
    assert np.allclose(latents, expected, atol=1e-5)
    assert not np.allclose(latents[:2], model.encode(torch.from_numpy(frames))[:2], atol=1e-3)
