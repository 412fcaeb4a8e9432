"""The health of a request's own frames, from the norms of their latents."""

from __future__ import annotations

from torch import Tensor

from models.card import Calibration
from service.responses import Health


def assess(calibration: Calibration | None, latents: Tensor) -> Health:
    """Health of latents (N, D): norm and z-score of the one furthest from the calibration.

    A model without calibration is `uncalibrated`, never `ok`. Surprise and SIGReg are not
    computed by this version.
    """
    norms: list[float] = latents.norm(dim=-1).tolist()
    if calibration is None:
        return Health("uncalibrated", norms[-1], reasons=("the model has no calibration",))
    zscores = [(norm - calibration.norm_mean) / calibration.norm_std for norm in norms]
    worst = max(range(len(norms)), key=lambda index: abs(zscores[index]))
    norm, zscore = norms[worst], zscores[worst]
    if abs(zscore) <= calibration.zscore_limit:
        return Health("ok", norm, zscore)
    reason = (
        f"frames[{worst}]: latent norm {norm:.2f} is {zscore:+.1f} deviations from the "
        f"calibration's {calibration.norm_mean:.2f}, the limit is {calibration.zscore_limit:.1f}"
    )
    return Health("anomalous", norm, zscore, reasons=(reason,))
