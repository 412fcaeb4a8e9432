"""One training run, from nothing to a model folder; the same call resumes it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.calibration.calibrate import MIN_FRAMES, calibrate
from lewm_models.calibration.recorded import recorded_episodes
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import ModelCard, SolverDefaults
from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.training.collection import Progress, collect
from lewm_models.training.normalisation import reestimate
from lewm_models.training.recording import Recording, RecordingSpec, Windows, split
from lewm_models.training.trainer import Report, Trainer, TrainingConfig

TRAINING: Mapping[str, TrainingConfig] = {
    "edge": TrainingConfig(steps=4000, learning_rate=5e-4, directions=256),
    "paper": TrainingConfig(steps=20_000, learning_rate=5e-5),
}

CONTROLLERS = ("waypoint",)
"""The fallback controllers of the environment that recordings are of; see `pyproject.toml`."""

SOLVERS: Mapping[str, SolverDefaults] = {
    "edge": SolverDefaults(name="icem", samples=48, iterations=2, elites=5),
    "paper": SolverDefaults(),
}

KEPT_FRAMES = 5
"""Held-out frames that go with the model, by which a server judges a lower precision."""

LOW, HIGH = -1.0, 1.0
"""Bounds of Two-Room's action components."""


@dataclass(frozen=True)
class Run:
    """What a run is made of; equal runs make equal data and start from equal weights."""

    environment: str
    preset: str
    recording: RecordingSpec
    training: TrainingConfig

    @classmethod
    def of(
        cls,
        environment: str,
        preset: str,
        *,
        episodes: int = 1500,
        episode_steps: int = 150,
        steps: int | None = None,
        seed: int = 0,
    ) -> Run:
        """A run of a preset, changed where asked.

        Raises:
            ValueError: the preset is unknown.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {sorted(PRESETS)}, got {preset!r}")
        training = TRAINING[preset]
        return cls(
            environment,
            preset,
            RecordingSpec(environment, episodes, episode_steps, PRESETS[preset].image_size, seed),
            replace(training, seed=seed, steps=training.steps if steps is None else steps),
        )


def train(
    run: Run,
    output: Path,
    *,
    name: str,
    device: torch.device,
    on_frames: Progress | None = None,
    report: Report | None = None,
) -> Path:
    """Collect, train, calibrate, write ``output/model``; each part is taken up where it stood.

    A run too small to hold enough frames out leaves the model uncalibrated.

    Raises:
        ValueError: the output folder holds another run, or the run cannot be.
        FloatingPointError: training diverged.
    """
    recording = collect(output / "data", run.recording, on_frames)
    training, held_out = split(run.recording.episodes)
    mean, std = recording.action_statistics()
    model = LeWM(PRESETS[run.preset])

    def windows(episodes: range) -> Windows:
        config = model.config
        return Windows(recording, episodes, config.history, config.action_block, mean, std)

    seen = windows(training)
    trainer = Trainer(model, seen, windows(held_out), run.training, device)
    saved = output / "checkpoint.pt"
    if saved.exists():
        trainer.resume(saved)
    trainer.run(saved, report)
    reestimate(model, seen, run.training.batch, run.training.seed)
    folder = output / "model"
    card = ModelCard(
        name=name,
        config=model.config,
        action_mean=tuple(mean.tolist()),
        action_std=tuple(std.tolist()),
        action_low=(LOW,) * model.config.action_dim,
        action_high=(HIGH,) * model.config.action_dim,
        controllers=CONTROLLERS,
        solver=SOLVERS[run.preset],
        provenance=provenance(run, trainer),
        figures=measured(folder, model),
    )
    reference: LatentReference | None = None
    if len(held_out) * (run.recording.steps + 1) >= MIN_FRAMES:
        episodes = recorded_episodes(recording, held_out, model.config.image_size)
        card, reference = calibrate(model, card, episodes)
    checkpoint.save(folder, model, card, reference, kept_frames(recording, held_out))
    return folder


def measured(folder: Path, model: LeWM) -> dict[str, object]:
    """The figures on a folder's card where they are those of this very model, else none."""
    try:
        before = checkpoint.load(folder)
    except checkpoint.CheckpointError:
        return {}
    weights, theirs = model.state_dict(), before.model.state_dict()
    same = before.model.config == model.config and all(
        torch.equal(value.cpu(), theirs[name]) for name, value in weights.items()
    )
    return before.card.figures if same else {}


def kept_frames(recording: Recording, episodes: range) -> Tensor:
    """`KEPT_FRAMES` frames (N, H, H, 3), or the fewer there are, spread over the episodes."""
    per_episode = recording.frames.shape[1]
    total = len(episodes) * per_episode
    chosen = np.linspace(0, total - 1, min(total, KEPT_FRAMES)).astype(np.int64)
    frames = recording.frames[episodes.start + chosen // per_episode, chosen % per_episode]
    return torch.from_numpy(frames)


def provenance(run: Run, trainer: Trainer) -> dict[str, object]:
    """Where a model came from and how to make it again."""
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
