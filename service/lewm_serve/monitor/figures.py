"""What operators see of one model's latents."""

from __future__ import annotations

from functools import cached_property

from prometheus_client import Gauge

from lewm_serve.metrics import Metrics
from lewm_serve.monitor.health import JUDGEMENTS, KINDS, Assessment, Scores


class Figures:
    """A model's own metrics, looked up once; counters and histograms are shown from the start."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._norm = metrics.latent_norm.labels(model)
        self._mahalanobis = metrics.latent_mahalanobis.labels(model)
        self._surprise = metrics.surprise.labels(model)
        self._judged = {status: metrics.health_total.labels(model, status) for status in JUDGEMENTS}
        self._anomalies = {kind: metrics.anomalies_total.labels(model, kind) for kind in KINDS}

    @cached_property
    def _zscore(self) -> Gauge:
        return self._metrics.latent_norm_zscore.labels(self._model)

    @cached_property
    def _sigreg(self) -> Gauge:
        return self._metrics.latent_sigreg.labels(self._model)

    def show(self, scores: Scores, assessment: Assessment) -> None:
        """Count one request."""
        health = assessment.health
        for norm in scores.norms:
            self._norm.observe(norm)
        if health.latent_norm_zscore is not None:
            self._zscore.set(health.latent_norm_zscore)
        if health.latent_mahalanobis is not None:
            self._mahalanobis.observe(health.latent_mahalanobis)
        if health.surprise is not None:
            self._surprise.observe(health.surprise)
        if health.sigreg is not None:
            self._sigreg.set(health.sigreg)
        self._judged[health.status].inc()
        for kind in assessment.kinds:
            self._anomalies[kind].inc()
