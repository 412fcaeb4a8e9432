"""The methods of `PlannerService`, from bytes to bytes.

Messages are parsed here and not by the gRPC library, so that bytes that are no message, methods
that do not exist and failures nobody foresaw end like every other error.
"""

from __future__ import annotations  # gRPC's handler types are generic to the checker only

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from lewm.v1 import planner_pb2 as pb
from lewm_serve.access import Exchange, record
from lewm_serve.context import Endpoint, RequestContext
from lewm_serve.errors import (
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    Internal,
    MalformedMessage,
    ServiceError,
    UnknownRoute,
    shorten,
)
from lewm_serve.held import HeldBytes
from lewm_serve.logs import log
from lewm_serve.metrics import Metrics
from lewm_serve.planner import Planner
from lewm_serve.requests import EncodeRequest, PlanRequest, PredictRequest, parse
from lewm_serve.requests.base import RequestModel
from lewm_serve.responses import EncodeResponse, PlanResponse, PredictResponse
from lewm_serve.rpc.call import Call, abort, context_of
from lewm_serve.rpc.messages import to_document, to_fields

SERVICE = "lewm.v1.PlannerService"

M = TypeVar("M", bound=Message)
Q = TypeVar("Q", bound=RequestModel)
R = TypeVar("R", EncodeResponse, PredictResponse, PlanResponse)
Handler = Callable[[bytes, Call], Awaitable[bytes]]


def read(kind: type[M], data: bytes) -> M:
    """The message in `data`, or `MalformedMessage`."""
    try:
        return kind.FromString(data)
    except DecodeError:
        detail = f"message: received {len(data)} bytes, expected a {kind.DESCRIPTOR.full_name}"
        raise MalformedMessage(detail) from None


class Methods:
    """Handlers of raw calls over a planner."""

    def __init__(self, planner: Planner, metrics: Metrics, max_bytes: int, held: HeldBytes) -> None:
        self.planner = planner
        self.metrics = metrics
        self.max_bytes = max_bytes
        self.held = held

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """gRPC's handler of each method by its name."""
        methods: dict[str, Handler] = {
            "Encode": self._inference(
                "encode",
                pb.EncodeRequest,
                EncodeRequest,
                self.planner.encode,
                pb.EncodeResponse,
            ),
            "Predict": self._inference(
                "predict",
                pb.PredictRequest,
                PredictRequest,
                self.planner.predict,
                pb.PredictResponse,
            ),
            "Plan": self._inference(
                "plan", pb.PlanRequest, PlanRequest, self.planner.plan, pb.PlanResponse
            ),
            "ListModels": self._guarded("models", self._list_models),
            "GetModel": self._guarded("models", self._get_model),
        }
        return {name: _unary(handler) for name, handler in methods.items()}

    def _inference(
        self,
        endpoint: Endpoint,
        message: type[Message],
        kind: type[Q],
        work: Callable[[Q, RequestContext], Awaitable[R]],
        answer: type[Message],
    ) -> Handler:
        async def answering(data: bytes, exchange: Exchange) -> Message:
            received: Any = read(message, data)
            exchange.model = self.planner.label(
                received.model if received.HasField("model") else None
            )
            request = parse(kind, to_document(received))
            response = await work(request, exchange.context)
            exchange.response = response
            return answer(**to_fields(response))

        return self._guarded(endpoint, answering)

    async def _list_models(self, data: bytes, _exchange: Exchange) -> Message:
        to_document(read(pb.ListModelsRequest, data))
        models = [pb.Model(**to_fields(model)) for model in self.planner.models()]
        return pb.ListModelsResponse(models=models)

    async def _get_model(self, data: bytes, exchange: Exchange) -> Message:
        request = read(pb.GetModelRequest, data)
        exchange.model = self.planner.label(request.name)
        to_document(request)
        model = self.planner.model(request.name)
        return pb.GetModelResponse(model=pb.Model(**to_fields(model)))

    def _guarded(
        self,
        endpoint: Endpoint,
        answering: Callable[[bytes, Exchange], Awaitable[Message]],
    ) -> Handler:
        """`answering` with its errors told to the client and its end recorded."""

        async def handle(data: bytes, call: Call) -> bytes:
            context = context_of(call, endpoint)
            exchange = Exchange(context)
            error: ServiceError | None = None
            try:
                self._check_size(data)
                with self.held.request() as mine:
                    mine.add(len(data))
                    message = await answering(data, exchange)
                call.set_trailing_metadata((("request_id", context.request_id),))
                return self._serialize(message)
            except ServiceError as refused:
                error = refused
            except asyncio.CancelledError:
                remaining = call.time_remaining()
                expired = remaining is not None and remaining <= 0
                error = DeadlineExceeded("the call's deadline") if expired else Cancelled()
                raise
            except Exception:
                log.exception("internal error", request_id=context.request_id)
                error = Internal(context.request_id)
            finally:
                self._record_soon(exchange, error)
            await abort(call, error, context.request_id)

        return handle

    def _record_soon(self, exchange: Exchange, error: ServiceError | None) -> None:
        """Leave the line and the count behind once the answer is on its way."""
        status = "OK"
        if error is not None:
            exchange.code, status = error.code, error.grpc_status
        asyncio.get_running_loop().call_soon(record, self.metrics, exchange, status)

    def _check_size(self, data: bytes) -> None:
        if len(data) > self.max_bytes:
            detail = f"message: received {len(data)} bytes, expected at most {self.max_bytes}"
            raise BodyTooLarge(detail)

    def _serialize(self, message: Message) -> bytes:
        started = time.monotonic()
        data = message.SerializeToString()
        self.metrics.stage_duration.labels("serialize").observe(time.monotonic() - started)
        return data


def _unary(handler: Handler) -> grpc.RpcMethodHandler[bytes, bytes]:
    return grpc.unary_unary_rpc_method_handler(handler)


class UnknownMethods(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Answers every method that nobody else does."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that refuses the call without reading its messages."""

        async def refuse(_messages: object, call: Call) -> None:
            context = context_of(call, "other")
            error = UnknownRoute(f"there is no {shorten(handler_call_details.method)}")
            record(self.metrics, Exchange(context, code=error.code), error.grpc_status)
            await abort(call, error, context.request_id)

        return grpc.stream_stream_rpc_method_handler(refuse)
