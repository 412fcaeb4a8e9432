"""``lewm models export``: a model as ONNX files, each compared with the model before it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from lewm_models.checkpoint import Checkpoint, CheckpointError, write_card
from lewm_models.config import LeWMConfig
from lewm_models.export.distance import distance_graph
from lewm_models.export.encoder import encoder_graph
from lewm_models.export.predictor import predictor_graph
from lewm_models.export.probe import probe_graph, units
from lewm_models.export.runtime import onnxruntime

ENCODER_FILE = "encoder.onnx"
PREDICTOR_FILE = "predictor.onnx"
DISTANCE_FILE = "distance.onnx"
PROBE_FILE = "probe.onnx"

MAX_RELATIVE_ERROR = 1e-4
"""A larger difference, relative to the largest value, is not rounding."""

TESTED_ROWS = (1, 3)


@torch.inference_mode()
def export_onnx(checkpoint: Checkpoint, folder: Path) -> Iterator[tuple[Path, str]]:
    """Write the encoder, the predictor and the card; yield each ONNX file and how exact it is.

    A model with a learned distance has a file of it too, and so has one with a probe.

    A file has the suffix ``.part`` until it has been run and compared with the model.

    Raises:
        CheckpointError: a file does not give what the model gives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        (ENCODER_FILE, encoder_graph(checkpoint.model), _encoder_error),
        (PREDICTOR_FILE, predictor_graph(checkpoint.model), _predictor_error),
    ]
    if checkpoint.distance is not None:
        files.append((DISTANCE_FILE, distance_graph(checkpoint.distance), _distance_error))
    if checkpoint.probe is not None:
        files.append((PROBE_FILE, probe_graph(checkpoint.probe), _probe_error))
    for name, graph, measure_error in files:
        path, part = folder / name, folder / f"{name}.part"
        onnx_model = graph.with_weights()
        onnx_model.metadata_props.add(key="model", value=checkpoint.card.name)
        onnx_model.metadata_props.add(key="model_version", value=checkpoint.version)
        onnx.checker.check_model(onnx_model, full_check=True)
        onnx.save(onnx_model, part)
        try:
            error = measure_error(checkpoint, part)
            if not error <= MAX_RELATIVE_ERROR:  # NaN is refused too
                raise CheckpointError(f"{path}: differs from the model by {error:.2g}")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        yield path, f"within {error:.1g} of the model"
    write_card(folder, checkpoint.card)


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _encoder_error(checkpoint: Checkpoint, path: Path) -> float:
    session, size = _session(path), checkpoint.card.config.image_size
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows in TESTED_ROWS:
        frames = torch.randint(0, 256, (rows, size, size, 3), generator=generator).byte()
        states = _test_states(checkpoint.card.config, rows, generator)
        inputs = {"frames": frames.numpy()}
        if states is not None:
            inputs["states"] = states.numpy()
        (latents,) = session.run(None, inputs)
        errors.append(_relative_error(latents, checkpoint.model.encode(frames, states)))
    return float(np.max(errors))  # NaN if one of them is


def _test_states(config: LeWMConfig, rows: int, generator: torch.Generator) -> Tensor | None:
    """States (rows, X) of frames for a model with a state input. Those of the second are hidden."""
    given = config.state_input
    if given is None:
        return None
    states = torch.randn(rows, len(given), generator=generator)
    states = torch.tensor(given.mean) + torch.tensor(given.std) * states
    states[1:2] = torch.nan
    return states


def _predictor_error(checkpoint: Checkpoint, path: Path) -> float:
    session, config = _session(path), checkpoint.card.config
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows in TESTED_ROWS:
        for frames in range(1, config.history + 1):
            latents, actions = (
                torch.randn(rows, frames, width, generator=generator)
                for width in (config.latent_dim, config.block_width)
            )
            inputs = {"latents": latents.numpy(), "actions": actions.numpy()}
            (predicted,) = session.run(None, inputs)
            errors.append(_relative_error(predicted, checkpoint.model.predict(latents, actions)))
    return float(np.max(errors))  # NaN if one of them is


def _distance_error(checkpoint: Checkpoint, path: Path) -> float:
    session, distance = _session(path), checkpoint.distance
    assert distance is not None
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows in TESTED_ROWS:
        latents, goals = (
            distance.mean
            + distance.std * torch.randn(rows, distance.latent_dim, generator=generator)
            for _ in range(2)
        )
        inputs = {"latents": latents.numpy(), "goals": goals.numpy()}
        (blocks,) = session.run(None, inputs)
        errors.append(_relative_error(blocks[:, 0], distance(latents, goals)))
    return float(np.max(errors))  # NaN if one of them is


def _probe_error(checkpoint: Checkpoint, path: Path) -> float:
    session, probe = _session(path), checkpoint.probe
    assert probe is not None
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows in TESTED_ROWS:
        latents = probe.latent_mean + probe.latent_std * torch.randn(
            rows, probe.latent_dim, generator=generator
        )
        (values,) = session.run(None, {"latents": latents.numpy()})
        scale, shift = units(probe)
        errors.append(_relative_error(values, probe(latents) * scale + shift))
    return float(np.max(errors))  # NaN if one of them is


def _relative_error(actual: object, expected: Tensor) -> float:
    scale = expected.abs().max().clamp_min(1)
    return float((torch.as_tensor(actual) - expected).abs().max() / scale)
