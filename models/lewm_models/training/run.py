"""A complete training run: from data to a model folder, and resumable."""

from __future__ import annotations

import json
import platform
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event, current_thread, main_thread
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
from lewm_models.config import MIN_STATE_STD, LeWMConfig, StateInput
from lewm_models.distance.loop import ReportCallback
from lewm_models.distance.run import (
    TooFewFrames,
    TrainedDistance,
    forget_after,
    train_distance,
)
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.lewm import LeWM
from lewm_models.preprocessing import Crop
from lewm_models.probe.fit import TooFewStates
from lewm_models.probe.network import StateSpace
from lewm_models.probe.run import FittedProbe, fit_probe_of_model
from lewm_models.recorded_sample import PreparedPieces
from lewm_models.training.parts import UNFINISHED
from lewm_models.training.preparation import Message, Progress
from lewm_models.training.prepared import FILE, OFFSETS, PreparedData
from lewm_models.training.trainer import (
    REPORT_EVERY,
    MetricsCallback,
    StepCallback,
    Trainer,
    TrainingConfig,
    TrainingMetrics,
    reestimate_batch_norm,
)
from lewm_models.training.windows import Windows, split_episodes

DATA_FOLDER, DISTANCE_FOLDER, MODEL_FOLDER = "data", "distance", "model"
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
        distance: the settings of the training of the distance; None trains none.
        states: the states of the data, which a probe is fitted to; None: there are none.
        state_input: whether the model sees the states beside the pixels.
        initial: the model whose weights and action statistics training starts from; None starts
            with new weights, and with the statistics of the data.
        provenance: what the card says about the data, and the command of the run.
        warnings: what the data lack, one sentence each.

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
    distance: DistanceTraining | None = None
    states: StateSpace | None = None
    state_input: bool = False
    initial: Checkpoint | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

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
    on_step: StepCallback = lambda done, total: None,
    on_distance: ReportCallback = lambda report: None,
) -> Path:
    """Prepare the data, train, calibrate, and write the model folder ``output/model``.

    A call with the same arguments continues an interrupted run. On SIGINT (Ctrl-C), the step that
    is being trained is completed and saved, and `KeyboardInterrupt` is raised. With fewer than
    `MIN_CALIBRATION_FRAMES` held-out frames the model stays uncalibrated. The log is also written
    to ``output/metrics.jsonl``, one JSON object per report.

    The distance is trained after the world model, and becomes the objective of plan requests if it
    ranks held-out frames well. With too few frames the model has none. If the data have states, a
    probe is fitted to them.

    Args:
        run: the settings.
        output: the run's folder.
        device: where to train.
        on_progress: called while the data are prepared.
        on_message: called with lines for people.
        on_metrics: called with each line of the log.
        on_step: called after each step of training.
        on_distance: called with each line of the log of the distance.

    Returns:
        The model folder.

    Raises:
        ValueError: the output folder holds another run, or the settings are impossible.
        FloatingPointError: a loss is not finite.
    """
    data = run.source.prepare(output / DATA_FOLDER, on_progress, on_message)
    training_pieces, held_out_pieces = split_episodes(data)
    run = _with_state_statistics(run, data)
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
            with_states=run.state_input,
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
    forget_after(log, trainer.step)

    def report(metrics: TrainingMetrics) -> None:
        with log.open("a") as file:
            file.write(json.dumps(metrics.to_json()) + "\n")
        if on_metrics is not None:
            on_metrics(metrics)

    total = training.steps
    if trainer.step:
        on_message(f"continues at step {trainer.step:,} of {total:,}; prepared frames are reused")
    else:
        on_message(f"training {total:,} steps, with a report every {REPORT_EVERY}")
    with _first_interrupt(on_message) as interrupted:
        trainer.run(
            saved,
            on_metrics=report,
            on_step=on_step,
            report_every=REPORT_EVERY,
            is_stopped=interrupted.is_set,
        )
    if trainer.step < total:
        on_message(f"stopped at step {trainer.step:,} of {total:,}; the same command continues")
        raise KeyboardInterrupt
    reestimate_batch_norm(model, windows, batch=training.batch, seed=training.seed)

    folder = output / MODEL_FOLDER
    card = replace(run.card(mean, std), provenance=_provenance(run, trainer, data))
    distance: TrainedDistance | None = None
    if run.distance is not None:
        try:
            distance = train_distance(
                model,
                card,
                data,
                output / DISTANCE_FOLDER,
                pieces=(training_pieces, held_out_pieces),
                config=run.distance,
                on_progress=on_progress,
                on_report=on_distance,
            )
            card = distance.on_card(card, as_default=distance.ranks_well)
        except TooFewFrames as error:
            on_message(f"no distance: {error}")
    probe = _fit_probe(run, model, card, data, on_message)
    if probe is not None:
        card = probe.on_card(card)
    card = replace(card, figures=_figures_of_same_model(folder, model, card))
    reference: LatentReference | None = None
    held_out_frames = sum(len(data.frame_rows(piece)) for piece in held_out_pieces)
    if held_out_frames >= MIN_CALIBRATION_FRAMES:
        on_message(f"calibrating on {held_out_frames:,} held-out frames")
        episodes = prepared_episodes(
            data, held_out_pieces, run.config.image_size, with_states=run.state_input
        )
        card, reference = calibrate(model, card, episodes)
    else:
        on_message(
            f"not calibrated: {held_out_frames:,} frames are held out, calibration needs "
            f"{MIN_CALIBRATION_FRAMES:,}"
        )
    frames = _precision_frames(data, held_out_pieces)
    checkpoint.save(
        folder,
        model,
        card,
        reference=reference,
        frames=frames,
        distance=None if distance is None else distance.network,
        probe=None if probe is None else probe.network,
    )
    return folder


