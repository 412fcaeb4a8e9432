"""The health of the frames of requests: scores of their latents against the model's calibration.

`score_latents` and `assess` judge one request. `Monitor` does so for all requests, counts the
results in the metrics, and computes SIGReg, which says how far the stream of all latents is from a
Gaussian (`lewm_models.loss`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from random import Random
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lewm_models.calibration.calibrate import SIGREG_WINDOW, fixed_sigreg_directions
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import Calibration
from lewm_models.loss import sigreg_quadrature
from lewm_serve.api.responses import Health
from lewm_serve.constants import ANOMALY_KINDS, ASSESSED_STATUSES, AnomalyKind
from lewm_serve.observability.metrics import Metrics
from lewm_serve.registry.registry import LoadedModel

STREAM_SHARE = 1 / 8
"""The share of latents that join the window of the stream, chosen at random.

A robot that plans at every step sends nearly the same frame again and again. SIGReg would report
that as collapsed latents. With a random choice, the latents of the window are further apart in
time."""


class Anomaly(NamedTuple):
    """A score above its limit: its kind, and a sentence for people."""

    kind: AnomalyKind
    reason: str


class LatentScores(NamedTuple):
    """The scores that need no prediction: those of a request's latents.

    Attributes:
        latents: the latents (N, D) of the frames, without the goal.
        norms: their norms.
        zscores: the z-scores of the norms; None without a calibration.
        most_unusual: the index of the frame whose norm has the largest z-score.
        mahalanobis: the largest Mahalanobis distance of the frames.
        anomalies: the scores above their limits, of the frames and of the goal.
    """

    latents: Tensor
    norms: tuple[float, ...]
    zscores: tuple[float | None, ...]
    most_unusual: int
    mahalanobis: float | None = None
    anomalies: tuple[Anomaly, ...] = ()


class Assessment(NamedTuple):
    """The health of a request, and the kinds of scores that were above their limits."""

    health: Health
    anomalous_kinds: tuple[AnomalyKind, ...] = ()


def score_latents(
    calibration: Calibration | None,
    reference: LatentReference | None,
    latents: Tensor,
    *,
    frame_count: int | None = None,
) -> LatentScores:
    """Score the latents (N, D) of a request's frames and, after these, of its goal.

    ``frame_count`` is the number of frames; the rest is the goal. None: all latents are frames.
    """
    # Small tensors cost per operation, not per value. So frames and goal are scored together.
    norms: list[float] = torch.linalg.vector_norm(latents, dim=-1).tolist()
    count = len(norms) if frame_count is None else frame_count
    if calibration is None:
        return LatentScores(
            latents=latents[:count],
            norms=tuple(norms[:count]),
            zscores=(None,) * count,
            most_unusual=count - 1,
        )
    zscores = [(norm - calibration.norm_mean) / calibration.norm_std for norm in norms]
    deviations = list(map(abs, zscores))
    most_unusual = _index_of_largest(deviations[:count])
    zscore_limit = calibration.zscore_limit
    anomalies: list[Anomaly] = []
    for index in (most_unusual, *range(count, len(norms))):
        if exceeds(deviations[index], zscore_limit):
            name = _latent_name(index, count)
            what = f"{name}: latent norm {norms[index]:.2f}; its deviation in standard deviations"
            anomalies.append(Anomaly("norm", _reason(what, deviations[index], zscore_limit)))
    mahalanobis: float | None = None
    if reference is not None:
        distances: list[float] = reference.distances(latents).tolist()
        furthest = _index_of_largest(distances[:count])
        distance_limit = calibration.mahalanobis_limit
        mahalanobis = distances[furthest]
        for index in (furthest, *range(count, len(norms))):
            if exceeds(distances[index], distance_limit):
                what = f"{_latent_name(index, count)}: Mahalanobis distance of the latent"
                reason = _reason(what, distances[index], distance_limit)
                anomalies.append(Anomaly("mahalanobis", reason))
    return LatentScores(
        latents=latents[:count],
        norms=tuple(norms[:count]),
        zscores=tuple(zscores[:count]),
        most_unusual=most_unusual,
        mahalanobis=mahalanobis,
        anomalies=tuple(anomalies),
    )


def assess(
    calibration: Calibration | None,
    scores: LatentScores,
    *,
    surprise: float | None = None,
    sigreg: float | None = None,
) -> Assessment:
    """The health that these scores mean.

    A model without a calibration is `uncalibrated`, never `ok`. A score without a limit is reported
    only. SIGReg of the stream alone makes a request at most `degraded`, because it says nothing
    about this request's frames. A score that is not finite is above its limit and left out.
    """
    norm = _finite_or_none(scores.norms[scores.most_unusual])
    zscore = _finite_or_none(scores.zscores[scores.most_unusual])
    if calibration is None:
        health = Health(
            status="uncalibrated",
            latent_norm=norm,
            latent_norm_zscore=zscore,
            surprise=_finite_or_none(surprise),
            sigreg=sigreg,
            reasons=("the model has no calibration",),
        )
        return Assessment(health)
    anomalies = list(scores.anomalies)
    if exceeds(surprise, calibration.surprise_limit):
        newest = len(scores.norms) - 1
        what = f"frames[{newest}]: distance of the latent from the predicted one"
        anomalies.append(Anomaly("surprise", _reason(what, surprise, calibration.surprise_limit)))
    if exceeds(sigreg, calibration.sigreg_limit):
        what = "SIGReg of the stream of all requests' frames"
        anomalies.append(Anomaly("sigreg", _reason(what, sigreg, calibration.sigreg_limit)))
    kinds = tuple(dict.fromkeys(anomaly.kind for anomaly in anomalies))
    health = Health(
        status="ok" if not kinds else "degraded" if kinds == ("sigreg",) else "anomalous",
        latent_norm=norm,
        latent_norm_zscore=zscore,
        surprise=_finite_or_none(surprise),
        sigreg=sigreg,
        reasons=tuple(anomaly.reason for anomaly in anomalies),
        latent_mahalanobis=_finite_or_none(scores.mahalanobis),
    )
    return Assessment(health, kinds)


def exceeds(score: float | None, limit: float | None) -> bool:
    """Whether there is a score and it is above its limit. NaN is above every limit."""
    return score is not None and limit is not None and not score <= limit


def _finite_or_none(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def _index_of_largest(scores: list[float]) -> int:
    """The index of the largest of scores that are not negative. NaN is the largest."""
    if math.isnan(sum(scores)):
        return [math.isnan(score) for score in scores].index(True)
    return scores.index(max(scores))


def _latent_name(index: int, frame_count: int) -> str:
    return "goal" if index == frame_count else f"frames[{index}]"


def _reason(what: str, score: float | None, limit: float | None) -> str:
    return f"{what} is {score:.1f}, the limit is {limit:.1f}"


class Monitor:
    """Scores and records the health of every request. Used only from the event loop.

    Each version of a model has a stream of its own: SIGReg of latents of two models means nothing.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._streams: WeakKeyDictionary[LoadedModel, LatentStream] = WeakKeyDictionary()
        self._health_metrics: dict[str, HealthMetrics] = {}
        self._current_versions: dict[str, str] = {}

    def watch(self, models: Iterable[LoadedModel]) -> None:
        """Count the health of the current models from now on, from 0 on.

        The gauges of replaced and removed models disappear.
        """
        before = self._current_versions
        self._current_versions = {}
        for model in models:
            self._current_versions[model.name] = model.version
            if model.name not in self._health_metrics:
                self._health_metrics[model.name] = HealthMetrics(self._metrics, model.name)
            if model not in self._streams:
                calibration = model.card.calibration
                window = (calibration and calibration.sigreg_window) or SIGREG_WINDOW
                directions = fixed_sigreg_directions(model.card.config.latent_dim)
                self._streams[model] = LatentStream(directions, window)
        for name, version in before.items():
            if self._current_versions.get(name) != version:
                self._health_metrics[name].forget_gauges()

    def score(
        self, model: LoadedModel, latents: Tensor, frame_count: int | None = None
    ) -> LatentScores:
        """Score latents (N, D) of a request's frames and goal; see `score_latents`."""
        return score_latents(
            model.card.calibration, model.reference, latents, frame_count=frame_count
        )

    def record(
        self,
        model: LoadedModel,
        scores: LatentScores,
        *,
        surprise: float | None = None,
        new_frames: int = 1,
    ) -> Health:
        """The health of a request with these scores. The metrics count it.

        ``new_frames`` is how many of its newest frames are taken to be new; the others are those of
        earlier requests. A random part of the new ones joins the stream.
        """
        stream = self._streams[model]
        stream.add(scores.latents, new_frames)
        assessment = assess(model.card.calibration, scores, surprise=surprise, sigreg=stream.sigreg)
        is_current = self._current_versions.get(model.name) == model.version
        self._health_metrics[model.name].count(scores, assessment, sets_gauges=is_current)
        return assessment.health


