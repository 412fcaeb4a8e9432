"""Sees each latent that is served and says how far it lies from what its model knows."""

from __future__ import annotations

import torch
from torch import Tensor

from models.calibration.calibrate import SIGREG_WINDOW, fixed_directions
from service.metrics import Metrics
from service.monitor.health import JUDGEMENTS, KINDS, assess
from service.monitor.stream import LatentStream
from service.responses import Health
from service.served import ServedModel


class Monitor:
    """The health of every request, and the metrics that tell operators. Lives on the event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._streams: dict[str, LatentStream] = {}

    def watch(self, model: ServedModel) -> None:
        """Begin a model's stream of latents, its counters and histograms at 0."""
        calibration, width = model.card.calibration, model.card.config.latent_dim
        size = (calibration and calibration.sigreg_window) or SIGREG_WINDOW
        self._streams[model.name] = LatentStream(fixed_directions(width), size)
        for kind in KINDS:
            self._metrics.anomalies_total.labels(model.name, kind)
        for status in JUDGEMENTS:
            self._metrics.health_total.labels(model.name, status)
        metrics = self._metrics
        for histogram in (metrics.latent_norm, metrics.latent_mahalanobis, metrics.surprise):
            histogram.labels(model.name)

    def is_anomalous(
        self, model: ServedModel, latents: Tensor, goal: Tensor, predicted: Tensor | None = None
    ) -> bool:
        """Whether `assess`, with the same arguments, will say `anomalous`; nothing is counted."""
        surprise = _surprise(latents, predicted)
        found = assess(model.card.calibration, model.reference, latents, goal, surprise)
        return found.health.status == "anomalous"

    def assess(
        self,
        model: ServedModel,
        latents: Tensor,
        goal: Tensor | None = None,
        predicted: Tensor | None = None,
        fresh: int = 1,
    ) -> Health:
        """The health of a request's frames, whose latents are (N, D), and of its goal (D,).

        ``predicted`` (D,) is what the newest latent was expected to be. The last ``fresh`` of the
        frames join the stream: those before them came with earlier requests.
        """
        stream = self._streams[model.name]
        stream.add(latents[-fresh:])
        sigreg = stream.sigreg
        surprise = _surprise(latents, predicted)
        calibration = model.card.calibration
        assessment = assess(calibration, model.reference, latents, goal, surprise, sigreg)
        health = assessment.health
        metrics, name = self._metrics, model.name
        histogram = metrics.latent_norm.labels(name)
        for norm in assessment.norms:
            histogram.observe(norm)
        if health.latent_norm_zscore is not None:
            metrics.latent_norm_zscore.labels(name).set(health.latent_norm_zscore)
        if health.latent_mahalanobis is not None:
            metrics.latent_mahalanobis.labels(name).observe(health.latent_mahalanobis)
        if surprise is not None:
            metrics.surprise.labels(name).observe(surprise)
        if sigreg is not None:
            metrics.latent_sigreg.labels(name).set(sigreg)
        metrics.health_total.labels(name, health.status).inc()
        for kind in assessment.kinds:
            metrics.anomalies_total.labels(name, kind).inc()
        return health


def _surprise(latents: Tensor, predicted: Tensor | None) -> float | None:
    return None if predicted is None else float(torch.dist(latents[-1], predicted))


def norm_zscores(model: ServedModel, latents: Tensor) -> list[float | None]:
    """How many deviations the norm of each latent (N, D) lies from the calibration's mean."""
    calibration = model.card.calibration
    if calibration is None:
        return [None] * len(latents)
    norms = torch.linalg.vector_norm(latents, dim=-1)
    zscores: list[float | None] = ((norms - calibration.norm_mean) / calibration.norm_std).tolist()
    return zscores
