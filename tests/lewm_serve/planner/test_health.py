"""Health from the scores of a request's latents."""

import math
from dataclasses import replace

import pytest
import torch

from lewm_models.calibration.reference import LatentReference
from lewm_models.card import Calibration
from lewm_serve.api.responses import HealthStatus
from lewm_serve.planner.health import Assessment, Kind, is_anomalous, judge, score

NORMS_ALONE = Calibration(frames=100, norm_mean=10.0, norm_std=2.0, zscore_limit=3.0)
WHOLE = replace(NORMS_ALONE, mahalanobis_limit=6.0, surprise_limit=4.0, sigreg_limit=8.0)
REFERENCE = LatentReference(torch.tensor([10.0, 0.0]), torch.diag(torch.tensor([0.5, 5.0])))
"""Deviations of 2 along the first axis, and of 0.2 along the second."""


def latents(*norms: float) -> torch.Tensor:
    return torch.tensor([[norm, 0.0] for norm in norms])


def assess(
    calibration: Calibration | None,
    reference: LatentReference | None,
    frames: torch.Tensor,
    goal: torch.Tensor | None = None,
    surprise: float | None = None,
    sigreg: float | None = None,
) -> Assessment:
    """The assessment of a whole request, which a look before the end must not contradict."""
    shown = frames if goal is None else torch.cat([frames, goal[None]])
    scores = score(calibration, reference, shown, len(frames))
    assessment = judge(calibration, scores, surprise, sigreg)
    anomalous = is_anomalous(calibration, scores, surprise)
    assert anomalous == (assessment.health.status == "anomalous")
    return assessment


def test_an_uncalibrated_model_is_never_ok() -> None:
    health = assess(None, None, latents(10.0), latents(8.0)[0], 1.0, 2.0).health
    assert (health.status, health.latent_norm) == ("uncalibrated", 10.0)
    assert (health.latent_norm_zscore, health.latent_mahalanobis) == (None, None)
    assert (health.surprise, health.sigreg) == (1.0, 2.0)
    assert health.reasons


def test_an_ordinary_norm_is_ok() -> None:
    health = assess(NORMS_ALONE, None, latents(9.0, 12.0)).health
    assert (health.status, health.latent_norm, health.latent_norm_zscore) == ("ok", 12.0, 1.0)
    assert health.reasons == ()


@pytest.mark.parametrize(("norm", "zscore"), [(17.0, 3.5), (3.0, -3.5)])
def test_the_worst_frame_decides(norm: float, zscore: float) -> None:
    assessment = assess(NORMS_ALONE, None, latents(10.0, norm, 11.0))
    health = assessment.health
    assert (health.status, health.latent_norm_zscore) == ("anomalous", zscore)
    assert health.reasons[0].startswith("frames[1]")
    assert assessment.kinds == ("norm",)


def test_what_a_norm_cannot_see_a_distance_can() -> None:
    odd = torch.tensor([[10.0, 0.0], [9.9, 1.4]])
    assessment = assess(WHOLE, REFERENCE, odd)
    assert assessment.kinds == ("mahalanobis",)
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
        (float("nan"), None, "anomalous", ("surprise",)),
    ],
)
def test_surprise_alarms_and_the_stream_degrades(
    surprise: float | None, sigreg: float | None, status: HealthStatus, kinds: tuple[Kind, ...]
) -> None:
    assessment = assess(WHOLE, REFERENCE, latents(10.0), None, surprise, sigreg)
    assert (assessment.health.status, assessment.kinds) == (status, kinds)
    assert (assessment.health.sigreg, len(assessment.health.reasons)) == (sigreg, len(kinds))


def test_what_has_no_limit_is_told_and_not_judged() -> None:
    health = assess(NORMS_ALONE, None, latents(10.0), None, 100.0, 100.0).health
    assert (health.status, health.surprise, health.sigreg) == ("ok", 100.0, 100.0)


def test_a_goal_is_judged_and_the_figures_are_the_frames() -> None:
    assessment = assess(WHOLE, REFERENCE, latents(10.0), latents(90.0)[0])
    health = assessment.health
    assert (health.status, assessment.kinds) == ("anomalous", ("norm", "mahalanobis"))
    assert (health.latent_norm, health.latent_norm_zscore) == (10.0, 0.0)
    assert health.latent_mahalanobis == pytest.approx(0.0)
    assert all(reason.startswith("goal") for reason in health.reasons)


def test_frames_have_figures_of_their_own_and_a_goal_has_none() -> None:
    scores = score(WHOLE, REFERENCE, latents(9.0, 12.0, 90.0), 2)
    assert (scores.norms, scores.zscores, scores.furthest) == ((9.0, 12.0), (-0.5, 1.0), 1)
    assert torch.equal(scores.latents, latents(9.0, 12.0))
    assert score(None, None, latents(9.0, 8.0)).zscores == (None, None)


def test_surprise_is_the_distance_of_the_newest() -> None:
    scores = score(WHOLE, REFERENCE, latents(9.0, 12.0, 90.0), 2)
    assert scores.surprise(latents(10.5)[0]) == 1.5
    assert scores.surprise(None) is None


@pytest.mark.parametrize("norms", [(math.nan,), (10.0, math.nan), (math.nan, 10.0)])
@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_no_figure_is_no_reason_to_be_calm(
    norms: tuple[float, ...], reference: LatentReference | None
) -> None:
    assert assess(WHOLE, reference, latents(*norms)).health.status == "anomalous"
