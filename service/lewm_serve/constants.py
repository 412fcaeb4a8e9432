"""Names and numbers that several layers share. This module imports nothing of ours."""

from typing import Literal, get_args

Endpoint = Literal["encode", "predict", "plan", "models", "admin", "other"]
"""What a request asks for; `other` is a path or method that does not exist."""
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)

InferenceEndpoint = Literal["encode", "predict", "plan"]
INFERENCE_ENDPOINTS: tuple[InferenceEndpoint, ...] = get_args(InferenceEndpoint)

Protocol = Literal["rest", "grpc", "openpi", "oip"]
"""`oip`: the Open Inference Protocol, over HTTP and gRPC."""
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

PlanStatus = Literal["completed", "converged", "deadline", "fallback"]
PLAN_STATUSES: tuple[PlanStatus, ...] = get_args(PlanStatus)

AssessedStatus = Literal["ok", "degraded", "anomalous", "uncalibrated"]
"""The health of frames that were assessed."""
ASSESSED_STATUSES: tuple[AssessedStatus, ...] = get_args(AssessedStatus)

HealthStatus = Literal["ok", "degraded", "anomalous", "uncalibrated", "unknown"]
"""`unknown`: a fallback answered before the frames could be assessed."""

AnomalyKind = Literal["norm", "mahalanobis", "surprise", "sigreg"]
"""The scores that can exceed a limit of the model's calibration."""
ANOMALY_KINDS: tuple[AnomalyKind, ...] = get_args(AnomalyKind)

FallbackReason = Literal["anomalous", "deadline", "engine_failure"]
FALLBACK_REASONS: tuple[FallbackReason, ...] = get_args(FallbackReason)

ServerState = Literal["loading", "ready", "restarting", "leaving", "draining", "failed"]
"""`restarting`: the engine has died and is started again; `leaving`: asked to stop, but still
serving; `draining`: requests are refused."""

ReloadResult = Literal["added", "switched", "unchanged", "removed", "failed"]
"""What became of a model when the model folders were read again."""
RELOAD_RESULTS: tuple[ReloadResult, ...] = get_args(ReloadResult)

STAGES = ("queue", "decode", "encode", "solve", "serialize")

BatchKind = Literal["encode", "rollout"]
BATCH_KINDS: tuple[BatchKind, ...] = get_args(BatchKind)

OK_CODE = "ok"
"""The code of a request that succeeded, in metrics and in the access log."""

JSON_MEDIA_TYPE = "application/json"
PROBLEM_MEDIA_TYPE = "application/problem+json"
"""The media type of errors over HTTP (RFC 9457)."""

MAX_FRAMES_PER_REQUEST = 4096
"""The upper limit of the setting ``max_frames``."""

MAX_LATENT_VALUE = 1e4
"""The largest number in a latent from a client or from Redis. Trained latents are near N(0, 1).
With values beyond this one, a roll-out overflows."""
