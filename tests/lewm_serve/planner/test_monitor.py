"""What the monitor tells a request, and what it tells operators."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lewm_serve.monitor import monitor as monitor_module

from lewm_models.calibration.reference import LatentReference
from lewm_models.card import Calibration
from lewm_serve.api.responses import Health
from lewm_serve.backends.choice import Wanted
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.health import KINDS, LatentStream, Monitor
from lewm_serve.registry.registry import LoadedModel

CALIBRATION = Calibration(
    frames=100,
    norm_mean=10.0,
    norm_std=2.0,
    zscore_limit=3.0,
    mahalanobis_limit=6.0,
    surprise_limit=4.0,
    sigreg_limit=3.0,
    sigreg_window=4,
)


@pytest.fixture(scope="module")
def uncalibrated(model_folder: Path) -> LoadedModel:
    return LoadedModel.load(model_folder, torch.device("cpu"), Wanted("torch", threads=1))


@pytest.fixture
def model(uncalibrated: LoadedModel) -> LoadedModel:
    """FrameLatents of norm 10 lie at its centre."""
    card = replace(uncalibrated.card, calibration=CALIBRATION)
    width = card.config.latent_dim
    return replace(
        uncalibrated, card=card, reference=LatentReference(latents(10.0)[0], torch.eye(width))
    )


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def latents(*norms: float) -> torch.Tensor:
    rows = torch.zeros(len(norms), 128)
    rows[:, 0] = torch.tensor(norms)
    return rows


def assess(
    monitor: Monitor,
    model: LoadedModel,
    *norms: float,
    goal: float | None = None,
    predicted: float | None = None,
    fresh: int = 1,
) -> Health:
    """The health of frames, and of a goal, with these norms."""
    goals = () if goal is None else (goal,)
    scores = monitor.score(model, latents(*norms, *goals), len(norms))
    surprise = scores.surprise(None if predicted is None else latents(predicted)[0])
    return monitor.assess(model, scores, surprise, fresh)


def shown(metrics: Metrics, name: str, model: LoadedModel, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"model": model.name, **labels})


def anomalies(metrics: Metrics, model: LoadedModel) -> dict[str, float | None]:
    return {kind: shown(metrics, "lewm_anomalies_total", model, kind=kind) for kind in KINDS}


def test_all_kinds_of_anomaly_start_at_0(metrics: Metrics, model: LoadedModel) -> None:
    Monitor(metrics).watch(model)
    assert anomalies(metrics, model) == dict.fromkeys(KINDS, 0.0)


def test_an_ordinary_request(metrics: Metrics, model: LoadedModel) -> None:
    monitor = Monitor(metrics)
    monitor.watch(model)
    health = assess(monitor, model, 9.0, 12.0, goal=10.0, predicted=11.0)
    assert (health.status, health.surprise, health.sigreg) == ("ok", 1.0, None)
    assert (health.latent_norm, health.latent_mahalanobis) == (12.0, 2.0)
    assert shown(metrics, "lewm_latent_norm_count", model) == 2
    assert shown(metrics, "lewm_latent_norm_sum", model) == 21
    assert shown(metrics, "lewm_latent_norm_zscore", model) == 1
    assert shown(metrics, "lewm_latent_mahalanobis_sum", model) == 2
    assert shown(metrics, "lewm_surprise_sum", model) == 1
    assert anomalies(metrics, model) == dict.fromkeys(KINDS, 0.0)


def test_a_request_counts_once_for_each_kind(metrics: Metrics, model: LoadedModel) -> None:
    monitor = Monitor(metrics)
    monitor.watch(model)
    health = assess(monitor, model, 30.0, 40.0, goal=50.0)
    assert health.status == "anomalous"
    assert len(health.reasons) == 4
    counted = {"norm": 1.0, "mahalanobis": 1.0, "surprise": 0.0, "sigreg": 0.0}
    assert anomalies(metrics, model) == counted
    assess(monitor, model, 10.0, 10.0, predicted=3.0)
    assert anomalies(metrics, model) == {**counted, "surprise": 1.0}


def test_a_stream_that_stands_still_degrades(
    metrics: Metrics, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "LatentStream", partial(LatentStream, kept=1.0))
    monitor = Monitor(metrics)
    monitor.watch(model)
    # Of a history the newest frame alone is new.
    for _ in range(3):
        assert assess(monitor, model, 10.0, 10.0, 10.0).sigreg is None
    health = assess(monitor, model, 10.0)
    assert (health.status, anomalies(metrics, model)["sigreg"]) == ("degraded", 1.0)
    assert health.sigreg == pytest.approx(shown(metrics, "lewm_latent_sigreg", model))


def test_frames_to_encode_are_all_new(
    metrics: Metrics, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "LatentStream", partial(LatentStream, kept=1.0))
    monitor = Monitor(metrics)
    monitor.watch(model)
    assert assess(monitor, model, 9.0, 10.0, 11.0, 12.0, fresh=4).sigreg is not None


def test_an_uncalibrated_model_shows_its_figures(
    metrics: Metrics, uncalibrated: LoadedModel
) -> None:
    monitor = Monitor(metrics)
    monitor.watch(uncalibrated)
    health = assess(monitor, uncalibrated, 9.0, predicted=7.0)
    assert (health.status, health.latent_norm, health.surprise) == ("uncalibrated", 9.0, 2.0)
    assert shown(metrics, "lewm_latent_norm_zscore", uncalibrated) is None


def test_what_a_guard_looks_at_is_not_counted(metrics: Metrics, model: LoadedModel) -> None:
    monitor = Monitor(metrics)
    monitor.watch(model)
    well, ill = (monitor.score(model, latents(10.0, norm)) for norm in (11.0, 40.0))
    assert not monitor.is_anomalous(model, well, 4.0)
    assert monitor.is_anomalous(model, well, 4.1)
    assert monitor.is_anomalous(model, ill)
    assert anomalies(metrics, model) == dict.fromkeys(KINDS, 0.0)
    assert shown(metrics, "lewm_latent_norm_count", model) == 0
