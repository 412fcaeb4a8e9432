"""A complete training run: from an environment to a model folder, and resumable."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.calibration.calibrate import (
    MIN_CALIBRATION_FRAMES,
    calibrate,
    recorded_episodes,
)
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import ModelCard, SolverConfig
from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.training.recording import CollectionProgress, Recording, RecordingSpec, collect
from lewm_models.training.trainer import (
    MetricsCallback,
    Trainer,
    TrainingConfig,
    reestimate_batch_norm,
)
from lewm_models.training.windows import Windows, split_episodes

PRESET_TRAINING: Mapping[str, TrainingConfig] = {
    "edge": TrainingConfig(steps=4000, learning_rate=5e-4, directions=256),
    "paper": TrainingConfig(steps=20_000, learning_rate=5e-5),
}

PRESET_SOLVERS: Mapping[str, SolverConfig] = {
    "edge": SolverConfig(name="icem", samples=48, iterations=2, elites=5),
    "paper": SolverConfig(),
}

TWO_ROOM_CONTROLLERS = ("waypoint",)
"""Entry-point names of Two-Room's fallback controllers; see `pyproject.toml`."""

TWO_ROOM_ACTION_BOUNDS = (-1.0, 1.0)
"""The bounds of each action dimension of Two-Room."""

PRECISION_FRAMES = 5
"""The held-out frames that are saved with a model to test a lower precision on."""


@dataclass(frozen=True)
class TrainingRun:
    """The settings of a run. Equal settings give equal data and equal initial weights."""

    environment: str
    preset: str
    recording: RecordingSpec
    training: TrainingConfig

    @classmethod
    def from_preset(
        cls,
        environment: str,
        preset: str,
        *,
        episodes: int = 1500,
        episode_steps: int = 150,
        steps: int | None = None,
        seed: int = 0,
    ) -> TrainingRun:
        """A run of a preset. ``steps`` is the number of training steps, None for the preset's.

        Raises:
            ValueError: the preset is unknown.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {sorted(PRESETS)}, got {preset!r}")
        training = PRESET_TRAINING[preset]
        return cls(
            environment=environment,
            preset=preset,
            recording=RecordingSpec(
                environment=environment,
                episodes=episodes,
                steps=episode_steps,
                image_size=PRESETS[preset].image_size,
                seed=seed,
            ),
            training=replace(training, seed=seed, steps=training.steps if steps is None else steps),
        )


def train(
    run: TrainingRun,
    output: Path,
    *,
    name: str,
    device: torch.device,
    on_episode: CollectionProgress | None = None,
    on_metrics: MetricsCallback | None = None,
) -> Path:
    """Collect a recording, train, calibrate, and write the model folder ``output/model``.

    A call with the same arguments continues an interrupted run. With fewer than
    `MIN_CALIBRATION_FRAMES` held-out frames the model stays uncalibrated.

    Args:
        run: the settings.
        output: the run's folder.
        name: the model's name.
        device: where to train.
        on_episode: called after each collected episode.
        on_metrics: called with each line of the log.

    Returns:
        The model folder.

    Raises:
        ValueError: the output folder holds another run, or the settings are impossible.
        FloatingPointError: a loss is not finite.
    """
    recording = collect(output / "data", run.recording, on_episode)
    training_episodes, held_out_episodes = split_episodes(run.recording.episodes)
    mean, std = recording.action_statistics()
    model = LeWM(PRESETS[run.preset])

    def windows_of(episodes: range) -> Windows:
        return Windows(
            recording,
            episodes,
            history=model.config.history,
            action_block=model.config.action_block,
            mean=mean,
            std=std,
        )

    windows = windows_of(training_episodes)
    trainer = Trainer(
        model,
        windows,
        held_out=windows_of(held_out_episodes),
        config=run.training,
        device=device,
    )
    saved = output / "checkpoint.pt"
    if saved.exists():
        trainer.resume(saved)
    trainer.run(saved, on_metrics=on_metrics)
    reestimate_batch_norm(model, windows, batch=run.training.batch, seed=run.training.seed)

    folder = output / "model"
    low, high = TWO_ROOM_ACTION_BOUNDS
    card = ModelCard(
        name=name,
        config=model.config,
        action_mean=tuple(mean.tolist()),
        action_std=tuple(std.tolist()),
        action_low=(low,) * model.config.action_dim,
        action_high=(high,) * model.config.action_dim,
        controllers=TWO_ROOM_CONTROLLERS,
        solver=PRESET_SOLVERS[run.preset],
        provenance=_provenance(run, trainer),
        figures=_figures_of_same_weights(folder, model),
    )
    reference: LatentReference | None = None
    if len(held_out_episodes) * (run.recording.steps + 1) >= MIN_CALIBRATION_FRAMES:
        episodes = recorded_episodes(recording, held_out_episodes, model.config.image_size)
        card, reference = calibrate(model, card, episodes)
    frames = _precision_frames(recording, held_out_episodes)
    checkpoint.save(folder, model, card, reference=reference, frames=frames)
    return folder


def _figures_of_same_weights(folder: Path, model: LeWM) -> dict[str, object]:
    """The measured results on the folder's card if its weights are the model's, else none."""
    try:
        previous = checkpoint.load(folder)
    except checkpoint.CheckpointError:
        return {}
    weights, previous_weights = model.state_dict(), previous.model.state_dict()
    is_same = previous.model.config == model.config and all(
        torch.equal(value.cpu(), previous_weights[name]) for name, value in weights.items()
    )
    return previous.card.figures if is_same else {}


def _precision_frames(recording: Recording, episodes: range) -> Tensor:
    """Up to `PRECISION_FRAMES` frames (N, H, H, 3), evenly spaced over the episodes."""
    per_episode = recording.frames.shape[1]
    total = len(episodes) * per_episode
    chosen = np.linspace(0, total - 1, min(total, PRECISION_FRAMES)).astype(np.int64)
    frames = recording.frames[episodes.start + chosen // per_episode, chosen % per_episode]
    return torch.from_numpy(frames)


def _provenance(run: TrainingRun, trainer: Trainer) -> dict[str, object]:
    """Where the model comes from, and the command that makes it again."""
    return {
        "trained_on": run.environment,
        "preset": run.preset,
        "recording": asdict(run.recording),
        "training": asdict(run.training),
        "training_hours": round(trainer.seconds / 3600, 2),
        "precision": str(trainer.precision).removeprefix("torch."),
        "device": trainer.device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": (
            f"lewm train --env {run.environment} --preset {run.preset} "
            f"--episodes {run.recording.episodes} --episode-steps {run.recording.steps} "
            f"--steps {run.training.steps} --seed {run.training.seed}"
        ),
    }
