"""A connection to a planner."""

from __future__ import annotations  # gRPC's types are generic to the checker only

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message
from numpy.typing import ArrayLike

from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_client import retries
from lewm_client.answers import (
    EncodeResponse,
    PlanResponse,
    PredictResponse,
    encode_response,
    plan_response,
    predict_response,
)
from lewm_client.frames import FrameLike, frame, tensor

A = TypeVar("A", bound=Message)

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A server that is back is found within a second; gRPC's own default is up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def _fallback(settings: Mapping[str, Any]) -> pb.Fallback:
    return pb.Fallback(**{**settings, "state": _maybe(settings.get("state"))})


def _maybe(values: ArrayLike | None) -> pb.Tensor | None:
    return None if values is None else tensor(values)


class PlannerClient:
    """A connection to a planner at `target` (`host:port`). Threads may share it.

    Every call takes `timeout_s`, which for a plan is also its deadline, so that a dead server
    never hangs a robot. A server that goes away is looked for again, at least once a second;
    a call that finds it UNAVAILABLE is tried again up to `retries` times within its `timeout_s`.
    Raises `PlannerError`.
    """

    def __init__(self, target: str, *, retries: int = 3) -> None:
        self.retries = retries
        self.channel = grpc.insecure_channel(target, options=OPTIONS)
        self.stub = PlannerServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def encode(
        self, frames: Sequence[FrameLike], *, model: str | None = None, timeout_s: float = 30.0
    ) -> EncodeResponse:
        """The latents of the frames."""
        request = pb.EncodeRequest(model=model, frames=map(frame, frames))
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
        """The latents that follow from `actions` (R, A), or from each of `candidates` (N, R, A)."""
        request = pb.PredictRequest(
            model=model,
            frames=map(frame, frames),
            past_actions=_maybe(past_actions),
            actions=_maybe(actions),
            candidates=_maybe(candidates),
        )
        return predict_response(self._call(self.stub.Predict, request, timeout_s))

    def plan(
        self,
        frames: Sequence[FrameLike],
        goal: FrameLike,
        *,
        past_actions: ArrayLike | None = None,
        solver: Mapping[str, Any] | None = None,
        warm_start: ArrayLike | None = None,
        seed: int | None = None,
        deadline_ms: float | None = None,
        min_iterations: int | None = None,
        priority: int | None = None,
        fallback: Mapping[str, Any] | None = None,
        include: Sequence[str] = (),
        model: str | None = None,
        timeout_s: float = 30.0,
    ) -> PlanResponse:
        """Actions that lead from `frames`, oldest first, to `goal`.

        `solver` holds what should differ from the model's card, such as `{"samples": 64}`;
        `fallback` the `controller` that answers when the planner cannot, and its `state` (n,).
        """
        request = pb.PlanRequest(
            model=model,
            frames=map(frame, frames),
            past_actions=_maybe(past_actions),
            goal=frame(goal),
            solver=None if solver is None else pb.SolverSettings(**solver),
            warm_start=_maybe(warm_start),
            seed=seed,
            deadline_ms=deadline_ms,
            min_iterations=min_iterations,
            priority=priority,
            fallback=None if fallback is None else _fallback(fallback),
            include=include,
        )
        return plan_response(self._call(self.stub.Plan, request, timeout_s))

    def models(self, timeout_s: float = 30.0) -> list[pb.Model]:
        """The models being served."""
        answer = self._call(self.stub.ListModels, pb.ListModelsRequest(), timeout_s)
        return list(answer.models)

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., A], request: Message, timeout_s: float) -> A:
        return retries.call(method, request, timeout_s, self.retries)
