"""A complete training run: from data to a model folder, and resumable."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models import checkpoint
from lewm_models.calibration.calibrate import (
    MIN_CALIBRATION_FRAMES,
    calibrate,
    prepared_episodes,
)
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import ModelCard, SolverConfig
from lewm_models.checkpoint import Checkpoint
from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_models.preprocessing import Crop
from lewm_models.training.preparation import Message, Progress
from lewm_models.training.prepared import PreparedData
from lewm_models.training.trainer import (
    REPORT_EVERY,
    MetricsCallback,
    Trainer,
    TrainingConfig,
    TrainingMetrics,
    reestimate_batch_norm,
)
from lewm_models.training.windows import Windows, split_episodes

DATA_FOLDER, MODEL_FOLDER = "data", "model"
CHECKPOINT_FILE, LOG_FILE = "checkpoint.pt", "metrics.jsonl"

MIN_RELATIVE_STD = 1e-6
"""A deviation that is smaller, relative to the values, is due to rounding."""

PRECISION_FRAMES = 5
"""The held-out frames that are saved with a model to test a lower precision on."""


class Source(Protocol):
    """Where the data of a run come from."""

    def prepare(self, folder: Path, progress: Progress, announce: Message) -> PreparedData:
        """Prepare the data in a folder, or open them if they are there."""


@dataclass(frozen=True)
class TrainingRun:
    """What is trained, on what, and what the card will say.

    Attributes:
        name: the model's name.
        source: the data.
        config: the architecture.
        training: the settings of the training loop. Its batch is reduced for few data.
        solver: the defaults of plan requests.
        action_low: the lower bounds of planned actions, as in the card.
        action_high: the upper bounds.
        action_rate_limit: as in the card.
        controllers: as in the card.
        crop: as in the card.
        initial: the model whose weights and action statistics training starts from; None starts
            with new weights, and with the statistics of the data.
        provenance: what the card says about the data, and the command of the run.

    Raises:
        CardError: the card would be impossible; the message starts with the field's name.
    """

    name: str
    source: Source
    config: LeWMConfig
    training: TrainingConfig
    solver: SolverConfig
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_rate_limit: tuple[float, ...] | None = None
    controllers: tuple[str, ...] = ()
    crop: Crop | None = None
    initial: Checkpoint | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Training takes hours: what the card refuses is refused before.
        low, high = np.array(self.action_low), np.array(self.action_high)
        self.card((low + high) / 2, high - low)

    @property
    def plausible_actions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The range (action_dim,) that recorded actions are clipped to: three times the bounds.

        A single faulty value would otherwise decide over the statistics.
        """
        low, high = np.array(self.action_low), np.array(self.action_high)
        return low - (high - low), high + (high - low)

    def card(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> ModelCard:
        """The card of a model that z-scores actions with these statistics (action_dim,)."""
        return ModelCard(
            name=self.name,
            config=self.config,
            action_mean=tuple(mean.tolist()),
            action_std=tuple(std.tolist()),
            action_low=self.action_low,
            action_high=self.action_high,
            action_rate_limit=self.action_rate_limit,
            controllers=self.controllers,
            crop=self.crop,
            solver=self.solver,
        )


def train(
    run: TrainingRun,
    output: Path,
    *,
    device: torch.device,
    on_progress: Progress = lambda done, total: None,
    on_message: Message = lambda line: None,
    on_metrics: MetricsCallback | None = None,
) -> Path:
    """Prepare the data, train, calibrate, and write the model folder ``output/model``.

    A call with the same arguments continues an interrupted run. With fewer than
    `MIN_CALIBRATION_FRAMES` held-out frames the model stays uncalibrated. The log is also written
    to ``output/metrics.jsonl``, one JSON object per report.

    Args:
        run: the settings.
        output: the run's folder.
        device: where to train.
        on_progress: called while the data are prepared.
        on_message: called with lines for people.
        on_metrics: called with each line of the log.

    Returns:
        The model folder.

    Raises:
        ValueError: the output folder holds another run, or the settings are impossible.
        FloatingPointError: a loss is not finite.
    """
    data = run.source.prepare(output / DATA_FOLDER, on_progress, on_message)
    training_pieces, held_out_pieces = split_episodes(data)
    low, high = run.plausible_actions
    mean, std = _action_statistics(run, data)

    def windows_of(pieces: NDArray[np.int64]) -> Windows:
        return Windows(
            data,
            pieces,
            history=run.config.history,
            action_block=run.config.action_block,
            mean=mean,
            std=std,
            low=low,
            high=high,
        )

    windows = windows_of(training_pieces)
    training = replace(run.training, batch=min(run.training.batch, len(windows)))
    model = LeWM(run.config)
    if run.initial is not None:
        model.load_state_dict(run.initial.model.state_dict())
    trainer = Trainer(
        model,
        windows,
        held_out=windows_of(held_out_pieces),
        config=training,
        device=device,
        initial_version=None if run.initial is None else run.initial.version,
    )
    saved = output / CHECKPOINT_FILE
    if saved.exists():
        trainer.resume(saved)
    log = output / LOG_FILE
    _forget_after(log, trainer.step)

    def report(metrics: TrainingMetrics) -> None:
        with log.open("a") as file:
            file.write(json.dumps(metrics.to_json()) + "\n")
        if on_metrics is not None:
            on_metrics(metrics)

    trainer.run(saved, on_metrics=report, report_every=REPORT_EVERY)
    reestimate_batch_norm(model, windows, batch=training.batch, seed=training.seed)

    folder = output / MODEL_FOLDER
    card = replace(
        run.card(mean, std),
        provenance=_provenance(run, trainer),
        figures=_figures_of_same_weights(folder, model),
    )
    reference: LatentReference | None = None
    held_out_frames = sum(len(data.frame_rows(piece)) for piece in held_out_pieces)
    if held_out_frames >= MIN_CALIBRATION_FRAMES:
        episodes = prepared_episodes(data, held_out_pieces, run.config.image_size)
        card, reference = calibrate(model, card, episodes)
    else:
        on_message(
            f"not calibrated: {held_out_frames:,} frames are held out, calibration needs "
            f"{MIN_CALIBRATION_FRAMES:,}"
        )
    frames = _precision_frames(data, held_out_pieces)
    checkpoint.save(folder, model, card, reference=reference, frames=frames)
    return folder


def read_log(output: Path) -> list[TrainingMetrics]:
    """The reports of a run so far."""
    path = output / LOG_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [TrainingMetrics.from_json(json.loads(line)) for line in lines]


def _forget_after(log: Path, step: int) -> None:
    """Remove the reports of later steps, which an interrupted run has written and not saved."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for line in log.read_text().splitlines() if log.exists() else []:
        with suppress(KeyError, TypeError, ValueError):  # the last line may be cut off
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
    log.write_text("".join(lines))


def _action_statistics(
    run: TrainingRun, data: PreparedData
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation (action_dim,) that actions are z-scored with.

    A dimension that does not change has no deviation. It gets the width of its bounds, so that no
    noise of its values is magnified.
    """
    if run.initial is not None:
        card = run.initial.card
        return np.array(card.action_mean), np.array(card.action_std)
    mean, std = data.action_statistics(*run.plausible_actions)
    width = np.subtract(run.action_high, run.action_low)
    return mean, np.where(std > MIN_RELATIVE_STD * np.maximum(np.abs(mean), width), std, width)


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


def _precision_frames(data: PreparedData, pieces: NDArray[np.int64]) -> Tensor:
    """Up to `PRECISION_FRAMES` frames (N, H, H, 3), evenly spaced over the pieces."""
    rows = np.concatenate([np.asarray(data.frame_rows(piece)) for piece in pieces])
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), PRECISION_FRAMES)).astype(np.int64)
    return torch.from_numpy(data.read_frames(rows[chosen]))


def _provenance(run: TrainingRun, trainer: Trainer) -> dict[str, object]:
    """Where the model comes from, and the command that makes it again."""
    return {
        **run.provenance,
        "training": asdict(trainer.config),
        "training_hours": round(trainer.seconds / 3600, 2),
        "precision": str(trainer.precision).removeprefix("torch."),
        "device": trainer.device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
