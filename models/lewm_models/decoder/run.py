"""A decoder for a model: encode recorded frames, train, and measure on held-out episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lewm_models.calibration.reference import sha256_of
from lewm_models.card import FrameDecoderCard, ModelCard
from lewm_models.decoder.network import FRAME_SIDE, FrameDecoder
from lewm_models.distance.loop import TrainingLoop
from lewm_models.lewm import LeWM
from lewm_models.recorded_sample import Pieces, Progress, encode_samples

MAX_TRAINING_FRAMES, MAX_HELD_OUT_FRAMES = 5_000, 500
"""The most frames that a decoder is trained on, and that it is measured on."""

MIN_FRAMES = 100
"""A decoder is not trained on fewer frames."""

RARE_PIXEL_WEIGHT = 20.0
"""How much more a pixel counts that differs from the mean frame by the full range. Otherwise small
robots before a large background would hardly count."""


class TooFewFrames(ValueError):
    """There are too few frames for a decoder. The message says how many."""


@dataclass(frozen=True)
class DecoderTraining:
    """The settings of the training.

    Args:
        steps: training steps.
        seed: of the weights and the order of samples.
        batch: frames per step.
        learning_rate: the highest one, of AdamW with a cosine schedule.
        weight_decay: of AdamW.
    """

    steps: int = 1500
    seed: int = 0
    batch: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3


@dataclass(frozen=True)
class TrainedDecoder:
    """A decoder, and what the card says about it."""

    network: FrameDecoder
    described: FrameDecoderCard

    def on_card(self, card: ModelCard) -> ModelCard:
        """The card with this decoder."""
        return replace(card, decoder=self.described)


class _DecoderTrainer(TrainingLoop):
    """Trains a decoder on the weighted squared error of pixels."""

    part = "decoder"

    def __init__(
        self,
        decoder: FrameDecoder,
        latents: Tensor,
        frames: Tensor,
        config: DecoderTraining,
        on_step: Callable[[int, int], None],
    ) -> None:
        super().__init__(
            decoder,
            kept={},
            identity={},
            steps=config.steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self._decoder, self._latents, self._frames = decoder, latents, frames
        self._config, self._on_step = config, on_step

    def loss(self, step: int) -> Tensor:
        """See `TrainingLoop.loss`."""
        generator = np.random.default_rng((self._config.seed, step))
        rows = torch.from_numpy(generator.integers(len(self._latents), size=self._config.batch))
        targets = self._frames[rows].view(-1, 3, FRAME_SIDE, FRAME_SIDE)
        weights = 1 + RARE_PIXEL_WEIGHT * (targets - self._decoder.mean_frame).abs()
        error = (self._decoder(self._latents[rows]) - targets).square()
        self._on_step(step, self._config.steps)
        loss: Tensor = (weights * error).mean()
        return loss

    def measure(self) -> dict[str, float]:
        """See `TrainingLoop.measure`: the decoder is measured at the end."""
        return {}


def train_decoder_of_model(
    model: LeWM,
    card: ModelCard,
    pieces: Pieces,
    config: DecoderTraining | None = None,
    *,
    on_encoded: Progress = lambda done, total: None,
    on_step: Progress = lambda done, total: None,
) -> TrainedDecoder:
    """Train a decoder on the training episodes of recorded data. The model does not change.

    Args:
        model: in ``eval()`` mode, on any device.
        card: its card.
        pieces: recorded steps.
        config: the settings of the training; None takes the defaults.
        on_encoded: called while frames are encoded.
        on_step: called with each training step.

    Raises:
        TooFewFrames: there are fewer than `MIN_FRAMES` frames.
        ValueError: there is only one episode, or the frames do not fit the model.
        FloatingPointError: a loss is not finite.
    """
    training, held_out = encode_samples(
        model,
        card,
        pieces,
        max_frames=(MAX_TRAINING_FRAMES, MAX_HELD_OUT_FRAMES),
        thumbnail_side=FRAME_SIDE,
        progress=on_encoded,
    )
    if len(training) < MIN_FRAMES:
        raise TooFewFrames(
            f"the training episodes have {len(training):,} frames, a decoder needs {MIN_FRAMES:,}"
        )
    config = config or DecoderTraining()
    mean_frame = training.thumbnails.mean(dim=0).view(3, FRAME_SIDE, FRAME_SIDE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        decoder = FrameDecoder(
            training.latents.mean(dim=0), training.latents.std(dim=0), mean_frame=mean_frame
        )
    _DecoderTrainer(decoder, training.latents, training.thumbnails, config, on_step).run()
    decoder.eval().requires_grad_(False)
    return TrainedDecoder(
        decoder,
        FrameDecoderCard(
            network=sha256_of(decoder.to_bytes()),
            training_frames=len(training),
            held_out_frames=len(held_out),
            error=_error(decoder, held_out.latents, held_out.thumbnails),
            mean_frame_error=(held_out.thumbnails - mean_frame.flatten()).abs().mean().item(),
        ),
    )


@torch.inference_mode()
def _error(decoder: FrameDecoder, latents: Tensor, frames: Tensor) -> float:
    """The mean absolute error of a value, 0 to 1."""
    errors = [
        (decoder(part).clamp(0, 1).flatten(1) - target).abs().mean(dim=1)
        for part, target in zip(torch.split(latents, 64), torch.split(frames, 64), strict=True)
    ]
    return torch.cat(errors).mean().item()
