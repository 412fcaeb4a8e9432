"""The health of a request's own frames: every score against the limit in the model's card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from models.calibration.reference import LatentReference
from models.card import Calibration
from service.responses import Health, HealthStatus

Kind = Literal["norm", "mahalanobis", "surprise", "sigreg"]
KINDS: tuple[Kind, ...] = ("norm", "mahalanobis", "surprise", "sigreg")
"""What may be unusual: closed, since each is a label of a metric."""


@dataclass(frozen=True)
class Assessment:
    """Health, and the kinds of score that exceeded their limits."""

    health: Health
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
    norms: list[float] = latents.norm(dim=-1).tolist()
    if calibration is None:
        reasons = ("the model has no calibration",)
        health = Health("uncalibrated", norms[-1], None, surprise, sigreg, reasons)
        return Assessment(health)
    zscores = [(norm - calibration.norm_mean) / calibration.norm_std for norm in norms]
    furthest = max(range(len(norms)), key=lambda index: abs(zscores[index]))
    norm, zscore = norms[furthest], zscores[furthest]
    name = f"frames[{furthest}]"
    scores: list[tuple[Kind, str, float | None, float | None]] = [
        ("norm", _norm(name, norm), abs(zscore), calibration.zscore_limit)
    ]
    distance: float | None = None
    if reference is not None:
        distances = reference.distances(latents)
        farthest = int(distances.argmax())
        distance = float(distances[farthest])
        what = _distance(f"frames[{farthest}]")
        scores.append(("mahalanobis", what, distance, calibration.mahalanobis_limit))
    if goal is not None:
        length = float(goal.norm())
        deviation = abs(length - calibration.norm_mean) / calibration.norm_std
        scores.append(("norm", _norm("goal", length), deviation, calibration.zscore_limit))
        if reference is not None:
            away = float(reference.distances(goal[None]))
            scores.append(("mahalanobis", _distance("goal"), away, calibration.mahalanobis_limit))
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
    health = Health(status, norm, zscore, surprise, sigreg, tuple(found), distance)
    return Assessment(health, kinds)


def _norm(name: str, norm: float) -> str:
    return f"{name}: latent norm {norm:.2f}; its deviation in standard deviations"


def _distance(name: str) -> str:
    return f"{name}: Mahalanobis distance of the latent"
