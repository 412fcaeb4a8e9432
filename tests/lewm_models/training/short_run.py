"""A run of seconds with a model of a few thousand weights; also a program that a test kills."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_models.training.prepared import PreparedData
from lewm_models.training.trainer import Trainer, TrainingConfig, TrainingMetrics
from lewm_models.training.windows import Windows, split_episodes

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
SHORT_TRAINING = replace(TRAINING, steps=12)


def make_trainer(
    data: PreparedData,
    training: TrainingConfig = TRAINING,
    config: LeWMConfig = CONFIG,
    precision: torch.dtype | None = torch.float32,
) -> Trainer:
    """A trainer at its first step, on a CPU."""
    mean, std = data.action_statistics()
    windows, held_out = (
        Windows(
            data,
            pieces,
            history=config.history,
            action_block=config.action_block,
            mean=mean,
            std=std,
            with_states=config.state_input is not None,
        )
        for pieces in split_episodes(data)
    )
    return Trainer(
        LeWM(config),
        windows,
        held_out=held_out,
        config=training,
        device=torch.device("cpu"),
        precision=precision,
    )


def main(data: Path, checkpoint: Path, report_every: int) -> None:
    """Train to the end, from the checkpoint if there is one.

    Each report is printed, and training continues when standard input gives a line or ends.
    """
    torch.set_num_threads(1)
    trainer = make_trainer(PreparedData.open(data), SHORT_TRAINING)
    if checkpoint.exists():
        trainer.resume(checkpoint)
        print(f"resumed at {trainer.step}", flush=True)

    def report_and_wait(metrics: TrainingMetrics) -> None:
        print(metrics.step, flush=True)
        sys.stdin.readline()

    trainer.run(checkpoint, on_metrics=report_and_wait, report_every=report_every)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
