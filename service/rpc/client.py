"""A small client for robots: numpy and gRPC, nothing else.

    with PlannerClient("127.0.0.1:50051") as client:
        plan = client.plan([camera.frame()], goal=goal_frame, timeout_s=0.5)
        robot.run(plan.actions)

A frame is an array (H, W, 3) of uint8, the bytes of a PNG or JPEG image, a latent (latent_dim,)
of floats, or the `latent_id` of an earlier response.
"""

from __future__ import annotations  # gRPC's types are generic to the checker only

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from numpy.typing import ArrayLike, NDArray

from service.responses import EncodeResponse, PlanResponse, PredictResponse
from service.rpc.answers import encode_response, plan_response, predict_response

FrameLike = NDArray[Any] | bytes | str
A = TypeVar("A", bound=Message)

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class PlannerError(Exception):
    """What the server, or the way to it, refused.

    `code` is the service's own (`invalid_image`, `overloaded`, …), or the gRPC status in lower
    case where the server did not answer. `retry_after_s` is None where no retry is promised.
    """

    def __init__(self, error: grpc.Call) -> None:
        trailing = dict(error.trailing_metadata() or ())
        self.status = error.code()
        self.detail = error.details() or ""
        self.code = str(trailing.get("code", self.status.name.lower()))
        self.request_id = str(trailing.get("request_id", ""))
        after = trailing.get("retry-after-ms")
        self.retry_after_s = None if after is None else float(after) / 1000
        super().__init__(f"{self.code}: {self.detail}")


def tensor(values: ArrayLike) -> pb.Tensor:
    """Numbers as a message: little-endian float32, row-major."""
    array = np.asarray(values, "<f4")
    return pb.Tensor(shape=array.shape, data=array.tobytes())


def frame(source: FrameLike) -> pb.Frame:
    """A frame as a message; `TypeError` or `ValueError` for what is none."""
    if isinstance(source, str):
        return pb.Frame(latent_id=source)
    if isinstance(source, bytes):
        return pb.Frame(image=source)
    array = np.asarray(source)
    if array.ndim == 1:
        return pb.Frame(latent=tensor(array))
    if array.dtype != np.uint8:
        raise TypeError(f"frame has dtype {array.dtype}, expected uint8 pixels")
    return pb.Frame(pixels=pb.Pixels(shape=array.shape, data=array.tobytes()))


def _fallback(settings: Mapping[str, Any]) -> pb.Fallback:
    return pb.Fallback(**{**settings, "state": _maybe(settings.get("state"))})


def _maybe(values: ArrayLike | None) -> pb.Tensor | None:
    return None if values is None else tensor(values)


class PlannerClient:
    """A connection to a planner at `target` (`host:port`). Threads may share it.

    Every call takes `timeout_s`, which for a plan is also its deadline, so that a dead server
    never hangs a robot. Raises `PlannerError`.
    """

    def __init__(self, target: str) -> None:
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
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise PlannerError(error) from None  # type: ignore[arg-type]
