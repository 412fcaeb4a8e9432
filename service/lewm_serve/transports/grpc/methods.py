"""The methods of a service, from the bytes of a call to the bytes of its answer.

Messages are parsed here and not by the gRPC library, so that bytes that are not a message, unknown
methods and unexpected errors end like every other error: with a code and a request id.
"""

from __future__ import annotations  # gRPC's handler types are generic for the type checker only

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from lewm.v1 import planner_pb2 as pb
from lewm_serve.api.fields import RequestModel, parse
from lewm_serve.api.requests import (
    EncodeRequest,
    PlanRequest,
    PredictRequest,
    RequestContext,
    request_id_from,
)
from lewm_serve.api.responses import EncodeResponse, PlanResponse, PredictResponse
from lewm_serve.constants import Endpoint, Protocol
from lewm_serve.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    MalformedMessage,
    Overloaded,
    ServiceError,
    UnknownRoute,
    shorten,
)
from lewm_serve.observability.logging import log
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.transports.exchange import Exchange, RequestMemory, RequestRecorder
from lewm_serve.transports.grpc.calls import SERVICE, abort, call_context, operation_of
from lewm_serve.transports.grpc.messages import to_document, to_message_fields
from lewm_serve.transports.grpc.transfers import Call, Transfers

MAX_LIBRARY_STREAMS = 1000
"""Streams of the health service and of reflection have no end, and each takes memory."""

STREAM_RETRY_AFTER_S = 1.0

Handler = Callable[[object, Call], Awaitable[bytes]]

MessageT = TypeVar("MessageT", bound=Message)
RequestT = TypeVar("RequestT", bound=RequestModel)
ResponseT = TypeVar("ResponseT", EncodeResponse, PredictResponse, PlanResponse)


class Methods:
    """What the methods of a service share: from the bytes of a call to those of its answer.

    Attributes:
        service: the full name of the service.
        protocol: what it is called in metrics.
    """

    service: str
    protocol: Protocol

    def __init__(
        self,
        planner: Planner,
        *,
        metrics: Metrics,
        memory: RequestMemory,
        recorder: RequestRecorder,
        transfers: Transfers,
    ) -> None:
        self.planner = planner
        self.metrics = metrics
        self.memory = memory
        self.recorder = recorder
        self.transfers = transfers

    def handler(
        self,
        method: str,
        endpoint: Endpoint,
        answer: Callable[[bytes, Exchange], Awaitable[Message]],
    ) -> Handler:
        """A handler that sends the errors of ``answer`` to the client and records the call."""
        operation = operation_of(f"{self.service}/{method}")

        async def handle(_messages: object, call: Call) -> bytes:
            started = time.monotonic()
            error: ServiceError | None = None
            try:
                try:
                    data = await self.transfers.receive(call)
                finally:
                    context = call_context(call, endpoint, self.protocol)
                    exchange = Exchange(context, operation, started=started)
                with self.memory.reserve() as reservation:
                    reservation.add(len(data))
                    message = await answer(data, exchange)
                call.set_trailing_metadata((("request_id", context.request_id),))
                return self._serialize(message, call)
            except ServiceError as service_error:
                error = service_error
            except asyncio.CancelledError:
                remaining_s = call.time_remaining()
                expired = remaining_s is not None and remaining_s <= 0
                error = DeadlineExceeded("the call's deadline") if expired else Cancelled()
                raise
            except Exception:
                log.exception("internal error", request_id=context.request_id)
                error = Internal(context.request_id)
            finally:
                self._record_later(exchange, error)
            # Only a refused call gets here: a success has returned, a cancelled one has raised.
            await abort(call, error, context.request_id)

        return handle

    def _record_later(self, exchange: Exchange, error: ServiceError | None) -> None:
        """Record the call in the event loop's next round, so that the answer is sent first."""
        status = "OK"
        if error is not None:
            exchange.code, status = error.code, error.grpc_status
        if error is None and not exchange.is_recorded:
            return
        asyncio.get_running_loop().call_soon(self.recorder.record, exchange, status)

    def _serialize(self, message: Message, call: Call) -> bytes:
        started = time.monotonic()
        data = message.SerializeToString()
        self.metrics.stage_duration.labels("serialize").observe(time.monotonic() - started)
        self.transfers.hold_answer(call, len(data))
        return data


