from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("shape", "data")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Pixels(_message.Message):
    __slots__ = ("shape", "data")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("image", "pixels", "latent", "latent_id", "state", "vector")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    LATENT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    pixels: Pixels
    latent: Tensor
    latent_id: str
    state: States
    vector: Tensor
    def __init__(self, image: _Optional[bytes] = ..., pixels: _Optional[_Union[Pixels, _Mapping]] = ..., latent: _Optional[_Union[Tensor, _Mapping]] = ..., latent_id: _Optional[str] = ..., state: _Optional[_Union[States, _Mapping]] = ..., vector: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class States(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, float]
    def __init__(self, values: _Optional[_Mapping[str, float]] = ...) -> None: ...

class StateRange(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class StateBox(_message.Message):
    __slots__ = ("ranges",)
    class RangesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: StateRange
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[StateRange, _Mapping]] = ...) -> None: ...
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ranges: _containers.MessageMap[str, StateRange]
    def __init__(self, ranges: _Optional[_Mapping[str, StateRange]] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("state", "centre", "radius", "weight")
    STATE_FIELD_NUMBER: _ClassVar[int]
    CENTRE_FIELD_NUMBER: _ClassVar[int]
    RADIUS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    state: StateBox
    centre: States
    radius: float
    weight: float
    def __init__(self, state: _Optional[_Union[StateBox, _Mapping]] = ..., centre: _Optional[_Union[States, _Mapping]] = ..., radius: _Optional[float] = ..., weight: _Optional[float] = ...) -> None: ...

class Health(_message.Message):
    __slots__ = ("status", "latent_norm", "latent_norm_zscore", "surprise", "sigreg", "reasons", "latent_mahalanobis")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LATENT_NORM_FIELD_NUMBER: _ClassVar[int]
    LATENT_NORM_ZSCORE_FIELD_NUMBER: _ClassVar[int]
    SURPRISE_FIELD_NUMBER: _ClassVar[int]
    SIGREG_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    LATENT_MAHALANOBIS_FIELD_NUMBER: _ClassVar[int]
    status: str
    latent_norm: float
    latent_norm_zscore: float
    surprise: float
    sigreg: float
    reasons: _containers.RepeatedScalarFieldContainer[str]
    latent_mahalanobis: float
    def __init__(self, status: _Optional[str] = ..., latent_norm: _Optional[float] = ..., latent_norm_zscore: _Optional[float] = ..., surprise: _Optional[float] = ..., sigreg: _Optional[float] = ..., reasons: _Optional[_Iterable[str]] = ..., latent_mahalanobis: _Optional[float] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue", "decode", "encode", "solve", "total")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    SOLVE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queue: float
    decode: float
    encode: float
    solve: float
    total: float
    def __init__(self, queue: _Optional[float] = ..., decode: _Optional[float] = ..., encode: _Optional[float] = ..., solve: _Optional[float] = ..., total: _Optional[float] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("model", "frames")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    model: str
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, model: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...

class EncodedLatent(_message.Message):
    __slots__ = ("latent", "latent_id", "norm", "cached", "norm_zscore")
    LATENT_FIELD_NUMBER: _ClassVar[int]
    LATENT_ID_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    NORM_ZSCORE_FIELD_NUMBER: _ClassVar[int]
    latent: Tensor
    latent_id: str
    norm: float
    cached: bool
    norm_zscore: float
    def __init__(self, latent: _Optional[_Union[Tensor, _Mapping]] = ..., latent_id: _Optional[str] = ..., norm: _Optional[float] = ..., cached: _Optional[bool] = ..., norm_zscore: _Optional[float] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("request_id", "model", "model_version", "latents", "health", "timing_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    TIMING_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    model_version: str
    latents: _containers.RepeatedCompositeFieldContainer[EncodedLatent]
    health: Health
    timing_ms: Timing
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ..., latents: _Optional[_Iterable[_Union[EncodedLatent, _Mapping]]] = ..., health: _Optional[_Union[Health, _Mapping]] = ..., timing_ms: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model", "frames", "past_actions", "actions", "candidates")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    PAST_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    model: str
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    past_actions: Tensor
    actions: Tensor
    candidates: Tensor
    def __init__(self, model: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ..., past_actions: _Optional[_Union[Tensor, _Mapping]] = ..., actions: _Optional[_Union[Tensor, _Mapping]] = ..., candidates: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("request_id", "model", "model_version", "latents", "health", "timing_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    TIMING_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    model_version: str
    latents: Tensor
    health: Health
    timing_ms: Timing
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., health: _Optional[_Union[Health, _Mapping]] = ..., timing_ms: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class SolverSettings(_message.Message):
    __slots__ = ("name", "samples", "iterations", "elites", "horizon", "tolerance", "momentum", "deviation", "noise_exponent", "temperature", "learning_rate", "objective")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    ELITES_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_FIELD_NUMBER: _ClassVar[int]
    NOISE_EXPONENT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    name: str
    samples: int
    iterations: int
    elites: int
    horizon: int
    tolerance: float
    momentum: float
    deviation: float
    noise_exponent: float
    temperature: float
    learning_rate: float
    objective: str
    def __init__(self, name: _Optional[str] = ..., samples: _Optional[int] = ..., iterations: _Optional[int] = ..., elites: _Optional[int] = ..., horizon: _Optional[int] = ..., tolerance: _Optional[float] = ..., momentum: _Optional[float] = ..., deviation: _Optional[float] = ..., noise_exponent: _Optional[float] = ..., temperature: _Optional[float] = ..., learning_rate: _Optional[float] = ..., objective: _Optional[str] = ...) -> None: ...

class Fallback(_message.Message):
    __slots__ = ("controller", "state")
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    controller: str
    state: Tensor
    def __init__(self, controller: _Optional[str] = ..., state: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("model", "frames", "past_actions", "goal", "solver", "warm_start", "seed", "deadline_ms", "priority", "fallback", "include", "min_iterations", "committed_actions", "avoid")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    PAST_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    WARM_START_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    MIN_ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    AVOID_FIELD_NUMBER: _ClassVar[int]
    model: str
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    past_actions: Tensor
    goal: Frame
    solver: SolverSettings
    warm_start: Tensor
    seed: int
    deadline_ms: float
    priority: int
    fallback: Fallback
    include: _containers.RepeatedScalarFieldContainer[str]
    min_iterations: int
    committed_actions: Tensor
    avoid: _containers.RepeatedCompositeFieldContainer[Region]
    def __init__(self, model: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ..., past_actions: _Optional[_Union[Tensor, _Mapping]] = ..., goal: _Optional[_Union[Frame, _Mapping]] = ..., solver: _Optional[_Union[SolverSettings, _Mapping]] = ..., warm_start: _Optional[_Union[Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., deadline_ms: _Optional[float] = ..., priority: _Optional[int] = ..., fallback: _Optional[_Union[Fallback, _Mapping]] = ..., include: _Optional[_Iterable[str]] = ..., min_iterations: _Optional[int] = ..., committed_actions: _Optional[_Union[Tensor, _Mapping]] = ..., avoid: _Optional[_Iterable[_Union[Region, _Mapping]]] = ...) -> None: ...

class LatentIds(_message.Message):
    __slots__ = ("frames", "goal")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedScalarFieldContainer[str]
    goal: str
    def __init__(self, frames: _Optional[_Iterable[str]] = ..., goal: _Optional[str] = ...) -> None: ...

class FallbackReport(_message.Message):
    __slots__ = ("controller", "reason")
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    controller: str
    reason: str
    def __init__(self, controller: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GoalDistance(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: float
    end: float
    def __init__(self, start: _Optional[float] = ..., end: _Optional[float] = ...) -> None: ...

class PlanStates(_message.Message):
    __slots__ = ("start", "end")
    class StartEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class EndEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: _containers.ScalarMap[str, float]
    end: _containers.ScalarMap[str, float]
    def __init__(self, start: _Optional[_Mapping[str, float]] = ..., end: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("request_id", "model", "model_version", "backend", "precision", "actions", "action_block", "cost", "status", "iterations", "candidates", "solver", "seed", "latent_ids", "health", "fallback", "timing_ms", "trajectory", "distance", "states", "violations")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    ACTION_BLOCK_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    SOLVER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LATENT_IDS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    TIMING_MS_FIELD_NUMBER: _ClassVar[int]
    TRAJECTORY_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    model_version: str
    backend: str
    precision: str
    actions: Tensor
    action_block: int
    cost: float
    status: str
    iterations: int
    candidates: int
    solver: SolverSettings
    seed: int
    latent_ids: LatentIds
    health: Health
    fallback: FallbackReport
    timing_ms: Timing
    trajectory: Tensor
    distance: GoalDistance
    states: PlanStates
    violations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., model_version: _Optional[str] = ..., backend: _Optional[str] = ..., precision: _Optional[str] = ..., actions: _Optional[_Union[Tensor, _Mapping]] = ..., action_block: _Optional[int] = ..., cost: _Optional[float] = ..., status: _Optional[str] = ..., iterations: _Optional[int] = ..., candidates: _Optional[int] = ..., solver: _Optional[_Union[SolverSettings, _Mapping]] = ..., seed: _Optional[int] = ..., latent_ids: _Optional[_Union[LatentIds, _Mapping]] = ..., health: _Optional[_Union[Health, _Mapping]] = ..., fallback: _Optional[_Union[FallbackReport, _Mapping]] = ..., timing_ms: _Optional[_Union[Timing, _Mapping]] = ..., trajectory: _Optional[_Union[Tensor, _Mapping]] = ..., distance: _Optional[_Union[GoalDistance, _Mapping]] = ..., states: _Optional[_Union[PlanStates, _Mapping]] = ..., violations: _Optional[_Iterable[int]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "default", "backend", "device", "precision", "card", "old_versions", "seconds_left")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    OLD_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    default: bool
    backend: str
    device: str
    precision: str
    card: _struct_pb2.Struct
    old_versions: _containers.RepeatedCompositeFieldContainer[OldVersion]
    seconds_left: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., default: _Optional[bool] = ..., backend: _Optional[str] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., card: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., old_versions: _Optional[_Iterable[_Union[OldVersion, _Mapping]]] = ..., seconds_left: _Optional[float] = ...) -> None: ...

class OldVersion(_message.Message):
    __slots__ = ("name", "version", "seconds_left")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    seconds_left: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., seconds_left: _Optional[float] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "removed")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    removed: _containers.RepeatedCompositeFieldContainer[OldVersion]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., removed: _Optional[_Iterable[_Union[OldVersion, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...
