"""What a client may ask. Both transports make these objects, so both refuse the same things."""

from service.requests.base import from_validation_error, parse
from service.requests.bodies import (
    MAX_FRAMES,
    EncodeRequest,
    Fallback,
    PlanRequest,
    PredictRequest,
    SolverSettings,
)
from service.requests.frames import Frame

__all__ = [
    "MAX_FRAMES",
    "EncodeRequest",
    "Fallback",
    "Frame",
    "PlanRequest",
    "PredictRequest",
    "SolverSettings",
    "from_validation_error",
    "parse",
]