def _fit_probe(
    run: TrainingRun,
    model: LeWM,
    card: ModelCard,
    data: PreparedData,
    on_message: Message,
) -> FittedProbe | None:
    """The probe of the data's states; None if there are none, or too few of them."""
    if run.states is None or data.states is None:
        return None
    pieces = PreparedPieces(data, run.config.image_size)
    on_message(f"fitting a probe of {', '.join(run.states.names)}")
    try:
        return fit_probe_of_model(model, card, pieces, run.states)
    except TooFewStates as error:
        on_message(f"no probe: {error}")
        return None


def check_output(output: Path) -> None:
    """Refuse a folder with files that are not of a training run.

    Raises:
        ValueError: the message names one of them.
    """
    files = [CHECKPOINT_FILE, LOG_FILE]
    files += [f"{DATA_FOLDER}/{name}" for name in (FILE, UNFINISHED, OFFSETS)]
    if not output.is_dir() or any((output / name).exists() for name in files):
        return
    if names := sorted(path.name for path in output.iterdir()):
        raise ValueError(
            f"--output: {output} is not empty and holds no training run: {', '.join(names[:3])}; "
            "give a new or empty folder"
        )


@contextmanager
def _first_interrupt(on_message: Message) -> Iterator[Event]:
    """An event that the first SIGINT sets; the second one raises `KeyboardInterrupt`.

    A `KeyboardInterrupt` in the middle of a step would leave weights that belong to no step.
    """
    interrupted = Event()

    def note(number: int, frame: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        on_message("stopping after this step; another Ctrl-C stops at once")

    previous = signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or not callable(previous):  # it is ignored
        yield interrupted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def read_log(output: Path) -> list[TrainingMetrics]:
    """The reports of a run so far."""
    path = output / LOG_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return [TrainingMetrics.from_json(json.loads(line)) for line in lines]


def _with_state_statistics(run: TrainingRun, data: PreparedData) -> TrainingRun:
    """The run with the statistics by which its model standardises states, if it takes them.

    A model that training starts from keeps its own. A state that does not change has no deviation;
    it gets 1.
    """
    if not run.state_input or run.config.state_input is not None:
        return run
    assert run.states is not None
    mean, std = data.state_statistics()
    std = np.where(std > MIN_RELATIVE_STD * np.maximum(np.abs(mean), MIN_STATE_STD), std, 1.0)
    given = StateInput(run.states.names, tuple(mean.tolist()), tuple(std.tolist()))
    return replace(run, config=replace(run.config, state_input=given))


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


def _figures_of_same_model(folder: Path, model: LeWM, card: ModelCard) -> dict[str, object]:
    """The measured results on the folder's card if weights and distance are the same, else none."""
    try:
        previous = checkpoint.load(folder)
    except checkpoint.CheckpointError:
        return {}
    weights, previous_weights = model.state_dict(), previous.model.state_dict()
    is_same = (
        previous.model.config == model.config
        and previous.card.distance == card.distance
        and all(torch.equal(value.cpu(), previous_weights[name]) for name, value in weights.items())
    )
    return previous.card.figures if is_same else {}


def _precision_frames(data: PreparedData, pieces: NDArray[np.int64]) -> Tensor:
    """Up to `PRECISION_FRAMES` frames (N, H, H, 3), evenly spaced over the pieces."""
    rows = np.concatenate([np.asarray(data.frame_rows(piece)) for piece in pieces])
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), PRECISION_FRAMES)).astype(np.int64)
    return torch.from_numpy(data.read_frames(rows[chosen]))


def _provenance(run: TrainingRun, trainer: Trainer, data: PreparedData) -> dict[str, object]:
    """Where the model comes from, and the command that makes it again."""
    recording = dict(run.provenance.get("recording", {}))
    if (fingerprint := data.made_from.get("fingerprint")) is not None:
        recording["fingerprint"] = fingerprint
    return {
        **run.provenance,
        "recording": recording,
        "training": asdict(trainer.config),
        "training_hours": round(trainer.seconds / 3600, 2),
        "precision": str(trainer.precision).removeprefix("torch."),
        "device": trainer.device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
