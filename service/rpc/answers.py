"""Response messages as the service's response objects, for clients."""

from typing import cast

import numpy as np
from lewm.v1 import planner_pb2 as pb

from service.responses import (
    EncodedLatent,
    EncodeResponse,
    FallbackReport,
    FloatArray,
    Health,
    HealthStatus,
    LatentIds,
    PlanResponse,
    PlanStatus,
    PredictResponse,
    Timing,
)


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
        message.cost,
        cast(PlanStatus, message.status),
        message.iterations,
        message.candidates,
        {field.name: value for field, value in message.solver.ListFields()},
        message.seed,
        LatentIds(tuple(message.latent_ids.frames), message.latent_ids.goal),
        _health(message.health),
        FallbackReport(fallback.controller, fallback.reason)
        if message.HasField("fallback")
        else None,
        _timing(message.timing_ms),
        _array(message.trajectory) if message.HasField("trajectory") else None,
    )
