"""What the planner answers, and how it is read from messages.

Axes: T predicted steps, N candidates, D latent_dim, R action rows, A action_dim. Times are in
milliseconds, actions in the environment's units.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from lewm.v1 import planner_pb2 as pb

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


def _array(tensor: pb.Tensor) -> FloatArray:
    """A writable array of the tensor's own."""
    return np.frombuffer(tensor.data, "<f4").reshape(tuple(tensor.shape)).astype(np.float32)


def _health(health: pb.Health) -> Health:
    figures = ("latent_norm", "latent_norm_zscore", "surprise", "sigreg", "latent_mahalanobis")
    given = {name: getattr(health, name) for name in figures if health.HasField(name)}
    status = cast(HealthStatus, health.status)
    return Health(status, reasons=tuple(health.reasons), **given)


def _timing(timing: pb.Timing) -> Timing:
    return Timing(timing.queue, timing.decode, timing.encode, timing.solve, timing.total)


def encode_response(message: pb.EncodeResponse) -> EncodeResponse:
    """The latents (latent_dim,) of the request's frames."""
    return EncodeResponse(
        message.request_id,
        message.model,
        message.model_version,
        tuple(
            EncodedLatent(
                _array(item.latent),
                item.latent_id,
                item.norm,
                item.cached,
                item.norm_zscore if item.HasField("norm_zscore") else None,
            )
            for item in message.latents
        ),
        _health(message.health),
        _timing(message.timing_ms),
    )


def predict_response(message: pb.PredictResponse) -> PredictResponse:
    """The predicted latents, (T, D) or (N, T, D)."""
    return PredictResponse(
        message.request_id,
        message.model,
        message.model_version,
        _array(message.latents),
        _health(message.health),
        _timing(message.timing_ms),
    )


def plan_response(message: pb.PlanResponse) -> PlanResponse:
    """The plan, with None for the parts that were left out."""
    fallback = message.fallback
    return PlanResponse(
        message.request_id,
        message.model,
        message.model_version,
        message.backend,
        message.precision,
        _array(message.actions),
        message.action_block,
        message.cost if message.HasField("cost") else None,
        cast(PlanStatus, message.status),
        message.iterations,
        message.candidates,
        {field.name: value for field, value in message.solver.ListFields()},
        message.seed,
        LatentIds(tuple(message.latent_ids.frames), message.latent_ids.goal)
        if message.HasField("latent_ids")
        else None,
        _health(message.health),
        FallbackReport(fallback.controller, fallback.reason)
        if message.HasField("fallback")
        else None,
        _timing(message.timing_ms),
        _array(message.trajectory) if message.HasField("trajectory") else None,
    )