class PlannerMethods(Methods):
    """The handlers of `PlannerService`."""

    service = SERVICE
    protocol = "grpc"

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """gRPC's handler of each method, by the method's name."""
        planner = self.planner
        handlers = {
            "Encode": self._inference_handler(
                "Encode",
                endpoint="encode",
                request_message=pb.EncodeRequest,
                request_type=EncodeRequest,
                work=planner.encode,
                response_message=pb.EncodeResponse,
            ),
            "Predict": self._inference_handler(
                "Predict",
                endpoint="predict",
                request_message=pb.PredictRequest,
                request_type=PredictRequest,
                work=planner.predict,
                response_message=pb.PredictResponse,
            ),
            "Plan": self._inference_handler(
                "Plan",
                endpoint="plan",
                request_message=pb.PlanRequest,
                request_type=PlanRequest,
                work=planner.plan,
                response_message=pb.PlanResponse,
            ),
            "ListModels": self.handler("ListModels", "models", self._list_models),
            "GetModel": self.handler("GetModel", "models", self._get_model),
        }
        return of_bytes(handlers)

    def _inference_handler(
        self,
        method: str,
        *,
        endpoint: Endpoint,
        request_message: type[Message],
        request_type: type[RequestT],
        work: Callable[[RequestT, RequestContext], Awaitable[ResponseT]],
        response_message: type[Message],
    ) -> Handler:
        async def answer(data: bytes, exchange: Exchange) -> Message:
            message: Any = parse_message(request_message, data)
            model_name = message.model if message.HasField("model") else None
            exchange.model = self.planner.log_label(model_name)
            request = parse(request_type, to_document(message))
            response = await work(request, exchange.context)
            exchange.response = response
            return response_message(**to_message_fields(response))

        return self.handler(method, endpoint, answer)

    async def _list_models(self, data: bytes, _exchange: Exchange) -> Message:
        to_document(parse_message(pb.ListModelsRequest, data))
        return pb.ListModelsResponse(**to_message_fields(self.planner.describe_models()))

    async def _get_model(self, data: bytes, exchange: Exchange) -> Message:
        request = parse_message(pb.GetModelRequest, data)
        exchange.model = self.planner.log_label(request.name)
        to_document(request)
        model = self.planner.describe_model(request.name)
        return pb.GetModelResponse(model=pb.Model(**to_message_fields(model)))


class LibraryMethods(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Keeps the messages of the library's own services (health, reflection) within the limits."""

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers
        self._streams = 0

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The handler of a call."""
        handler = await continuation(handler_call_details)
        if handler.request_deserializer is None:
            return handler  # one of ours, which takes bytes

        async def answer_once(_messages: object, call: Call) -> Any:
            async with self._refusing(call):
                message = handler.request_deserializer(await self.transfers.receive(call))
                try:
                    response = await handler.unary_unary(message, call)
                except NotImplementedError:  # a method such as List, which the library only names
                    method = shorten(handler_call_details.method)
                    raise UnknownRoute(f"there is no {method}") from None
                self.transfers.hold_answer(call, response.ByteSize())
                return response

        async def watch(_messages: object, call: Call) -> None:
            async with self._refusing(call), self._stream():
                message = handler.request_deserializer(await self.transfers.receive(call))
                await handler.unary_stream(message, call)

        async def converse(_messages: object, call: Call) -> None:
            async with self._refusing(call), self._stream():
                messages = self.transfers.receive_all(call)
                requests = (handler.request_deserializer(data) async for data in messages)
                async for response in handler.stream_stream(requests, call):
                    await self.transfers.send(call, response)

        serializer = handler.response_serializer
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(answer_once, response_serializer=serializer)
        behaviour = converse if handler.request_streaming else watch
        return grpc.stream_stream_rpc_method_handler(behaviour, response_serializer=serializer)

    @asynccontextmanager
    async def _refusing(self, call: Call) -> AsyncIterator[None]:
        """Send an error of the block to the client."""
        try:
            yield
        except ServiceError as error:
            await abort(call, error, request_id_from(None))
        except DecodeError:
            malformed = MalformedMessage(
                "message: received bytes that are not the method's message"
            )
            await abort(call, malformed, request_id_from(None))

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[None]:
        """One of the streams that may last.

        Raises:
            Overloaded: there are too many.
        """
        if self._streams >= MAX_LIBRARY_STREAMS:
            raise Overloaded(STREAM_RETRY_AFTER_S, f"there are {self._streams} streams already")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


class UnknownMethods(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Refuses every method that no other handler knows."""

    def __init__(self, recorder: RequestRecorder) -> None:
        self.recorder = recorder

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that refuses the call without reading its messages."""

        async def refuse(_messages: object, call: Call) -> None:
            context = call_context(call, "other")
            error = UnknownRoute(f"there is no {shorten(handler_call_details.method)}")
            exchange = Exchange(context, operation_of("_OTHER"), code=error.code)
            self.recorder.record(exchange, error.grpc_status)
            await abort(call, error, context.request_id)

        return grpc.stream_stream_rpc_method_handler(refuse)


def of_bytes(handlers: dict[str, Handler]) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
    """gRPC's handler of each method, by the method's name.

    The library would call a handler of a single message only when it has the whole message. On the
    wire there is no difference.
    """
    return {
        name: grpc.stream_unary_rpc_method_handler(handler) for name, handler in handlers.items()
    }


def parse_message(kind: type[MessageT], data: bytes) -> MessageT:
    """The message in ``data``.

    Raises:
        MalformedMessage: there is none.
    """
    try:
        return kind.FromString(data)
    except DecodeError:
        detail = f"message: received {len(data)} bytes, expected a {kind.DESCRIPTOR.full_name}"
        raise MalformedMessage(detail) from None
