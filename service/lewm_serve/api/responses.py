"""The responses of the service. Transports write these fields in this order.

Axes: T predicted steps, S candidates, D latent_dim, R action rows, A action_dim. Times are in
milliseconds, actions in the environment's units.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_serve.constants import (
    FallbackReason,
    HealthStatus,
    PlanStatus,
    ReloadResult,
    ServerState,
)

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class EncodedLatent:
    """The latent (D,) of one frame, its id, and whether it came from the cache."""

    latent: FloatArray
    latent_id: str
    norm: float
    cached: bool
    norm_zscore: float | None = None


@dataclass(frozen=True)
class Health:
    """How usual the frames of the request look to the model. None where a score does not apply.

    The status is `unknown` if a fallback answered before the frames could be assessed.
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
    """The time that each stage took, in milliseconds."""

    queue: float
    decode: float
    encode: float
    solve: float
    total: float


@dataclass(frozen=True)
class EncodeResponse:
    """The latents of the request's frames, in the order of the frames."""

    request_id: str
    model: str
    model_version: str
    latents: tuple[EncodedLatent, ...]
    health: Health
    timing_ms: Timing


@dataclass(frozen=True)
class PredictResponse:
    """Predicted latents: (T, D) for actions, (S, T, D) for candidates."""

    request_id: str
    model: str
    model_version: str
    latents: FloatArray
    health: Health
    timing_ms: Timing


@dataclass(frozen=True)
class LatentIds:
    """The ids of the request's latents, by which later requests can name them.

    That of a goal by states is empty.
    """

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
    """A plan: ``actions`` (R, A) inside the model's bounds, and the ``cost`` of exactly these.

    ``candidates`` counts all scored candidates. ``solver`` holds the settings that were used.
    ``trajectory`` (T, D) is there if the request included it. The actions of a fallback have no
    cost, no trajectory and no distance, because they are not rolled out. ``latent_ids`` is None if
    the fallback answered before the latents were known. ``distance`` is None too if the model has
    no learned distance, or if the goal is given by states. ``states`` is there if the request has
    such a goal or regions to avoid, ``violations`` are the steps of the trajectory, from 0 on, that
    lead into a region or are in one.
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


@dataclass(frozen=True)
class ServerStatus:
    """Where the server is in its life."""

    status: ServerState


@dataclass(frozen=True)
class OldVersion:
    """A version that answers only requests that name it, for so many seconds more."""

    name: str
    version: str
    seconds_left: float


@dataclass(frozen=True)
class ModelDescription:
    """A loaded model with its card, and the old versions of its name.

    ``seconds_left`` is None for a current model.
    """

    name: str
    version: str
    default: bool
    backend: str
    device: str
    precision: str
    card: dict[str, Any]
    old_versions: list[OldVersion] = field(default_factory=list)
    seconds_left: float | None = None


@dataclass(frozen=True)
class ModelList:
    """All current models, and what is left of those that were removed."""

    models: list[ModelDescription]
    removed: list[OldVersion]


@dataclass(frozen=True)
class ReloadedModel:
    """What became of one model when the model folders were read again.

    If it failed, ``old_version`` goes on being served, ``new_version`` is that of the folder if it
    is known, and ``error`` says why. Without any known name, ``model`` is the folder's.
    """

    model: str
    result: ReloadResult
    old_version: str | None
    new_version: str | None
    seconds: float
    error: str | None


@dataclass(frozen=True)
class ReloadReport:
    """What became of each model when the model folders were read again."""

    models: list[ReloadedModel]
