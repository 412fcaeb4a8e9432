"""The planner's responses, with numpy arrays and None for what does not apply.

The classes have the same fields and types as `lewm_serve`'s own.

Axes: T predicted steps, N candidates, D latent_dim, R action rows, A action_dim. Times are in
milliseconds, actions in the environment's units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
HealthStatus = Literal["ok", "degraded", "anomalous", "uncalibrated", "unknown"]
PlanStatus = Literal["completed", "converged", "deadline", "fallback"]
FallbackReason = Literal["anomalous", "deadline", "engine_failure"]


@dataclass(frozen=True)
class EncodedLatent:
    """The latent (D,) of one frame, and its name in the server's cache.

    `cached` says whether the latent came from the cache.
    """

    latent: FloatArray
    latent_id: str
    norm: float
    cached: bool
    norm_zscore: float | None = None


@dataclass(frozen=True)
class Health:
    """How usual the request's own frames look to the model; a value that does not apply is None.

    The status is `unknown` where a fallback answered before the frames were encoded.
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
    """The time spent in each stage of the request, in milliseconds."""

    queue: float
    decode: float
    encode: float
    solve: float
    total: float


@dataclass(frozen=True)
class EncodeResponse:
    """The latents of the request's frames, in the request's order."""

    request_id: str
    model: str
    model_version: str
    latents: tuple[EncodedLatent, ...]
    health: Health
    timing_ms: Timing


@dataclass(frozen=True)
class PredictResponse:
    """Predicted latents: (T, D) for actions, (N, T, D) for candidates."""

    request_id: str
    model: str
    model_version: str
    latents: FloatArray
    health: Health
    timing_ms: Timing


@dataclass(frozen=True)
class LatentIds:
    """The names of the request's latents in the server's cache; empty for a goal by states."""

    frames: tuple[str, ...]
    goal: str


@dataclass(frozen=True)
class FallbackReport:
    """The controller that answered instead of the planner, and the reason."""

    controller: str
    reason: FallbackReason


@dataclass(frozen=True)
class GoalDistance:
    """How many steps the goal is away, as the model believes, before and after the plan."""

    start: float
    end: float


@dataclass(frozen=True)
class PlanStates:
    """The states that the model imagines before and after the plan, by name, in their units."""

    start: dict[str, float]
    end: dict[str, float]


@dataclass(frozen=True)
class PlanResponse:
    """A plan.

    Attributes:
        actions: (R, A), inside the model's bounds.
        cost: the cost of exactly these actions. None for a fallback: its actions are not rolled
            out.
        candidates: how many candidates were scored in all iterations together.
        solver: the solver's settings, those from the model's card included.
        latent_ids: None where a fallback answered before the frames were encoded.
        fallback: None where the planner itself answered.
        trajectory: (T, D), where the request included it and no fallback answered.
        distance: None where the model has no learned distance, where the goal was given by states,
            or where a fallback answered.
        states: None where the request had neither a goal by states nor regions to avoid, or where a
            fallback answered.
        violations: the steps of the trajectory, from 0 on, that lead into a region to avoid or are
            in one.
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
    distance: GoalDistance | None = None
    states: PlanStates | None = None
    violations: tuple[int, ...] = ()
