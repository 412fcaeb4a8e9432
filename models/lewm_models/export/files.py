"""`lewm models export`: a model as ONNX files, checked against the model before they stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from lewm_models.checkpoint import Checkpoint, CheckpointError, write_card
from lewm_models.export.encoder import encoder_graph
from lewm_models.export.predictor import predictor_graph

ENCODER = "encoder.onnx"
PREDICTOR = "predictor.onnx"

TOLERANCE = 1e-4
"""The largest difference, relative to the largest value, that is still rounding."""

ROWS = (1, 3)


@torch.inference_mode()
def export(loaded: Checkpoint, folder: Path) -> Iterator[tuple[Path, str]]:
    """Write encoder, predictor and card; yield each file with what was found of it.

    Files have the suffix ``.part`` until they have been run and compared with the model.

    Raises:
        CheckpointError: a file does not give what the model gives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, graph, check in (
        (ENCODER, encoder_graph(loaded.model).whole(), _check_encoder),
        (PREDICTOR, predictor_graph(loaded.model).whole(), _check_predictor),
    ):
        path, part = folder / name, folder / f"{name}.part"
        graph.metadata_props.add(key="model", value=loaded.card.name)
        graph.metadata_props.add(key="model_version", value=loaded.version)
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, part)
        try:
            error = check(loaded, part)
            if not error <= TOLERANCE:
                raise CheckpointError(f"{path}: differs from the model by {error:.2g}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        yield path, f"within {error:.1g} of the model"
    write_card(folder, loaded.card)


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _check_encoder(loaded: Checkpoint, path: Path) -> float:
    session, size = _session(path), loaded.card.config.image_size
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows in ROWS:
        frames = torch.randint(0, 256, (rows, size, size, 3), generator=generator).byte()
        (latents,) = session.run(None, {"frames": frames.numpy()})
        errors.append(_error(latents, loaded.model.encode(frames)))
    return max(errors)


def _check_predictor(loaded: Checkpoint, path: Path) -> float:
    session, config = _session(path), loaded.card.config
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows in ROWS:
        for frames in range(1, config.history + 1):
            latents, actions = (
                torch.randn(rows, frames, width, generator=generator)
                for width in (config.latent_dim, config.block_width)
            )
            feed = {"latents": latents.numpy(), "actions": actions.numpy()}
            (following,) = session.run(None, feed)
            errors.append(_error(following, loaded.model.predict(latents, actions)))
    return max(errors)


def _error(actual: object, expected: Tensor) -> float:
    scale = expected.abs().max().clamp_min(1)
    return float((torch.as_tensor(actual) - expected).abs().max() / scale)
