"""A run that takes seconds, of a model of a few thousand values; also a program to be killed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_models.training.recording import Recording, Windows, split
from lewm_models.training.trainer import Metrics, Trainer, TrainingConfig

CONFIG = LeWMConfig(
    image_size=32,
    patch_size=8,
    encoder_width=32,
    encoder_depth=1,
    encoder_heads=2,
    encoder_mlp=64,
    latent_dim=16,
    projector_mlp=64,
    predictor_width=16,
    predictor_output=16,
    predictor_depth=1,
    predictor_heads=2,
    predictor_head_dim=8,
    predictor_mlp=32,
    pred_proj_mlp=64,
    action_mlp=32,
)

TRAINING = TrainingConfig(steps=100, learning_rate=1e-2, batch=32, directions=64)
SHORT = replace(TRAINING, steps=12)


def trainer(
    recording: Recording,
    training: TrainingConfig = TRAINING,
    config: LeWMConfig = CONFIG,
    precision: torch.dtype | None = torch.float32,
) -> Trainer:
    """A trainer at its first step."""
    mean, std = recording.action_statistics()
    seen, held_out = (
        Windows(recording, episodes, config.history, config.action_block, mean, std)
        for episodes in split(recording.spec.episodes)
    )
    return Trainer(LeWM(config), seen, held_out, training, torch.device("cpu"), precision)


def main(recording: Path, checkpoint: Path, report_every: int) -> None:
    """Train to the end from wherever the checkpoint is.

    Prints each step reported, and goes on when a line, or the end, is read on standard input.
    """
    torch.set_num_threads(1)
    run = trainer(Recording.open(recording), SHORT)
    if checkpoint.exists():
        run.resume(checkpoint)
        print(f"resumed at {run.step}", flush=True)

    def report(metrics: Metrics) -> None:
        print(metrics.step, flush=True)
        sys.stdin.readline()

    run.run(checkpoint, report, report_every)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
