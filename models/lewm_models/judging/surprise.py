"""Surprise and the calibration's limits, on successions that are and are not as recorded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.calibration.calibrate import sigreg_window_scores
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import Calibration
from lewm_models.judging.measure import Estimate, Measure, Rows, estimate, mean_of, share_of
from lewm_models.judging.prediction import MODEL_BATCH, evenly_spaced, shuffled
from lewm_models.lewm import LeWM
from lewm_models.recorded_sample import RecordedSample

MAX_SUCCESSIONS = 2000
"""The most successions that are judged."""

JUMP_BLOCKS = 3
"""A jump is to the frame that comes so many blocks later than the true one, or fewer at the end of
an episode."""

SIGREG_WINDOWS = 200
"""The windows of SIGReg that are compared with the limit."""

Array = NDArray[np.float64]


def surprise_measures(
    model: LeWM,
    held_out: RecordedSample,
    *,
    calibration: Calibration | None,
    reference: LatentReference | None,
) -> list[Measure]:
    """Surprise at true, shuffled, jumped and frozen successions, and the calibration's alarms.

    A succession is a full history and the frame after it. It is shuffled if this frame is one of
    another succession, jumped if it is a later one of the same episode, and frozen if it is the
    frame before.

    Args:
        model: in ``eval()`` mode, on any device.
        held_out: the recorded frames.
        calibration: the card's; None: no alarms are counted.
        reference: of the calibration's Mahalanobis distances.
    """
    context = max(1, model.config.history - 1)
    newest = _newest_of_histories(model, held_out)
    if len(newest) < 2:
        return []
    units, expected = held_out.units[newest], _predict(model, held_out, newest, context)
    nexts = {
        "true": newest + 1,
        "shuffled": (newest + 1)[shuffled(len(newest))],
        "jumped": newest + np.minimum(1 + JUMP_BLOCKS, held_out.left[newest]),
        "frozen": newest,
    }
    surprises = {
        kind: (held_out.latents[torch.from_numpy(rows)] - expected).norm(dim=1).double().numpy()
        for kind, rows in nexts.items()
    }
    is_jump = held_out.left[newest] > 1
    limit = None if calibration is None else calibration.surprise_limit
    measures = list(_of_kinds(surprises, is_jump, units, limit=limit))
    if calibration is not None:
        measures += _alarms(held_out, newest + 1, surprises["true"], calibration, reference)
    return measures


@torch.inference_mode()
def _predict(model: LeWM, held_out: RecordedSample, newest: Rows, context: int) -> Tensor:
    """The latents (n, D) that follow ``context`` frames, the newest of which are given."""
    device = next(model.parameters()).device
    places = torch.from_numpy(newest[:, None] + np.arange(1 - context, 1))
    return torch.cat(
        [
            model.predict(
                held_out.latents[part].to(device), held_out.blocks[part].to(device)
            ).cpu()[:, -1]
            for part in torch.split(places, MODEL_BATCH)
        ]
    )


def _of_kinds(
    surprises: dict[str, Array], is_jump: NDArray[np.bool_], units: Rows, *, limit: float | None
) -> Iterator[Measure]:
    true = surprises["true"]
    of_true = mean_of(true, units)
    yield Measure(
        "surprise_true",
        of_true,
        unit="latent units",
        better="lower",
        samples=len(true),
        baselines={"copy the last": mean_of(surprises["frozen"], units)},
    )
    for kind in ("shuffled", "jumped", "frozen"):
        chosen = is_jump if kind == "jumped" else np.ones(len(true), bool)
        if not chosen.any():
            continue
        of_kind, true_units = surprises[kind][chosen], units[chosen]

        def is_higher(rows: Rows, of_kind: Array = of_kind, true: Array = true[chosen]) -> float:
            """The share of pairs of a changed and a true succession in which the changed one has
            the higher surprise, where equal ones count as half."""
            ordered = np.sort(true[rows])
            below, up_to = (
                np.searchsorted(ordered, of_kind[rows], side) for side in ("left", "right")
            )
            return float((below + up_to).mean() / (2 * len(rows)))

        yield Measure(
            f"surprise_{kind}",
            mean_of(of_kind, true_units),
            unit="latent units",
            better="higher",
            samples=len(of_kind),
            baselines={"true": of_true},
        )
        yield Measure(
            f"surprise_{kind}_above_true",
            estimate(is_higher, true_units),
            unit="of pairs",
            better="higher",
            samples=len(of_kind),
            baselines={"chance": Estimate(0.5)},
        )
        if limit is not None:
            yield Measure(
                f"surprise_{kind}_detected",
                share_of(of_kind > limit, true_units),
                unit="of successions",
                better="higher",
                samples=len(of_kind),
                baselines={"true": share_of(true > limit, units)},
            )


def alarms(
    model: LeWM,
    held_out: RecordedSample,
    calibration: Calibration,
    reference: LatentReference | None,
) -> tuple[Rows, NDArray[np.bool_]]:
    """Frames (n,), given by their rows, and whether any score calls them anomalous.

    A frame is scored with the history before it.
    """
    newest = _newest_of_histories(model, held_out)
    expected = _predict(model, held_out, newest, max(1, model.config.history - 1))
    rows = newest + 1
    surprises = (held_out.latents[torch.from_numpy(rows)] - expected).norm(dim=1).double().numpy()
    by_score = _alarms_by_score(held_out, rows, surprises, calibration, reference)
    return rows, by_score["any"]


def _newest_of_histories(model: LeWM, held_out: RecordedSample) -> Rows:
    """The newest frames of full histories that another frame follows."""
    context = max(1, model.config.history - 1)
    newest = np.flatnonzero((held_out.left >= 1) & (held_out.before >= context - 1))
    return evenly_spaced(newest, MAX_SUCCESSIONS)


def _alarms_by_score(
    held_out: RecordedSample,
    rows: Rows,
    surprises: Array,
    calibration: Calibration,
    reference: LatentReference | None,
) -> dict[str, NDArray[np.bool_]]:
    """Whether each score calls frames anomalous, and whether any does."""
    latents = held_out.latents[torch.from_numpy(rows)]
    zscores = (latents.norm(dim=1) - calibration.norm_mean).abs() / calibration.norm_std
    found = {"norm": (zscores > calibration.zscore_limit).numpy()}
    if reference is not None and calibration.mahalanobis_limit is not None:
        distances = reference.distances(latents)
        found["mahalanobis"] = (distances > calibration.mahalanobis_limit).numpy()
    if calibration.surprise_limit is not None:
        found["surprise"] = surprises > calibration.surprise_limit
    found["any"] = np.logical_or.reduce(list(found.values()))
    return found


def _alarms(
    held_out: RecordedSample,
    rows: Rows,
    surprises: Array,
    calibration: Calibration,
    reference: LatentReference | None,
) -> Iterator[Measure]:
    """The shares of held-out frames that a score calls anomalous, and that any does."""
    units = held_out.units[rows]
    rate = calibration.false_alarm_rate
    expected = {} if rate is None else {"expected at most": Estimate(rate)}
    by_score = _alarms_by_score(held_out, rows, surprises, calibration, reference)
    for name, is_alarm in by_score.items():
        yield Measure(
            f"false_alarms_{name}",
            share_of(is_alarm, units),
            unit="of frames",
            better="lower",
            samples=len(rows),
            baselines=expected,
        )
    if calibration.sigreg_limit is not None:
        scores = _sigreg_scores(held_out)
        if len(scores):
            share = float((scores > calibration.sigreg_limit).float().mean())
            yield Measure(
                "false_alarms_sigreg",
                Estimate(share),  # windows share frames, so no interval holds
                unit="of windows",
                better="lower",
                samples=len(scores),
                baselines=expected,
            )


def _sigreg_scores(held_out: RecordedSample) -> Tensor:
    """SIGReg of windows that resemble a stream of served frames, as in the calibration."""
    ends = (np.flatnonzero(held_out.left == 0) + 1).tolist()
    lengths = np.diff([0, *ends]).tolist()
    sequences = torch.split(held_out.latents, lengths)
    return sigreg_window_scores([(latents, 1) for latents in sequences], windows=SIGREG_WINDOWS)
