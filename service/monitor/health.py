"""The health of a request's own frames: every score against the limit in the model's card."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.calibration.reference import LatentReference
from models.card import Calibration
from service.responses import Health, HealthStatus

Kind = Literal["norm", "mahalanobis", "surprise", "sigreg"]
KINDS: tuple[Kind, ...] = ("norm", "mahalanobis", "surprise", "sigreg")
"""What may be unusual: closed, since each is a label of a metric."""
JUDGEMENTS: tuple[HealthStatus, ...] = ("ok", "degraded", "anomalous", "uncalibrated")
"""What `assess` may say of a request: `unknown` is what it never saw."""


@dataclass(frozen=True)
class Assessment:
    """Health, the frames' norms, and the kinds of score that exceeded their limits."""

    health: Health
    norms: tuple[float, ...]
    kinds: tuple[Kind, ...] = ()


def assess(
    calibration: Calibration | None,
    reference: LatentReference | None,
    latents: Tensor,
    goal: Tensor | None = None,
    surprise: float | None = None,
    sigreg: float | None = None,
) -> Assessment:
    """Judge the latents (N, D) of a request's frames, and that of its goal (D,).

    The figures are those of the frames alone: the norm furthest from the calibration's mean, the
    greatest Mahalanobis distance. A model without calibration is `uncalibrated`, never `ok`; a
    score without a limit is reported and not judged.
    """
    # The goal last: small tensors cost what their operations cost, so all are looked at together.
    shown = latents if goal is None else torch.cat([latents, goal.unsqueeze(0)])
    count = len(latents)
    norms: list[float] = torch.linalg.vector_norm(shown, dim=-1).tolist()
    if calibration is None:
        reasons = ("the model has no calibration",)
        health = Health("uncalibrated", norms[count - 1], None, surprise, sigreg, reasons)
        return Assessment(health, tuple(norms[:count]))
    zscores = [(norm - calibration.norm_mean) / calibration.norm_std for norm in norms]
    deviations = list(map(abs, zscores))
    distances: list[float] = [] if reference is None else reference.distances(shown).tolist()
    furthest = _worst(deviations[:count])
    distance: float | None = None
    scores: list[tuple[Kind, str, float | None, float | None]] = []
    for index in (furthest, *range(count, len(norms))):
        what = _norm(_name(index, count), norms[index])
        scores.append(("norm", what, deviations[index], calibration.zscore_limit))
    if distances:
        farthest = _worst(distances[:count])
        distance = distances[farthest]
        for index in (farthest, *range(count, len(norms))):
            what = f"{_name(index, count)}: Mahalanobis distance of the latent"
            scores.append(("mahalanobis", what, distances[index], calibration.mahalanobis_limit))
    what = f"frames[{len(latents) - 1}]: distance of the latent from the predicted one"
    scores.append(("surprise", what, surprise, calibration.surprise_limit))
    what = "SIGReg of the stream of all requests' frames"
    scores.append(("sigreg", what, sigreg, calibration.sigreg_limit))
    found = {
        f"{what} is {score:.1f}, the limit is {limit:.1f}": kind
        for kind, what, score, limit in scores
        # NaN is above every limit.
        if score is not None and limit is not None and not score <= limit
    }
    kinds = tuple(kind for kind in KINDS if kind in found.values())
    status: HealthStatus = "ok"
    if kinds:
        status = "degraded" if kinds == ("sigreg",) else "anomalous"
    own = norms[furthest], zscores[furthest]
    health = Health(status, *own, surprise, sigreg, tuple(found), distance)
    return Assessment(health, tuple(norms[:count]), kinds)


def _worst(scores: list[float]) -> int:
    """Where the largest is; NaN is larger than any."""
    return max(range(len(scores)), key=lambda at: (math.isnan(scores[at]), scores[at]))


def _name(index: int, frames: int) -> str:
    return "goal" if index == frames else f"frames[{index}]"


def _norm(name: str, norm: float) -> str:
    return f"{name}: latent norm {norm:.2f}; its deviation in standard deviations"
