"""Health: the scores of one request, the stream of all latents, and what the metrics count."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lewm_models.calibration.calibrate import fixed_sigreg_directions
from lewm_models.calibration.reference import LatentReference
from lewm_models.card import Calibration
from lewm_models.loss import sigreg
from lewm_serve.api.responses import Health
from lewm_serve.backends.choice import BackendSettings
from lewm_serve.constants import ANOMALY_KINDS, AnomalyKind, HealthStatus
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner import health
from lewm_serve.planner.health import (
    Assessment,
    LatentStream,
    Monitor,
    assess,
    exceeds,
    score_latents,
)
from lewm_serve.registry.loading import load_model
from lewm_serve.registry.registry import LoadedModel

NORMS_ONLY = Calibration(frames=100, norm_mean=10.0, norm_std=2.0, zscore_limit=3.0)
ALL_LIMITS = replace(NORMS_ONLY, mahalanobis_limit=6.0, surprise_limit=4.0, sigreg_limit=8.0)
REFERENCE = LatentReference(torch.tensor([10.0, 0.0]), torch.diag(torch.tensor([0.5, 5.0])))
"""Standard deviations of 2 along the first axis, and of 0.2 along the second."""


def latents(*norms: float, width: int = 2) -> torch.Tensor:
    """Latents (N, width) along the first axis."""
    rows = torch.zeros(len(norms), width)
    rows[:, 0] = torch.tensor(norms)
    return rows


def assess_latents(
    calibration: Calibration | None,
    reference: LatentReference | None,
    frames: torch.Tensor,
    goal: torch.Tensor | None = None,
    *,
    surprise: float | None = None,
    sigreg: float | None = None,
) -> Assessment:
    """The assessment of a request. A search stops early if it will be anomalous, and only then."""
    frames_and_goal = frames if goal is None else torch.cat([frames, goal])
    scores = score_latents(calibration, reference, frames_and_goal, frame_count=len(frames))
    assessment = assess(calibration, scores, surprise=surprise, sigreg=sigreg)
    surprise_limit = None if calibration is None else calibration.surprise_limit
    stops_search = bool(scores.anomalies) or exceeds(surprise, surprise_limit)
    assert stops_search == (assessment.health.status == "anomalous")
    return assessment


def test_a_model_without_a_calibration_is_never_ok() -> None:
    health = assess_latents(
        None, None, latents(10.0), latents(8.0), surprise=1.0, sigreg=2.0
    ).health
    assert (health.status, health.latent_norm) == ("uncalibrated", 10.0)
    assert (health.latent_norm_zscore, health.latent_mahalanobis) == (None, None)
    assert (health.surprise, health.sigreg) == (1.0, 2.0)
    assert health.reasons == ("the model has no calibration",)


def test_a_usual_norm_is_ok() -> None:
    health = assess_latents(NORMS_ONLY, None, latents(9.0, 12.0)).health
    assert (health.status, health.latent_norm, health.latent_norm_zscore) == ("ok", 12.0, 1.0)
    assert health.reasons == ()


@pytest.mark.parametrize(("norm", "zscore"), [(17.0, 3.5), (3.0, -3.5)])
def test_the_most_unusual_frame_decides(norm: float, zscore: float) -> None:
    assessment = assess_latents(NORMS_ONLY, None, latents(10.0, norm, 11.0))
    health = assessment.health
    assert (health.status, health.latent_norm_zscore) == ("anomalous", zscore)
    assert health.reasons == (
        f"frames[1]: latent norm {norm:.2f}; its deviation in standard deviations is 3.5, "
        "the limit is 3.0",
    )
    assert assessment.anomalous_kinds == ("norm",)


def test_a_mahalanobis_distance_shows_what_a_norm_does_not() -> None:
    unusual = torch.tensor([[10.0, 0.0], [9.9, 1.4]])
    assessment = assess_latents(ALL_LIMITS, REFERENCE, unusual)
    assert assessment.anomalous_kinds == ("mahalanobis",)
    assert assessment.health.latent_mahalanobis == pytest.approx(7.0, rel=1e-2)
    assert assessment.health.reasons == (
        "frames[1]: Mahalanobis distance of the latent is 7.0, the limit is 6.0",
    )


@pytest.mark.parametrize(
    ("surprise", "sigreg", "status", "kinds"),
    [
        (4.0, 8.0, "ok", ()),
        (None, None, "ok", ()),
        (4.1, 8.0, "anomalous", ("surprise",)),
        (4.0, 8.1, "degraded", ("sigreg",)),
        (4.1, 8.1, "anomalous", ("surprise", "sigreg")),
        (math.nan, None, "anomalous", ("surprise",)),
    ],
)
def test_a_surprise_is_anomalous_and_the_stream_degrades(
    surprise: float | None,
    sigreg: float | None,
    status: HealthStatus,
    kinds: tuple[AnomalyKind, ...],
) -> None:
    assessment = assess_latents(
        ALL_LIMITS, REFERENCE, latents(10.0), surprise=surprise, sigreg=sigreg
    )
    assert (assessment.health.status, assessment.anomalous_kinds) == (status, kinds)
    assert (assessment.health.sigreg, len(assessment.health.reasons)) == (sigreg, len(kinds))


def test_the_newest_frame_is_the_one_that_surprises() -> None:
    assessment = assess_latents(ALL_LIMITS, REFERENCE, latents(10.0, 10.0), surprise=4.5)
    assert assessment.health.reasons == (
        "frames[1]: distance of the latent from the predicted one is 4.5, the limit is 4.0",
    )


def test_a_score_without_a_limit_is_reported_only() -> None:
    health = assess_latents(NORMS_ONLY, None, latents(10.0), surprise=100.0, sigreg=100.0).health
    assert (health.status, health.surprise, health.sigreg) == ("ok", 100.0, 100.0)


def test_a_goal_may_be_anomalous_but_the_reported_scores_are_those_of_the_frames() -> None:
    assessment = assess_latents(ALL_LIMITS, REFERENCE, latents(10.0), latents(90.0))
    health = assessment.health
    assert (health.status, assessment.anomalous_kinds) == ("anomalous", ("norm", "mahalanobis"))
    assert (health.latent_norm, health.latent_norm_zscore) == (10.0, 0.0)
    assert health.latent_mahalanobis == pytest.approx(0.0)
    assert all(reason.startswith("goal: ") for reason in health.reasons)


def test_scores_are_those_of_the_frames_without_the_goal() -> None:
    scores = score_latents(ALL_LIMITS, REFERENCE, latents(9.0, 12.0, 90.0), frame_count=2)
    assert (scores.norms, scores.zscores, scores.most_unusual) == ((9.0, 12.0), (-0.5, 1.0), 1)
    assert torch.equal(scores.latents, latents(9.0, 12.0))
    assert score_latents(None, None, latents(9.0, 8.0)).zscores == (None, None)


@pytest.mark.parametrize("norms", [(math.nan,), (10.0, math.nan), (math.nan, 10.0)])
@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_nan_is_anomalous(norms: tuple[float, ...], reference: LatentReference | None) -> None:
    assert assess_latents(ALL_LIMITS, reference, latents(*norms)).health.status == "anomalous"


WINDOW, WIDTH = 16, 8


def random_latents(count: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))


def full_stream(window: int = WINDOW) -> LatentStream:
    """A stream that all latents join."""
    return LatentStream(fixed_sigreg_directions(WIDTH), window, share=1.0)


def sigreg_of(window: torch.Tensor) -> float:
    """SIGReg of all latents of a window at once."""
    return float(sigreg(window[None], fixed_sigreg_directions(WIDTH)))


def test_a_window_that_is_not_full_has_no_sigreg() -> None:
    stream = full_stream()
    stream.add(random_latents(WINDOW - 1), WINDOW - 1)
    assert stream.sigreg is None


def test_sigreg_is_that_of_the_newest_latents() -> None:
    stream, latents = full_stream(), random_latents(200)
    for index, latent in enumerate(latents):
        stream.add(latent[None], 1)
        if index >= WINDOW - 1:
            window = latents[index + 1 - WINDOW : index + 1]
            assert stream.sigreg == pytest.approx(sigreg_of(window), rel=1e-4)


@pytest.mark.parametrize("count", [WINDOW, WINDOW + 1, 10 * WINDOW])
def test_many_latents_may_join_at_once(count: int) -> None:
    stream, latents = full_stream(), random_latents(count)
    stream.add(random_latents(3), 3)
    stream.add(latents, count)
    assert stream.sigreg == pytest.approx(sigreg_of(latents[-WINDOW:]), rel=1e-4)


def test_only_new_latents_join() -> None:
    first, second, latents = full_stream(), full_stream(), random_latents(3 * WINDOW)
    first.add(latents, WINDOW)
    second.add(latents[-WINDOW:], WINDOW)
    assert first.sigreg == second.sigreg


def test_a_share_of_the_latents_joins() -> None:
    stream = LatentStream(fixed_sigreg_directions(WIDTH), WINDOW, share=0.25)
    latents = random_latents(1000)
    stream.add(latents[: 2 * WINDOW], 2 * WINDOW)
    assert stream.sigreg is None
    stream.add(latents[2 * WINDOW : 8 * WINDOW], 6 * WINDOW)
    assert stream.sigreg is not None


def test_sigreg_grows_when_all_latents_are_the_same() -> None:
    stream = full_stream()
    stream.add(random_latents(WINDOW), WINDOW)
    varied = stream.sigreg
    stream.add(random_latents(1).expand(WINDOW, -1), WINDOW)
    assert varied is not None
    assert stream.sigreg is not None
    assert stream.sigreg > 3 * varied


CALIBRATION = replace(ALL_LIMITS, sigreg_limit=3.0, sigreg_window=4)


@pytest.fixture(scope="module")
def uncalibrated(model_folder: Path) -> LoadedModel:
    return load_model(model_folder, torch.device("cpu"), BackendSettings("torch", threads=1))


@pytest.fixture
def model(uncalibrated: LoadedModel) -> LoadedModel:
    """A calibrated model. The centre of its usual latents has a norm of 10."""
    width = uncalibrated.card.config.latent_dim
    return replace(
        uncalibrated,
        card=replace(uncalibrated.card, calibration=CALIBRATION),
        reference=LatentReference(latents(10.0, width=width)[0], torch.eye(width)),
    )


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def monitor(metrics: Metrics, model: LoadedModel) -> Monitor:
    monitor = Monitor(metrics)
    monitor.watch([model])
    return monitor


def monitored(
    monitor: Monitor,
    model: LoadedModel,
    *norms: float,
    goal: float | None = None,
    surprise: float | None = None,
    new_frames: int = 1,
) -> Health:
    """The health of frames, and of a goal, with these norms."""
    goals = () if goal is None else (goal,)
    width = model.card.config.latent_dim
    scores = monitor.score(model, latents(*norms, *goals, width=width), len(norms))
    return monitor.record(model, scores, surprise=surprise, new_frames=new_frames)


def metric(metrics: Metrics, name: str, model: LoadedModel, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model": model.name, **labels})


def anomalies(metrics: Metrics, model: LoadedModel) -> dict[str, float | None]:
    return {
        kind: metric(metrics, "lewm_anomalies_total", model, kind=kind) for kind in ANOMALY_KINDS
    }


@pytest.mark.usefixtures("monitor")
def test_all_kinds_of_anomalies_are_counted_from_0(metrics: Metrics, model: LoadedModel) -> None:
    assert anomalies(metrics, model) == dict.fromkeys(ANOMALY_KINDS, 0.0)


def test_the_metrics_of_a_usual_request(
    metrics: Metrics, monitor: Monitor, model: LoadedModel
) -> None:
    health = monitored(monitor, model, 9.0, 12.0, goal=10.0, surprise=1.0)
    assert (health.status, health.surprise, health.sigreg) == ("ok", 1.0, None)
    assert (health.latent_norm, health.latent_mahalanobis) == (12.0, 2.0)
    assert metric(metrics, "lewm_latent_norm_count", model) == 2
    assert metric(metrics, "lewm_latent_norm_sum", model) == 21
    assert metric(metrics, "lewm_latent_norm_zscore", model) == 1
    assert metric(metrics, "lewm_latent_mahalanobis_sum", model) == 2
    assert metric(metrics, "lewm_surprise_sum", model) == 1
    assert metric(metrics, "lewm_health_total", model, status="ok") == 1
    assert anomalies(metrics, model) == dict.fromkeys(ANOMALY_KINDS, 0.0)


def test_a_request_counts_once_for_each_kind_of_anomaly(
    metrics: Metrics, monitor: Monitor, model: LoadedModel
) -> None:
    health = monitored(monitor, model, 30.0, 40.0, goal=50.0)
    assert health.status == "anomalous"
    assert len(health.reasons) == 4
    counted = {"norm": 1.0, "mahalanobis": 1.0, "surprise": 0.0, "sigreg": 0.0}
    assert anomalies(metrics, model) == counted
    monitored(monitor, model, 10.0, 10.0, surprise=7.0)
    assert anomalies(metrics, model) == {**counted, "surprise": 1.0}


def test_scores_that_no_one_assesses_are_not_counted(
    metrics: Metrics, monitor: Monitor, model: LoadedModel
) -> None:
    """A search may end because of its scores. Its health is counted later, once."""
    scores = monitor.score(model, latents(10.0, 40.0, width=model.card.config.latent_dim))
    assert scores.anomalies
    assert anomalies(metrics, model) == dict.fromkeys(ANOMALY_KINDS, 0.0)
    assert metric(metrics, "lewm_latent_norm_count", model) == 0


@pytest.fixture
def _all_latents_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LatentStream", partial(LatentStream, share=1.0))


@pytest.mark.usefixtures("_all_latents_join")
def test_a_stream_of_one_frame_degrades(metrics: Metrics, model: LoadedModel) -> None:
    monitor = Monitor(metrics)
    monitor.watch([model])
    # Only the newest frame of each history joins the stream.
    for _ in range(3):
        assert monitored(monitor, model, 10.0, 10.0, 10.0).sigreg is None
    degraded = monitored(monitor, model, 10.0)
    assert (degraded.status, anomalies(metrics, model)["sigreg"]) == ("degraded", 1.0)
    assert degraded.sigreg == pytest.approx(metric(metrics, "lewm_latent_sigreg", model))


@pytest.mark.usefixtures("_all_latents_join")
def test_all_frames_of_an_encode_request_join_the_stream(
    metrics: Metrics, model: LoadedModel
) -> None:
    monitor = Monitor(metrics)
    monitor.watch([model])
    assert monitored(monitor, model, 9.0, 10.0, 11.0, 12.0, new_frames=4).sigreg is not None


def test_the_metrics_of_a_model_without_a_calibration(
    metrics: Metrics, uncalibrated: LoadedModel
) -> None:
    monitor = Monitor(metrics)
    monitor.watch([uncalibrated])
    health = monitored(monitor, uncalibrated, 9.0, surprise=2.0)
    assert (health.status, health.latent_norm, health.surprise) == ("uncalibrated", 9.0, 2.0)
    assert metric(metrics, "lewm_latent_norm_sum", uncalibrated) == 9
    assert metric(metrics, "lewm_latent_norm_zscore", uncalibrated) is None
