"""The calls of a planner. Each is written once, for the blocking and for the asyncio client.

A function of this module makes a `Call` from its arguments. `lewm_client.client` turns it into a
method of both clients, which differ in how they run a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from numpy.typing import ArrayLike

from lewm.v1 import planner_pb2 as pb
from lewm_client.connection import Connection
from lewm_client.messages import (
    FrameLike,
    GoalLike,
    encode_response,
    frame_list,
    goal_frame,
    optional_tensor,
    plan_response,
    predict_response,
    region,
)
from lewm_client.responses import EncodeResponse, PlanResponse, PredictResponse

ResponseT = TypeVar("ResponseT")


@dataclass(frozen=True)
class Call(Generic[ResponseT]):
    """A call that is ready to be sent.

    Attributes:
        method: the name of the method of `lewm.v1.PlannerService`.
        request: its request.
        read: makes the client's response of the server's message.
        timeout_s: seconds for all attempts together.
    """

    method: str
    request: Message
    read: Callable[[Any], ResponseT]
    timeout_s: float


def encode(
    client: Connection,
    frames: Sequence[FrameLike],
    *,
    model: str | None = None,
    timeout_s: float = 30.0,
) -> Call[EncodeResponse]:
    """Encode frames to latents."""
    request = pb.EncodeRequest(model=model, frames=frame_list(frames, client.jpeg_quality))
    return Call("Encode", request, encode_response, timeout_s)


def predict(
    client: Connection,
    frames: Sequence[FrameLike],
    *,
    actions: ArrayLike | None = None,
    candidates: ArrayLike | None = None,
    past_actions: ArrayLike | None = None,
    model: str | None = None,
    timeout_s: float = 30.0,
) -> Call[PredictResponse]:
    """Predict the latents after `actions` (R, A), or after each of `candidates` (N, R, A).

    Args:
        frames: oldest first, one action block apart.
        actions: one sequence of actions, in the environment's units.
        candidates: several sequences, in place of `actions`.
        past_actions: the actions between the frames; needed for two frames or more.
        model: the model's name, None for the server's default model.
        timeout_s: seconds for all attempts together.
    """
    request = pb.PredictRequest(
        model=model,
        frames=frame_list(frames, client.jpeg_quality),
        past_actions=optional_tensor(past_actions),
        actions=optional_tensor(actions),
        candidates=optional_tensor(candidates),
    )
    return Call("Predict", request, predict_response, timeout_s)


def plan(
    client: Connection,
    frames: Sequence[FrameLike],
    goal: GoalLike,
    *,
    avoid: Sequence[Mapping[str, Any]] = (),
    past_actions: ArrayLike | None = None,
    committed_actions: ArrayLike | None = None,
    solver: Mapping[str, Any] | None = None,
    warm_start: ArrayLike | None = None,
    seed: int | None = None,
    deadline_ms: float | None = None,
    min_iterations: int | None = None,
    priority: int | None = None,
    fallback: str | Mapping[str, Any] | None = None,
    include: Sequence[str] = (),
    model: str | None = None,
    timeout_s: float = 30.0,
) -> Call[PlanResponse]:
    """Find actions that lead from `frames` to `goal`.

    Args:
        frames: oldest first, one action block apart.
        goal: what the robot should see at the end; or some of the states that it should have then,
            by name, such as `{"x": 40, "y": 120}`, for a model with a probe.
        avoid: regions of states that the way should not enter, each a box such as
            `{"state": {"x": [60, 90], "y": [30, 50]}}` or a disc `{"centre": {"x": 75, "y": 40},
            "radius": 20}`; a `weight` says how much a step inside costs.
        past_actions: the actions between the frames; needed for two frames or more.
        committed_actions: the actions that will have been executed when the plan starts, a
            multiple of `action_block` rows after the newest frame. The plan, ``warm_start`` and
            a fallback follow them.
        solver: settings that replace those of the model's card, such as `{"samples": 64}`.
        warm_start: the actions (up to R, A) at which the search starts.
        seed: the same request with the same seed gets the same plan.
        deadline_ms: the search ends by then; the earlier of this and `timeout_s` holds.
        min_iterations: the server refuses the request if fewer iterations fit before the
            deadline.
        priority: 0 to 9; 9 goes first.
        fallback: the controller that answers when the planner cannot, such as `"tail"`. With a
            state (n,): `{"controller": "waypoint", "state": state}`.
        include: parts of the response that are left out by default: `"trajectory"`.
        model: the model's name, None for the server's default model.
        timeout_s: seconds for all attempts together.
    """
    request = pb.PlanRequest(
        model=model,
        frames=frame_list(frames, client.jpeg_quality),
        past_actions=optional_tensor(past_actions),
        committed_actions=optional_tensor(committed_actions),
        goal=goal_frame(goal, client.jpeg_quality),
        avoid=map(region, avoid),
        solver=None if solver is None else pb.SolverSettings(**solver),
        warm_start=optional_tensor(warm_start),
        seed=seed,
        deadline_ms=deadline_ms,
        min_iterations=min_iterations,
        priority=priority,
        fallback=None if fallback is None else _fallback_message(fallback),
        include=include,
    )
    return Call("Plan", request, plan_response, timeout_s)


def models(_client: Connection, timeout_s: float = 30.0) -> Call[list[pb.Model]]:
    """List the server's models."""
    return Call("ListModels", pb.ListModelsRequest(), _model_list, timeout_s)


def _model_list(response: pb.ListModelsResponse) -> list[pb.Model]:
    return list(response.models)


def _fallback_message(fallback: str | Mapping[str, Any]) -> pb.Fallback:
    if isinstance(fallback, str):
        return pb.Fallback(controller=fallback)
    return pb.Fallback(**{**fallback, "state": optional_tensor(fallback.get("state"))})
