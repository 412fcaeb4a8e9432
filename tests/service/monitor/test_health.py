"""Health from latent norms."""

import pytest
import torch

from models.card import Calibration
from service.monitor.health import assess

CALIBRATION = Calibration(frames=100, norm_mean=10.0, norm_std=2.0, zscore_limit=3.0)


def latents(*norms: float) -> torch.Tensor:
    return torch.tensor([[norm, 0.0] for norm in norms])


def test_an_uncalibrated_model_is_never_ok() -> None:
    health = assess(None, latents(10.0))
    assert (health.status, health.latent_norm) == ("uncalibrated", 10.0)
    assert health.latent_norm_zscore is None
    assert health.reasons


def test_an_ordinary_norm_is_ok() -> None:
    health = assess(CALIBRATION, latents(9.0, 12.0))
    assert (health.status, health.latent_norm, health.latent_norm_zscore) == ("ok", 12.0, 1.0)
    assert health.reasons == ()


@pytest.mark.parametrize(("norm", "zscore"), [(17.0, 3.5), (3.0, -3.5)])
def test_the_worst_frame_decides(norm: float, zscore: float) -> None:
    health = assess(CALIBRATION, latents(10.0, norm, 11.0))
    assert (health.status, health.latent_norm_zscore) == ("anomalous", zscore)
    assert health.reasons[0].startswith("frames[1]")
