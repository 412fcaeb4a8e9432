"""A complete training of a distance and its proposal; resumable."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lewm_models.calibration.reference import sha256_of
from lewm_models.card import LearnedDistance, ModelCard
from lewm_models.distance.latents import Progress, encode_pieces
from lewm_models.distance.loop import ReportCallback, TrainingLoop, TrainingReport
from lewm_models.distance.network import GoalDistance
from lewm_models.distance.proposal_trainer import ProposalTrainer
from lewm_models.distance.trainer import DistanceTrainer, DistanceTraining
from lewm_models.lewm import LeWM
from lewm_models.training.prepared import PreparedData

LATENTS_FILE, HELD_OUT_FILE = "latents.safetensors", "held-out.safetensors"

MIN_TRAINING_PAIRS, MIN_HELD_OUT_PAIRS = 200, 20
"""Fewer pairs of successive frames are too few to train a distance, or to say how good it is."""

PROPOSAL_STEPS_SHARE = 0.25
"""The training steps of the proposal, relative to those of the distance."""

MIN_RANK_CORRELATION = 0.3
"""A distance that ranks held-out pairs worse than this is not worth planning with."""


class TooFewFrames(ValueError):
    """The data have too few frames for a distance. The message says how many."""


@dataclass(frozen=True)
class TrainedDistance:
    """A trained distance, and what the card says about it."""

    network: GoalDistance
    described: LearnedDistance
    provenance: dict[str, Any]

    @property
    def ranks_well(self) -> bool:
        """Whether it is worth planning with."""
        return self.described.rank_correlation >= MIN_RANK_CORRELATION

    def on_card(self, card: ModelCard, *, as_default: bool) -> ModelCard:
        """The card with this distance; ``as_default`` makes it the objective of plan requests."""
        solver = card.solver
        if as_default:
            solver = replace(solver, objective="distance")
        provenance = {**card.provenance, "distance": self.provenance}
        return replace(card, distance=self.described, solver=solver, provenance=provenance)


def train_distance(
    model: LeWM,
    card: ModelCard,
    data: PreparedData,
    folder: Path,
    *,
    pieces: tuple[NDArray[np.int64], NDArray[np.int64]],
    config: DistanceTraining,
    on_progress: Progress = lambda done, total: None,
    on_report: ReportCallback = lambda report: None,
) -> TrainedDistance:
    """Train a distance on the latents of a model, and then its proposal. The model does not change.

    A call with the same arguments continues an interrupted one. The logs are also written to
    ``folder/distance.jsonl`` and ``folder/proposal.jsonl``, one JSON object per report.

    Args:
        model: in ``eval()`` mode, on the device where to train.
        card: its card: the bounds of actions, and the horizon of plans.
        data: the recorded steps.
        folder: for the files of the run.
        pieces: the pieces to train on, and those that are held out.
        config: the settings.
        on_progress: called while frames are encoded.
        on_report: called with each report.

    Raises:
        TooFewFrames: the pieces have too few frames.
        FloatingPointError: a loss is not finite.
    """
    encoded = [
        encode_pieces(model, data, numbers, cache=folder / name, progress=on_progress)
        for numbers, name in zip(pieces, (LATENTS_FILE, HELD_OUT_FILE), strict=True)
    ]
    training, held_out = encoded
    for name, part, least in (
        ("training", training, MIN_TRAINING_PAIRS),
        ("held-out", held_out, MIN_HELD_OUT_PAIRS),
    ):
        if (steps := len(part.rows_left[0])) < least:
            raise TooFewFrames(
                f"the {name} episodes have {steps:,} pairs of successive frames, a distance needs "
                f"{least:,}"
            )
    device = next(model.parameters()).device
    trainer = DistanceTrainer(training, held_out, config, device)
    _run(trainer, folder, on_report)
    quality = asdict(trainer.quality())
    network = trainer.network.eval().requires_grad_(False)
    low, high = (
        torch.from_numpy(bound).repeat(card.config.action_block) for bound in card.zscored_bounds
    )
    proposals = ProposalTrainer(
        model,
        network,
        training,
        held_out,
        low=low,
        high=high,
        horizon=card.solver.horizon,
        steps=max(1, round(PROPOSAL_STEPS_SHARE * config.steps)),
        seed=config.seed,
        identity={"distance": sha256_of(network.to_bytes())},
    )
    _run(proposals, folder, on_report)
    quality |= proposals.measure()
    network.proposal = proposals.proposal
    network = network.cpu().eval().requires_grad_(False)
    return TrainedDistance(
        network=network,
        described=LearnedDistance(
            network=sha256_of(network.to_bytes()),
            training_frames=len(training.latents),
            held_out_frames=quality.pop("frames"),
            **{name: round(value, 4) for name, value in quality.items()},
        ),
        provenance={**asdict(config), "device": device.type},
    )


def _run(trainer: TrainingLoop, folder: Path, on_report: ReportCallback) -> None:
    """Train to the end, from the checkpoint if there is one, with a log."""
    checkpoint, log = folder / f"{trainer.part}.pt", folder / f"{trainer.part}.jsonl"
    trainer.resume(checkpoint)
    forget_after(log, trainer.step)

    def report(line: TrainingReport) -> None:
        with log.open("a") as file:
            file.write(json.dumps(line.to_json()) + "\n")
        on_report(line)

    trainer.run(checkpoint, on_report=report)


def forget_after(log: Path, step: int) -> None:
    """Remove the reports of later steps, which an interrupted run has written and not saved."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for line in log.read_text().splitlines() if log.exists() else []:
        with suppress(KeyError, TypeError, ValueError):  # the last line may be cut off
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
    log.write_text("".join(lines))
