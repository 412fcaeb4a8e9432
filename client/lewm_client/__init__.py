"""A client for robots. It needs numpy, grpcio and protobuf, nothing else.

    with PlannerClient("127.0.0.1:50051") as client:
        driver = Driver(client, goal_frame, steps=5, timeout_s=0.5, fallback="hold")
        while not arrived():
            robot.run(driver.step(camera.frame()).actions)

A frame is an array (H, W, 3) of uint8 in RGB, the bytes of a PNG or JPEG image, a latent
(latent_dim,) of floats, or the `latent_id` of an earlier response. For a model with a state input,
it may be a tuple of an image or pixels and the robot's states.
"""

from lewm_client.client import AsyncPlannerClient, PlannerClient
from lewm_client.control_loop import Clock, RunSummary
from lewm_client.driver import Driver, Move
from lewm_client.errors import PlannerError
from lewm_client.messages import FrameLike, GoalLike, frame, tensor
from lewm_client.planning import LocalFallback, Setback, rest_of_plan
from lewm_client.recorder import Recorder
from lewm_client.responses import (
    EncodedLatent,
    EncodeResponse,
    FallbackReport,
    GoalDistance,
    Health,
    LatentIds,
    PlanResponse,
    PlanStates,
    PredictResponse,
    Timing,
)

__all__ = [
    "AsyncPlannerClient",
    "Clock",
    "Driver",
    "EncodeResponse",
    "EncodedLatent",
    "FallbackReport",
    "FrameLike",
    "GoalDistance",
    "GoalLike",
    "Health",
    "LatentIds",
    "LocalFallback",
    "Move",
    "PlanResponse",
    "PlanStates",
    "PlannerClient",
    "PlannerError",
    "PredictResponse",
    "Recorder",
    "RunSummary",
    "Setback",
    "Timing",
    "frame",
    "rest_of_plan",
    "tensor",
]
