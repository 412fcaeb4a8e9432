"""The health of a request's own frames: every score against the limit in the model's card."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lewm_models.calibration.reference import LatentReference
from lewm_models.card import Calibration
from lewm_serve.responses import Health, HealthStatus

Kind = Literal["norm", "mahalanobis", "surprise", "sigreg"]
KINDS: tuple[Kind, ...] = ("norm", "mahalanobis", "surprise", "sigreg")
"""What may be unusual: closed, since each is a label of a metric."""
JUDGEMENTS: tuple[HealthStatus, ...] = ("ok", "degraded", "anomalous", "uncalibrated")
"""What `assess` may say of a request: `unknown` is what it never saw."""

Finding = tuple[Kind, str]
"""A score beyond its limit: its kind, and the reason that health gives."""


class Scores(NamedTuple):
    """What a request's latents say by themselves, before anything is predicted.

    ``latents`` (N, D), ``norms`` and ``zscores`` are those of the frames. Health tells the norm of
    the frame ``furthest`` from the mean, and the greatest Mahalanobis ``distance``. ``found`` is
    what lies beyond its limit, of the frames or of the goal.
    """

    latents: Tensor
    norms: tuple[float, ...]
    zscores: tuple[float | None, ...]
    furthest: int
    distance: float | None = None
    found: tuple[Finding, ...] = ()

    def surprise(self, predicted: Tensor | None) -> float | None:
        """How far the newest latent lies from the one ``predicted`` (D,), where one was."""
        if predicted is None:
            return None
        distance: float = torch.linalg.vector_norm(self.latents[-1] - predicted).item()
        return distance


class Assessment(NamedTuple):
    """Health, and the kinds of score that exceeded their limits."""

    health: Health
    kinds: tuple[Kind, ...] = ()


def score(
    calibration: Calibration | None,
    reference: LatentReference | None,
    latents: Tensor,
    frames: int | None = None,
) -> Scores:
    """Look at the latents (N, D) of a request's ``frames`` and, after them, of its goal.

    Where no number of frames is given, all are.
    """
    # Small tensors cost what their operations cost, so frames and goal are looked at together.
    norms: list[float] = torch.linalg.vector_norm(latents, dim=-1).tolist()
    own = len(norms) if frames is None else frames
    if calibration is None:
        return Scores(latents[:own], tuple(norms[:own]), (None,) * own, own - 1)
    zscores = [(norm - calibration.norm_mean) / calibration.norm_std for norm in norms]
    deviations = list(map(abs, zscores))
    furthest, limit = _worst(deviations[:own]), calibration.zscore_limit
    found: list[Finding] = []
    for index in (furthest, *range(own, len(norms))):
        if exceeds(deviations[index], limit):
            what = f"latent norm {norms[index]:.2f}; its deviation in standard deviations"
            found.append(
                ("norm", _reason(f"{_name(index, own)}: {what}", deviations[index], limit))
            )
    distance: float | None = None
    if reference is not None:
        distances: list[float] = reference.distances(latents).tolist()
        farthest, most = _worst(distances[:own]), calibration.mahalanobis_limit
        distance = distances[farthest]
        for index in (farthest, *range(own, len(norms))):
            if exceeds(distances[index], most):
                what = "Mahalanobis distance of the latent"
                reason = _reason(f"{_name(index, own)}: {what}", distances[index], most)
                found.append(("mahalanobis", reason))
    figures = tuple(norms[:own]), tuple(zscores[:own])
    return Scores(latents[:own], *figures, furthest, distance, tuple(found))


def is_anomalous(
    calibration: Calibration | None, scores: Scores, surprise: float | None = None
) -> bool:
    """Whether `judge` will say `anomalous`, whatever the stream is like."""
    if calibration is None:
        return False
    return bool(scores.found) or exceeds(surprise, calibration.surprise_limit)


def judge(
    calibration: Calibration | None,
    scores: Scores,
    surprise: float | None = None,
    sigreg: float | None = None,
) -> Assessment:
    """The health that these scores make.

    A model without calibration is `uncalibrated`, never `ok`; a score without a limit is reported
    and not judged.
    """
    norm, zscore = scores.norms[scores.furthest], scores.zscores[scores.furthest]
    if calibration is None:
        why = ("the model has no calibration",)
        return Assessment(Health("uncalibrated", norm, zscore, surprise, sigreg, why))
    found = scores.found
    if exceeds(surprise, limit := calibration.surprise_limit):
        what = "distance of the latent from the predicted one"
        newest = len(scores.norms) - 1
        found += (("surprise", _reason(f"frames[{newest}]: {what}", surprise, limit)),)
    if exceeds(sigreg, limit := calibration.sigreg_limit):
        what = "SIGReg of the stream of all requests' frames"
        found += (("sigreg", _reason(what, sigreg, limit)),)
    if not found:
        return Assessment(Health("ok", norm, zscore, surprise, sigreg, (), scores.distance))
    kinds = tuple(dict.fromkeys(kind for kind, _ in found))
    status: HealthStatus = "degraded" if kinds == ("sigreg",) else "anomalous"
    reasons = tuple(reason for _, reason in found)
    health = Health(status, norm, zscore, surprise, sigreg, reasons, scores.distance)
    return Assessment(health, kinds)


def exceeds(score: float | None, limit: float | None) -> bool:
    """Whether there are both, and the score is above its limit, as NaN is above every one."""
    return score is not None and limit is not None and not score <= limit


def _worst(scores: list[float]) -> int:
    """Where the largest is of scores that are none below 0; NaN is larger than any."""
    if math.isnan(sum(scores)):
        return [math.isnan(one) for one in scores].index(True)
    return scores.index(max(scores))


def _name(index: int, frames: int) -> str:
    return "goal" if index == frames else f"frames[{index}]"


def _reason(what: str, score: float | None, limit: float | None) -> str:
    return f"{what} is {score:.1f}, the limit is {limit:.1f}"
