"""A connection to a planner, and how its calls are retried."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from numpy.typing import ArrayLike

from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_client.errors import PlannerError
from lewm_client.messages import (
    FrameLike,
    encode_response,
    frame,
    frame_list,
    optional_tensor,
    plan_response,
    predict_response,
)
from lewm_client.responses import EncodeResponse, PlanResponse, PredictResponse

ResponseT = TypeVar("ResponseT", bound=Message)
ClientT = TypeVar("ClientT", bound="PlannerClient")

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A server that is back is found within a second; gRPC's own default is up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

FIRST_RETRY_PAUSE_S = 0.05
MAX_RETRY_PAUSE_S = 1.0


class PlannerClient:
    """A connection to a planner at `target` (`host:port`). Threads may share it.

    Every call takes `timeout_s`, so that a dead server never blocks a robot. For a plan it is also
    the deadline. The client reconnects to a lost server at least once a second, and retries a call
    that ends in UNAVAILABLE up to `retries` times within its `timeout_s`.

    All calls raise `PlannerError` where they get no response, and `ValueError` where `timeout_s` is
    not a finite number above 0. `channel_options` are further options of gRPC, such as
    `[("grpc.enable_http_proxy", 0)]`; they replace those in `CHANNEL_OPTIONS`.
    """

    def __init__(
        self, target: str, *, retries: int = 3, channel_options: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self.retries = retries
        options = dict(CHANNEL_OPTIONS) | dict(channel_options)
        self.channel = grpc.insecure_channel(target, options=tuple(options.items()))
        self.stub = PlannerServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def encode(
        self, frames: Sequence[FrameLike], *, model: str | None = None, timeout_s: float = 30.0
    ) -> EncodeResponse:
        """Encode frames to latents."""
        request = pb.EncodeRequest(model=model, frames=frame_list(frames))
        return encode_response(self._call(self.stub.Encode, request, timeout_s))

    def predict(
        self,
        frames: Sequence[FrameLike],
        *,
        actions: ArrayLike | None = None,
        candidates: ArrayLike | None = None,
        past_actions: ArrayLike | None = None,
        model: str | None = None,
        timeout_s: float = 30.0,
    ) -> PredictResponse:
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
            frames=frame_list(frames),
            past_actions=optional_tensor(past_actions),
            actions=optional_tensor(actions),
            candidates=optional_tensor(candidates),
        )
        return predict_response(self._call(self.stub.Predict, request, timeout_s))

    def plan(
        self,
        frames: Sequence[FrameLike],
        goal: FrameLike,
        *,
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
    ) -> PlanResponse:
        """Find actions that lead from `frames` to `goal`.

        Args:
            frames: oldest first, one action block apart.
            goal: what the robot should see at the end.
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
            frames=frame_list(frames),
            past_actions=optional_tensor(past_actions),
            committed_actions=optional_tensor(committed_actions),
            goal=frame(goal),
            solver=None if solver is None else pb.SolverSettings(**solver),
            warm_start=optional_tensor(warm_start),
            seed=seed,
            deadline_ms=deadline_ms,
            min_iterations=min_iterations,
            priority=priority,
            fallback=None if fallback is None else _fallback_message(fallback),
            include=include,
        )
        return plan_response(self._call(self.stub.Plan, request, timeout_s))

    def models(self, timeout_s: float = 30.0) -> list[pb.Model]:
        """List the server's models."""
        response = self._call(self.stub.ListModels, pb.ListModelsRequest(), timeout_s)
        return list(response.models)

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    def __enter__(self: ClientT) -> ClientT:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self, method: Callable[..., ResponseT], request: Message, timeout_s: float
    ) -> ResponseT:
        return call_with_retries(method, request, timeout_s=timeout_s, retries=self.retries)


def call_with_retries(
    method: Callable[..., ResponseT], request: Message, *, timeout_s: float, retries: int
) -> ResponseT:
    """Call a method, and call it again up to ``retries`` times while it ends in UNAVAILABLE.

    Other errors are not retried: a plan that was too late once is too late again, and retries make
    an overloaded server slower. The pauses double. They are shortened at random, so that the robots
    of a fleet do not return at the same moment, but are at least as long as the server asks for.

    Args:
        method: a method of the gRPC stub.
        request: its request.
        timeout_s: seconds for all attempts and pauses together.
        retries: how many further attempts are allowed.

    Raises:
        PlannerError: the error of the last attempt.
        ValueError: ``timeout_s`` is not a finite number above 0: the call might never return.
    """
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s must be a finite number above 0, got {timeout_s}")
    deadline = time.monotonic() + timeout_s
    next_pause_s = FIRST_RETRY_PAUSE_S
    retries_left = retries
    while True:
        try:
            return method(request, timeout=max(0.0, deadline - time.monotonic()))
        except grpc.RpcError as rpc_error:
            error = PlannerError(rpc_error)  # type: ignore[arg-type]
        pause_s = max(error.retry_after_s or 0.0, next_pause_s * random.uniform(0.5, 1))
        out_of_time = time.monotonic() + pause_s >= deadline
        if error.status is not grpc.StatusCode.UNAVAILABLE or not retries_left or out_of_time:
            raise error
        time.sleep(pause_s)
        retries_left -= 1
        next_pause_s = min(2 * next_pause_s, MAX_RETRY_PAUSE_S)


def _fallback_message(fallback: str | Mapping[str, Any]) -> pb.Fallback:
    if isinstance(fallback, str):
        return pb.Fallback(controller=fallback)
    return pb.Fallback(**{**fallback, "state": optional_tensor(fallback.get("state"))})