class HealthMetrics:
    """The health metrics of all versions of one model.

    The two gauges are those of the current version, and appear when they have their first value.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._zscore, self._sigreg = metrics.latent_norm_zscore, metrics.latent_sigreg
        self._model = model
        self._norm = metrics.latent_norm.labels(model)
        self._mahalanobis = metrics.latent_mahalanobis.labels(model)
        self._surprise = metrics.surprise.labels(model)
        self._by_status = {
            status: metrics.health_total.labels(model, status) for status in ASSESSED_STATUSES
        }
        self._by_kind = {
            kind: metrics.anomalies_total.labels(model, kind) for kind in ANOMALY_KINDS
        }

    def forget_gauges(self) -> None:
        """Drop the gauges until they have a new value."""
        self._zscore.remove(self._model)
        self._sigreg.remove(self._model)

    def count(
        self, scores: LatentScores, assessment: Assessment, *, sets_gauges: bool = True
    ) -> None:
        """Count one request."""
        health = assessment.health
        for norm in filter(math.isfinite, scores.norms):  # NaN would stay in the sum for ever
            self._norm.observe(norm)
        if sets_gauges and health.latent_norm_zscore is not None:
            self._zscore.labels(self._model).set(health.latent_norm_zscore)
        if health.latent_mahalanobis is not None:
            self._mahalanobis.observe(health.latent_mahalanobis)
        if health.surprise is not None:
            self._surprise.observe(health.surprise)
        if sets_gauges and health.sigreg is not None:
            self._sigreg.labels(self._model).set(health.sigreg)
        assert health.status != "unknown"  # these frames were assessed
        self._by_status[health.status].inc()
        for kind in assessment.anomalous_kinds:
            self._by_kind[kind].inc()


class LatentStream:
    """A random part of the newest latents of a model, from all requests, and their SIGReg.

    SIGReg (`lewm_models.loss`) is a weighted sum of squares of differences: the means of cos(t·aᵀz)
    and sin(t·aᵀz) over the window, minus those of a Gaussian. The knots t are the points of its
    quadrature. If each difference is multiplied by the root of its weight, SIGReg is the squared
    length of one vector: the sum of the parts of all latents, minus the Gaussian's part. The part
    of a latent is computed once. It is added when the latent enters the window and subtracted when
    it leaves, in float64, so that no error accumulates.

    Args:
        directions: unit directions (D, M).
        window: the number of latents in the window.
        share: the share of latents that join it.
    """

    def __init__(self, directions: Tensor, window: int, share: float = STREAM_SHARE) -> None:
        self._directions = directions
        self._window = window
        self._share = share
        self._random = Random(0)
        self._knots, gaussian, weights = sigreg_quadrature(torch.device("cpu"))
        count = directions.shape[1]
        self._weight_roots = (weights / (window * count)).sqrt()
        self._parts: deque[Tensor] = deque()
        real = (-window * gaussian.double() * self._weight_roots).expand(count, -1)
        self._sum = torch.stack([real, torch.zeros_like(real)]).flatten()
        self._sigreg: float | None = None

    @property
    def sigreg(self) -> float | None:
        """SIGReg of the window; None until it is full."""
        return self._sigreg

    def add(self, latents: Tensor, new: int) -> None:
        """Let some of the last ``new`` latents of (N, D) join the window."""
        chosen = [row for row in range(-new, 0) if self._random.random() < self._share]
        if chosen:
            self._join(latents[row] for row in chosen[-self._window :])

    def _join(self, latents: Iterable[Tensor]) -> None:
        for latent in latents:
            part = self._part(latent)
            if not bool(part.isfinite().all()):
                continue  # it would stay in the sum for ever
            self._parts.append(part)
            self._sum += part
            if len(self._parts) > self._window:
                self._sum -= self._parts.popleft()
        if len(self._parts) == self._window:
            self._sigreg = self._sum.dot(self._sum).item()

    def _part(self, latent: Tensor) -> Tensor:
        """The part (2 · directions · knots,) of the sum that a latent (D,) contributes."""
        angles = (latent @ self._directions).outer(self._knots)
        return torch.stack([angles.cos(), angles.sin()]).mul_(self._weight_roots).flatten()
