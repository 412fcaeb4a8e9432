"""Calibrate a model on frames it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lewm_models.calibration.reference import LatentReference, digest
from lewm_models.calibration.tail import limit, quantiles
from lewm_models.card import Calibration, ModelCard
from lewm_models.lewm import LeWM
from lewm_models.objective import random_directions, sigreg

FALSE_ALARM_RATE = 1e-3
"""Of ordinary answers, the share that may be called anything but ok."""

MIN_FRAMES = 1000
"""Fewer say nothing of what happens once in thousands."""
MIN_STEPS = 500

SIGREG_WINDOW = 128
SIGREG_DIRECTIONS = 64
SIGREG_SEED = 0
RUN = 32
WINDOWS = 2000

ROUNDING = 1e-5
"""Norms that differ by less, in units of their mean, are the same norm."""

ROWS = 256
FOLDS = 5


@dataclass(frozen=True)
class Episode:
    """Frames (L + 1, H, H, 3) uint8 of the model's image size, one after another.

    ``actions`` (L, action_dim) are those taken between them, in the environment's units, NaN where
    there was none. Where they are not known, successive frames count as one action block apart.
    """

    frames: Tensor
    actions: Tensor | None = None


def judgements(history: int) -> int:
    """How often an answer is judged at most: two scores a frame and goal, surprise and SIGReg."""
    return 2 * (history + 1) + 2


def fixed_directions(latent_dim: int) -> Tensor:
    """The directions (D, M) of every SIGReg of served latents, always the same."""
    generator = torch.Generator().manual_seed(SIGREG_SEED)
    return random_directions(latent_dim, SIGREG_DIRECTIONS, generator)


def calibrate(
    model: LeWM, card: ModelCard, episodes: Iterable[Episode]
) -> tuple[ModelCard, LatentReference]:
    """The card with a calibration on these episodes, and the reference that belongs to it.

    One rule sets all limits: an answer is judged by at most `judgements` scores, so each one's
    limit is what ordinary data exceed at `FALSE_ALARM_RATE` divided by their number. Without
    actions there is no distribution of surprise, and with few frames none of SIGReg. Frames are
    looked at once, an episode at a time.

    Raises:
        ValueError: there are fewer than `MIN_FRAMES` frames, or all look the same to the model.
    """
    seen = [(_encode(model, episode.frames), episode.actions) for episode in episodes]
    frames = sum(len(latents) for latents, _ in seen)
    if frames < MIN_FRAMES:
        raise ValueError(f"calibration: expected at least {MIN_FRAMES} frames, got {frames}")
    rate = FALSE_ALARM_RATE / judgements(card.config.history)
    flat = torch.cat([latents for latents, _ in seen])
    norms = flat.norm(dim=-1)
    mean, std = norms.mean(), norms.std()
    if not float(std) > ROUNDING * float(mean):
        raise ValueError("calibration: the model gives all of the frames the same latent")
    reference = LatentReference.fit(flat)
    distances = held_out_distances(flat)
    calibration = Calibration(
        frames=frames,
        norm_mean=float(mean),
        norm_std=float(std),
        zscore_limit=limit(((norms - mean) / std).abs(), rate),
        norm_quantiles=quantiles(norms),
        false_alarm_rate=FALSE_ALARM_RATE,
        mahalanobis_limit=limit(distances, rate),
        mahalanobis_quantiles=quantiles(distances),
        reference=digest(reference.to_bytes()),
    )
    errors = [
        one_step_errors(model, card, latents, actions, context)
        for context in range(1, max(2, card.config.history))
        for latents, actions in seen
        if actions is not None
    ]
    steps = torch.cat(errors) if errors else torch.empty(0)
    if len(steps) >= MIN_STEPS:
        calibration = replace(
            calibration,
            steps=len(steps),
            surprise_limit=limit(steps, rate),
            surprise_quantiles=quantiles(steps),
        )
    block = card.config.action_block
    windows = window_scores([(own, block if actions is not None else 1) for own, actions in seen])
    if len(windows):
        calibration = replace(
            calibration,
            windows=len(windows),
            sigreg_window=SIGREG_WINDOW,
            sigreg_limit=limit(windows, rate),
            sigreg_quantiles=quantiles(windows),
        )
    return replace(card, calibration=calibration), reference


def held_out_distances(latents: Tensor) -> Tensor:
    """Mahalanobis distances (N,) of latents (N, D), each by a reference fitted without its fold.

    Frames lie nearer to the covariance that they themselves made than new ones do. A fold is a run
    of successive frames, since neighbours know each other.
    """
    folds = torch.tensor_split(latents, FOLDS)
    return torch.cat(
        [
            LatentReference.fit(torch.cat(folds[:index] + folds[index + 1 :])).distances(fold)
            for index, fold in enumerate(folds)
        ]
    )


@torch.inference_mode()
def one_step_errors(
    model: LeWM, card: ModelCard, latents: Tensor, actions: Tensor, context: int
) -> Tensor:
    """How far (N,) each latent of an episode lies from that predicted from ``context`` before it.

    ``latents`` (L + 1, D) and ``actions`` (L, action_dim), one step apart; a prediction sees
    latents one action block apart, and starts at every step.
    """
    block, width = card.config.action_block, card.config.block_width
    starts = torch.arange(len(latents) - context * block)
    if len(starts) == 0:
        return torch.empty(0)
    # A missing action becomes the mean action, as in training.
    zscored = (actions - torch.tensor(card.action_mean)) / torch.tensor(card.action_std)
    taken = zscored.nan_to_num(0.0)[starts[:, None] + torch.arange(context * block)]
    seen = latents[starts[:, None] + block * torch.arange(context + 1)]
    device = next(model.parameters()).device
    predicted = torch.cat(
        [
            model.predict(window.to(device), blocks.to(device))[:, -1].cpu()
            for window, blocks in zip(
                torch.split(seen[:, :-1], ROWS),
                torch.split(taken.reshape(-1, context, width), ROWS),
                strict=True,
            )
        ]
    )
    errors: Tensor = torch.linalg.vector_norm(seen[:, -1] - predicted, dim=-1)
    return errors


def window_scores(episodes: Sequence[tuple[Tensor, int]]) -> Tensor:
    """SIGReg (`WINDOWS`,) of windows put together from runs of successive served frames.

    An episode is latents (L, D) and how many steps lie between two frames that are served. A run
    has `RUN` frames, or as many as an episode has: a window of a few runs is as dependent as the
    stream of one robot that does one task after another, which is the most dependent one that a
    service should call ordinary, and hence the widest spread of SIGReg. Runs are drawn at random,
    since those that there are make few windows in a row, and many in other orders.
    """
    runs = [
        run
        for latents, stride in episodes
        for offset in range(stride)
        for run in torch.split(latents[offset::stride], RUN)
    ]
    directions = fixed_directions(runs[0].shape[1])
    generator = torch.Generator().manual_seed(SIGREG_SEED)
    scores = []
    for _ in range(WINDOWS if sum(map(len, runs)) >= SIGREG_WINDOW else 0):
        window: list[Tensor] = []
        for index in torch.randperm(len(runs), generator=generator).tolist():
            window.append(runs[index])
            if sum(map(len, window)) >= SIGREG_WINDOW:
                break
        scores.append(sigreg(torch.cat(window)[:SIGREG_WINDOW].unsqueeze(0), directions))
    return torch.stack(scores) if scores else torch.empty(0)


@torch.inference_mode()
def _encode(model: LeWM, frames: Tensor) -> Tensor:
    model.eval()
    device = next(model.parameters()).device
    return torch.cat([model.encode(part.to(device)).cpu() for part in torch.split(frames, ROWS)])
