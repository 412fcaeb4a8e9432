"""Exported files run without the project and give what the model gives."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lewm_models import checkpoint
from lewm_models.checkpoint import Checkpoint, CheckpointError
from lewm_models.export import files
from lewm_models.export.encoder import encoder_graph
from lewm_models.lewm import LeWM
from tests.lewm_models.examples import card_of, tiny


def loaded(model: LeWM) -> Checkpoint:
    return Checkpoint(model, card_of(model), "0123456789abcdef")


def session(path: Path) -> onnxruntime.InferenceSession:
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
def test_they_give_what_the_model_gives(tmp_path: Path, changes: dict[str, int]) -> None:
    model = tiny(**changes)
    found = dict(files.export(loaded(model), tmp_path))
    assert set(found) == {tmp_path / files.ENCODER, tmp_path / files.PREDICTOR}
    assert {path.name for path in tmp_path.iterdir()} == {
        files.ENCODER,
        files.PREDICTOR,
        checkpoint.CARD,
    }
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    (latents,) = session(tmp_path / files.ENCODER).run(["latents"], {"frames": frames})
    assert np.allclose(latents, model.encode(torch.from_numpy(frames)), atol=1e-5)

    window = latents[None, : model.config.history]
    actions = np.ones((1, model.config.history, model.config.block_width), np.float32)
    predictor = session(tmp_path / files.PREDICTOR)
    for context in range(1, model.config.history + 1):
        feed = {"latents": window[:, :context], "actions": actions[:, :context]}
        expected = model.predict(*map(torch.from_numpy, feed.values()))
        (following,) = predictor.run(["next"], feed)
        assert np.allclose(following, expected, atol=1e-5)


def test_they_say_what_they_are(tmp_path: Path) -> None:
    list(files.export(loaded(tiny()), tmp_path))
    for name in (files.ENCODER, files.PREDICTOR):
        graph = onnx.load(tmp_path / name)
        assert {entry.key: entry.value for entry in graph.metadata_props} == {
            "model": "example",
            "model_version": "0123456789abcdef",
        }
        assert [opset.domain for opset in graph.opset_import] == [
            ""
        ]  # nothing of one runtime's own


def test_a_file_that_differs_from_the_model_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "encoder_graph", lambda _model: encoder_graph(tiny(seed=1)))
    with pytest.raises(CheckpointError, match=r"encoder\.onnx: differs from the model by"):
        list(files.export(loaded(tiny()), tmp_path))
    assert list(tmp_path.iterdir()) == []
