"""Which roles each method needs, and the check of the key before a call goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from lewm_serve.access.keys import INFER, READ, Keys, key_in_header
from lewm_serve.access.keys_file import Role
from lewm_serve.constants import Endpoint
from lewm_serve.errors import ServiceError
from lewm_serve.transports.exchange import Exchange, RequestRecorder
from lewm_serve.transports.grpc.calls import (
    INFERENCE_SERVICE,
    KEY_OF_CALL,
    SERVICE,
    abort,
    call_context,
    first_headers,
    operation_of,
)
from lewm_serve.transports.grpc.transfers import Call

HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
"""The only service that needs no key."""

OPEN_METHODS = (
    f"/{INFERENCE_SERVICE}/ServerLive",
    f"/{INFERENCE_SERVICE}/ServerReady",
)
"""The methods of other services that need no key either."""

METHODS: dict[str, tuple[Endpoint, frozenset[Role]]] = {
    f"/{SERVICE}/Encode": ("encode", INFER),
    f"/{SERVICE}/Predict": ("predict", INFER),
    f"/{SERVICE}/Plan": ("plan", INFER),
    f"/{SERVICE}/ListModels": ("models", INFER | READ),
    f"/{SERVICE}/GetModel": ("models", INFER | READ),
    f"/{INFERENCE_SERVICE}/ServerMetadata": ("models", INFER | READ),
    f"/{INFERENCE_SERVICE}/ModelMetadata": ("models", INFER | READ),
    f"/{INFERENCE_SERVICE}/ModelReady": ("models", INFER | READ),
    f"/{INFERENCE_SERVICE}/ModelInfer": ("plan", INFER),
    f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": ("other", READ),
}
"""The endpoint of each method, and the roles of which any opens it. A method that is not listed
here is refused, so that a new one cannot be open by mistake."""

UNKNOWN_METHOD: tuple[Endpoint, None] = ("other", None)

Behaviour = Callable[[object, Call], Awaitable[Any]]


class KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses calls without a key that opens their method.

    It is the first interceptor. Those behind it leave two kinds of handlers: they take a stream of
    messages, and answer with one message or with a stream.
    """

    def __init__(self, keys: Keys, recorder: RequestRecorder) -> None:
        self._keys = keys
        self._recorder = recorder

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The handler of a call."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if method.startswith(f"/{HEALTH_SERVICE}/") or method in OPEN_METHODS:
            return handler
        if handler.stream_unary is not None:
            return handler._replace(stream_unary=self._checked(method, handler.stream_unary))
        return handler._replace(stream_stream=self._checked(method, handler.stream_stream))

    def _checked(self, method: str, behaviour: Behaviour) -> Behaviour:
        endpoint, roles = METHODS.get(method, UNKNOWN_METHOD)

        async def answer(messages: object, call: Call) -> Any:
            presented = key_in_header(first_headers(call).get("authorization"))
            try:
                key = await self._keys.start(presented, roles, method)
            except ServiceError as error:
                is_inference = method.startswith(f"/{INFERENCE_SERVICE}/")
                context = call_context(call, endpoint, "oip" if is_inference else "grpc")
                operation = operation_of("_OTHER" if roles is None else method.removeprefix("/"))
                exchange = Exchange(context, operation, code=error.code)
                self._recorder.record(exchange, error.grpc_status)
                await abort(call, error, context.request_id)
            try:
                KEY_OF_CALL.set(key)
                return await behaviour(messages, call)
            finally:
                key.finish()

        return answer
