"""What a client may ask. Both transports make these objects, so both refuse the same things."""

from lewm_serve.requests.base import from_validation_error, parse
from lewm_serve.requests.bodies import (
    MAX_FRAMES,
    EncodeRequest,
    Fallback,
    PlanRequest,
    PredictRequest,
    SolverSettings,
)
from lewm_serve.requests.frames import Frame

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
