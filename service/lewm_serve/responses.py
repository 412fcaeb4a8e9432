"""What the service answers, in the contract's fields and order. Transports render these.

Axes: T predicted steps, N candidates, D latent_dim, R action rows, A action_dim. Times are in
milliseconds, actions in the environment's units.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
HealthStatus = Literal["ok", "degraded", "anomalous", "uncalibrated", "unknown"]
PlanStatus = Literal["completed", "converged", "deadline", "fallback"]


@dataclass(frozen=True)
class EncodedLatent:
    """One frame's latent (D,), its name in the cache, and whether it came from there."""

    latent: FloatArray
    latent_id: str
    norm: float
    cached: bool
    norm_zscore: float | None = None


@dataclass(frozen=True)
class Health:
    """How usual the request's own frames look to the model; None where it does not apply.

    `unknown`: a fallback answered before the frames could be looked at.
    """

    status: HealthStatus
    latent_norm: float | None = None
    latent_norm_zscore: float | None = None
    surprise: float | None = None
    sigreg: float | None = None
    reasons: tuple[str, ...] = ()
    latent_mahalanobis: float | None = None


@dataclass(frozen=True)
class Timing:
    """Where the time went, in milliseconds."""

    queue: float
    decode: float
    encode: float
    solve: float
    total: float


@dataclass(frozen=True)
class EncodeResponse:
    """The latents of the request's frames, in their order."""

    request_id: str
    model: str
    model_version: str
    latents: tuple[EncodedLatent, ...]
    health: Health
    timing_ms: Timing


@dataclass(frozen=True)
class PredictResponse:
    """Predicted latents, (T, D) for actions or (N, T, D) for candidates."""

    request_id: str
    model: str
    model_version: str
    latents: FloatArray
    health: Health
    timing_ms: Timing


@dataclass(frozen=True)
class LatentIds:
    """Names under which the request's latents are in the cache."""

    frames: tuple[str, ...]
    goal: str


@dataclass(frozen=True)
class FallbackReport:
    """Which controller answered instead of the planner, and why."""

    controller: str
    reason: str


@dataclass(frozen=True)
class PlanResponse:
    """A plan: `actions` (R, A) inside the model's bounds, `cost` of exactly these actions.

    `candidates` counts all that were scored, `solver` is the settings as resolved, `trajectory`
    (T, D) is there when the request included it. A fallback's actions have no cost and no
    trajectory: they were not rolled out. `latent_ids` is None where it answered before they were
    made.
    """

    request_id: str
    model: str
    model_version: str
    backend: str
    precision: str
    actions: FloatArray
    action_block: int
    cost: float | None
    status: PlanStatus
    iterations: int
    candidates: int
    solver: dict[str, Any]
    seed: int
    latent_ids: LatentIds | None
    health: Health
    fallback: FallbackReport | None
    timing_ms: Timing
    trajectory: FloatArray | None = None


@dataclass(frozen=True)
class ModelDescription:
    """A model as it is being served, with its card."""

    name: str
    version: str
    default: bool
    backend: str
    device: str
    precision: str
    card: dict[str, Any]
