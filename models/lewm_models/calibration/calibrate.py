"""Calibrating a model on ordinary frames, which it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.calibration.limits import anomaly_limit, quantiles
from lewm_models.calibration.reference import LatentReference, sha256_of
from lewm_models.card import Calibration, ModelCard
from lewm_models.lewm import LeWM, encode_in_parts
from lewm_models.loss import random_directions, sigreg
from lewm_models.preprocessing import resize, to_model_frames
from lewm_models.probe.states import column_of_input
from lewm_models.recordings.recording import Recording, choose_action, choose_column
from lewm_models.recordings.usable import usable_episodes
from lewm_models.training.prepared import PreparedData

FALSE_ALARM_RATE = 1e-3
"""The share of answers about ordinary data that may have another health than ok."""

MIN_CALIBRATION_FRAMES = 1000
"""With fewer frames, limits for rare scores cannot be estimated."""

MIN_SURPRISE_STEPS = 500
"""With fewer predicted steps, surprise is not calibrated."""

MAX_RECORDED_FRAMES = 50_000
"""The most frames taken from a recording; more would make the limits no better."""

MAX_EPISODE_FRAMES = 1000
"""The most frames of a recording that are in memory at once."""

MIN_NORM_SPREAD = 1e-5
"""The least spread of the norms relative to their mean. A smaller spread is a rounding error."""

DISTANCE_FOLDS = 5
"""The parts for the cross-validation of Mahalanobis distances."""

SIGREG_WINDOW = 128
"""The number of latents in one window of SIGReg."""

SIGREG_DIRECTIONS = 64
SIGREG_SEED = 0

SIGREG_RUN_FRAMES = 32
"""A window of SIGReg consists of runs of this many successive frames of one episode."""

SIGREG_WINDOW_COUNT = 2000
"""The number of windows on which the distribution of SIGReg is measured."""

MODEL_BATCH = 256
"""Windows that the model computes at once."""


@dataclass(frozen=True)
class CalibrationEpisode:
    """Successive frames, and the actions between them if they are known.

    Args:
        frames: (F + 1, H, H, 3) uint8, H the model's image size.
        actions: (F · frame_every, action_dim) in the environment's units, one per step, NaN for a
            missing action. Without actions, successive frames are taken to be one action block
            apart.
        frame_every: the steps from one frame to the next; a divisor of the action block.
        states: (F + 1, S), those of the frames, for a model with a state input; None hides them.
    """

    frames: Tensor
    actions: Tensor | None = None
    frame_every: int = 1
    states: Tensor | None = None


@dataclass(frozen=True)
class _EncodedEpisode:
    """The latents (F + 1, D) of an episode, and its actions."""

    latents: Tensor
    actions: Tensor | None
    frame_every: int


def prepared_episodes(
    data: PreparedData, pieces: NDArray[np.int64], image_size: int, *, with_states: bool = False
) -> Iterator[CalibrationEpisode]:
    """These pieces of prepared data, or evenly spaced ones if they exceed `MAX_RECORDED_FRAMES`."""
    states = data.states if with_states else None
    lengths = [len(data.frame_rows(piece)) for piece in pieces]
    for number, first, stop in _parts(lengths):
        rows = np.asarray(data.frame_rows(pieces[number])[first:stop])
        yield CalibrationEpisode(
            frames=resize(torch.from_numpy(data.read_frames(rows)), image_size),
            actions=torch.from_numpy(np.array(data.actions[rows[0] : rows[-1]])),
            frame_every=data.frame_every,
            states=None if states is None else torch.from_numpy(states[rows]),
        )


def recording_episodes(
    recording: Recording, card: ModelCard, *, camera: str | None, action: str | None
) -> Iterator[CalibrationEpisode]:
    """The usable steps of a recording, or evenly spaced ones of `MAX_RECORDED_FRAMES` and more.

    Raises:
        RecordingError: nothing can be used, there are several cameras or columns of actions and
            no name, or the states that the model takes are not there.
        ValueError: frames or actions are not those of the model.
    """
    path, contents, config = recording.path, recording.contents, card.config
    camera_column = choose_column(contents.cameras, camera, option="--camera", path=path)
    action_column = choose_action(contents, action, path)
    if action_column.shape != (config.action_dim,):
        raise ValueError(
            f"{path}: {action_column.name}: expected actions of {config.action_dim} values, got "
            f"{action_column.shape[0]}"
        )
    usable = usable_episodes(
        recording, action=action_column.name, min_steps=config.action_block + 1
    )
    usable.require_some(path)
    state_column = None
    if config.state_input is not None:
        state_column = column_of_input(contents.states, config.state_input, path)
    for number, first, stop in _parts([steps.steps for steps in usable.ranges]):
        steps = usable.ranges[number]
        frames = recording.read_frames(
            camera_column.name, steps.episode, first=steps.first + first, count=stop - first
        )
        actions = recording.read_numbers(action_column.name, steps.episode)
        states = None
        if state_column is not None:
            read = recording.read_states(state_column.name, steps.episode)
            states = torch.from_numpy(read[steps.first + first : steps.first + stop].copy())
        yield CalibrationEpisode(
            frames=to_model_frames(
                torch.from_numpy(np.require(frames, requirements=["C", "W"])),
                config.image_size,
                card.crop,
            ),
            actions=torch.from_numpy(actions[steps.first + first : steps.first + stop - 1].copy()),
            states=states,
        )


def _parts(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Parts of pieces of these lengths: the piece, its first step, and the one after its last.

    Evenly spaced pieces are taken if they have more than `MAX_RECORDED_FRAMES` in all. A part has
    at most `MAX_EPISODE_FRAMES`, and at least two.
    """
    count = min(len(lengths), len(lengths) * MAX_RECORDED_FRAMES // sum(lengths))
    left = MAX_RECORDED_FRAMES
    for piece in np.linspace(0, len(lengths) - 1, max(1, count)).astype(np.int64).tolist():
        length = min(left, lengths[piece])
        left -= length
        for first in range(0, length, MAX_EPISODE_FRAMES):
            stop = min(length, first + MAX_EPISODE_FRAMES)
            if stop - first > 1:
                yield piece, first, stop


def calibrate(
    model: LeWM, card: ModelCard, episodes: Iterable[CalibrationEpisode]
) -> tuple[ModelCard, LatentReference]:
    """Measure the scores of ordinary data and set the anomaly limits from `FALSE_ALARM_RATE`.

    An answer is judged by at most `scores_per_answer` scores, so ordinary data may exceed each
    limit at the rate `FALSE_ALARM_RATE` / `scores_per_answer`. Surprise is not calibrated without
    enough actions, and SIGReg is not calibrated with fewer frames than one window.

    Args:
        model: on any device; it is left in ``eval()`` mode.
        card: its card.
        episodes: ordinary data; one episode at a time is read and encoded.

    Returns:
        The card with the calibration, and the reference of Mahalanobis distances that belongs to
        it.

    Raises:
        ValueError: there are fewer than `MIN_CALIBRATION_FRAMES` frames, or all frames have the
            same latent.
    """
    encoded = [
        _EncodedEpisode(
            latents=_encode(model, episode),
            actions=episode.actions,
            frame_every=episode.frame_every,
        )
        for episode in episodes
    ]
    frames = sum(len(episode.latents) for episode in encoded)
    if frames < MIN_CALIBRATION_FRAMES:
        raise ValueError(
            f"calibration: expected at least {MIN_CALIBRATION_FRAMES} frames, got {frames}"
        )
    rate = FALSE_ALARM_RATE / scores_per_answer(card.config.history)
    latents = torch.cat([episode.latents for episode in encoded])
    calibration, reference = _calibrate_latents(latents, rate)
    surprises = _surprises(model, card, encoded)
    if len(surprises) >= MIN_SURPRISE_STEPS:
        calibration = replace(
            calibration,
            steps=len(surprises),
            surprise_limit=anomaly_limit(surprises, rate),
            surprise_quantiles=quantiles(surprises),
        )
    # The frames of requests are one action block apart, and so are frames without actions.
    block = card.config.action_block
    window_scores = sigreg_window_scores(
        [
            (episode.latents, 1 if episode.actions is None else block // episode.frame_every)
            for episode in encoded
        ]
    )
    if len(window_scores):
        calibration = replace(
            calibration,
            windows=len(window_scores),
            sigreg_window=SIGREG_WINDOW,
            sigreg_limit=anomaly_limit(window_scores, rate),
            sigreg_quantiles=quantiles(window_scores),
        )
    return replace(card, calibration=calibration), reference


def scores_per_answer(history: int) -> int:
    """The most scores of one answer: two of each frame and of the goal, surprise and SIGReg."""
    return 2 * (history + 1) + 2


def _calibrate_latents(latents: Tensor, rate: float) -> tuple[Calibration, LatentReference]:
    """Norms and Mahalanobis distances of latents (N, D)."""
    norms = latents.norm(dim=-1)
    mean, std = norms.mean(), norms.std()
    if not float(std) > MIN_NORM_SPREAD * float(mean):
        raise ValueError("calibration: the model gives all of the frames the same latent")
    reference = LatentReference.fit(latents)
    distances = held_out_distances(latents)
    calibration = Calibration(
        frames=len(latents),
        norm_mean=float(mean),
        norm_std=float(std),
        zscore_limit=anomaly_limit(((norms - mean) / std).abs(), rate),
        norm_quantiles=quantiles(norms),
        false_alarm_rate=FALSE_ALARM_RATE,
        mahalanobis_limit=anomaly_limit(distances, rate),
        mahalanobis_quantiles=quantiles(distances),
        reference=sha256_of(reference.to_bytes()),
    )
    return calibration, reference


def held_out_distances(latents: Tensor) -> Tensor:
    """Mahalanobis distances (N,) of latents (N, D), by cross-validation.

    Latents lie nearer to a distribution that was fitted to them than new latents do. So the
    distances in each of `DISTANCE_FOLDS` folds are measured from a reference that is fitted to the
    other folds. A fold holds successive frames, since those resemble each other.
    """
    folds = torch.tensor_split(latents, DISTANCE_FOLDS)
    distances = []
    for index, fold in enumerate(folds):
        others = torch.cat(folds[:index] + folds[index + 1 :])
        distances.append(LatentReference.fit(others).distances(fold))
    return torch.cat(distances)


def _surprises(model: LeWM, card: ModelCard, episodes: Sequence[_EncodedEpisode]) -> Tensor:
    """The surprises (N,) of predictions from 1 to history − 1 frames; from 1 if history is 1."""
    surprises = [
        one_step_errors(
            model,
            card,
            latents=episode.latents,
            actions=episode.actions,
            context=context,
            frame_every=episode.frame_every,
        )
        for context in range(1, max(2, card.config.history))
        for episode in episodes
        if episode.actions is not None
    ]
    return torch.cat(surprises) if surprises else torch.empty(0)


@torch.inference_mode()
def one_step_errors(
    model: LeWM,
    card: ModelCard,
    *,
    latents: Tensor,
    actions: Tensor,
    context: int,
    frame_every: int = 1,
) -> Tensor:
    """The surprises of an episode: distances of latents from their one-step predictions.

    Args:
        model: in ``eval()`` mode, on any device.
        card: its card.
        latents: (F + 1, D), ``frame_every`` steps apart.
        actions: (F · frame_every, action_dim) in the environment's units, NaN for a missing action.
        context: the frames that a prediction is made from, one action block apart.
        frame_every: the steps from one latent to the next.

    Returns:
        (F + 1 − context · action_block / frame_every,): one prediction starts at each latent.

    Raises:
        ValueError: the latents of an action block's ends are not all there.
    """
    block, block_width = card.config.action_block, card.config.block_width
    if block % frame_every:
        raise ValueError(
            f"{card.name}: its action block of {block} is no multiple of {frame_every}, the steps "
            "from one frame to the next"
        )
    stride = block // frame_every
    starts = torch.arange(len(latents) - context * stride)
    if len(starts) == 0:
        return torch.empty(0)
    # As in training, a missing action counts as the mean action, which is 0 once z-scored.
    zscored = (actions - torch.tensor(card.action_mean)) / torch.tensor(card.action_std)
    first = frame_every * starts[:, None]
    taken = zscored.nan_to_num(0.0)[first + torch.arange(context * block)]
    blocks = taken.reshape(-1, context, block_width)
    windows = latents[starts[:, None] + stride * torch.arange(context + 1)]
    device = next(model.parameters()).device
    predicted = torch.cat(
        [
            model.predict(batch_latents.to(device), batch_blocks.to(device))[:, -1].cpu()
            for batch_latents, batch_blocks in zip(
                torch.split(windows[:, :-1], MODEL_BATCH),
                torch.split(blocks, MODEL_BATCH),
                strict=True,
            )
        ]
    )
    errors: Tensor = torch.linalg.vector_norm(windows[:, -1] - predicted, dim=-1)
    return errors


def sigreg_window_scores(
    episodes: Sequence[tuple[Tensor, int]], *, windows: int | None = None
) -> Tensor:
    """SIGReg of windows that resemble a stream of served frames.

    A window is made of a few runs of `SIGREG_RUN_FRAMES` successive frames, or fewer if an episode
    is shorter. Such a window resembles the stream of one robot that does one task after another.
    Of all streams that should count as ordinary, this one has the strongest dependence between
    frames and so the widest distribution of SIGReg. The runs are drawn at random, because taken in
    order they would give few windows.

    Args:
        episodes: latents (L, D) of each episode, and the number of steps between served frames.
        windows: their number; None: `SIGREG_WINDOW_COUNT`.

    Returns:
        (windows,), or (0,) if there are fewer latents than in one window.
    """
    runs = [
        run
        for latents, stride in episodes
        for offset in range(stride)
        for run in torch.split(latents[offset::stride], SIGREG_RUN_FRAMES)
    ]
    if sum(map(len, runs)) < SIGREG_WINDOW:
        return torch.empty(0)
    directions = fixed_sigreg_directions(runs[0].shape[1])
    generator = torch.Generator().manual_seed(SIGREG_SEED)
    scores = []
    for _ in range(windows or SIGREG_WINDOW_COUNT):
        window: list[Tensor] = []
        for index in torch.randperm(len(runs), generator=generator).tolist():
            window.append(runs[index])
            if sum(map(len, window)) >= SIGREG_WINDOW:
                break
        scores.append(sigreg(torch.cat(window)[:SIGREG_WINDOW].unsqueeze(0), directions))
    return torch.stack(scores)


def fixed_sigreg_directions(latent_dim: int) -> Tensor:
    """The directions (D, M) for SIGReg of served frames, which are always the same."""
    generator = torch.Generator().manual_seed(SIGREG_SEED)
    return random_directions(latent_dim, SIGREG_DIRECTIONS, generator)


@torch.inference_mode()
def _encode(model: LeWM, episode: CalibrationEpisode) -> Tensor:
    """The latents (F + 1, D) of an episode, on the CPU."""
    model.eval()
    return encode_in_parts(model, episode.frames, episode.states)
