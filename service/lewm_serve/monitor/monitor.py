"""Sees each latent that is served and says how far it lies from what its model knows."""

from __future__ import annotations

from torch import Tensor

from lewm_models.calibration.calibrate import SIGREG_WINDOW, fixed_directions
from lewm_serve.metrics import Metrics
from lewm_serve.monitor.figures import Figures
from lewm_serve.monitor.health import Scores, is_anomalous, judge, score
from lewm_serve.monitor.stream import LatentStream
from lewm_serve.responses import Health
from lewm_serve.served import ServedModel


class Monitor:
    """The health of every request, and the metrics that tell operators.

    `assess` belongs to the event loop; the others change nothing.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._streams: dict[str, LatentStream] = {}
        self._figures: dict[str, Figures] = {}

    def watch(self, model: ServedModel) -> None:
        """Begin a model's stream of latents, its counters and histograms at 0."""
        calibration, width = model.card.calibration, model.card.config.latent_dim
        size = (calibration and calibration.sigreg_window) or SIGREG_WINDOW
        self._streams[model.name] = LatentStream(fixed_directions(width), size)
        self._figures[model.name] = Figures(self._metrics, model.name)

    def score(self, model: ServedModel, latents: Tensor, frames: int | None = None) -> Scores:
        """Look at the latents (N, D) of a request's frames and its goal: see `score`."""
        return score(model.card.calibration, model.reference, latents, frames)

    def is_anomalous(
        self, model: ServedModel, scores: Scores, surprise: float | None = None
    ) -> bool:
        """Whether `assess`, with the same arguments, will say `anomalous`; nothing is counted."""
        return is_anomalous(model.card.calibration, scores, surprise)

    def assess(
        self, model: ServedModel, scores: Scores, surprise: float | None = None, fresh: int = 1
    ) -> Health:
        """The health of a request with these scores, which is counted.

        ``surprise`` is `Scores.surprise`. The last ``fresh`` of the frames join the stream: those
        before them came with earlier requests.
        """
        stream = self._streams[model.name]
        stream.add(scores.latents, fresh)
        assessment = judge(model.card.calibration, scores, surprise, stream.sigreg)
        self._figures[model.name].show(scores, assessment)
        return assessment.health
