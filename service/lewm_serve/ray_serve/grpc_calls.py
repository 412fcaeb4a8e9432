"""gRPC behind Ray's proxy: a call of the proxy becomes one that `transports.grpc` answers.

The proxy passes on the bytes of the message and a copy of the call's context. The copy does not
know the call's deadline. A call that the client gives up is cancelled by Ray.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc

from lewm_serve.service import Service
from lewm_serve.settings import Settings
from lewm_serve.transports.grpc.access import KeyCheck
from lewm_serve.transports.grpc.inference_protocol import InferenceProtocolMethods
from lewm_serve.transports.grpc.methods import PlannerMethods
from lewm_serve.transports.grpc.transfers import Transfers

RayContext = Any
"""Ray's `RayServegRPCContext`."""

Metadata = Sequence[tuple[str, str]]
Behaviour = Callable[[object, Any], Awaitable[bytes]]


@dataclass(frozen=True)
class Answer:
    """A message that has its bytes already. Ray asks for them as if it was one of protobuf."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802
        """The bytes."""
        return self.data


class GrpcCalls:
    """Answers the calls of Ray's proxies, by the name of their method."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._transfers = Transfers(
            service.memory,
            receive_s=settings.receive_s,
            max_message_bytes=settings.max_body_bytes,
        )
        self._behaviours: dict[str, Behaviour] = {}

    async def start(self) -> None:
        """Make what answers each method, with the check of the key if there are keys."""
        service = self._service
        for kind in (PlannerMethods, InferenceProtocolMethods):
            methods = kind(
                service.planner,
                metrics=service.metrics,
                memory=service.memory,
                recorder=service.recorder,
                transfers=self._transfers,
            )
            for name, handler in methods.handlers().items():
                checked = await self._checked(f"/{kind.service}/{name}", handler)
                self._behaviours[name] = checked.stream_unary

    async def _checked(self, path: str, handler: Any) -> Any:
        if self._service.keys is None:
            return handler

        async def unchecked(_details: object) -> Any:
            return handler

        check = KeyCheck(self._service.keys, self._service.recorder)
        return await check.intercept_service(unchecked, SimpleNamespace(method=path))

    async def answer(self, method: str, message: bytes, context: RayContext) -> Answer:
        """The answer to a call. An error is in the context."""
        call = _Call(message, context)
        try:
            return Answer(await self._behaviours[method](None, call))
        except _Aborted:
            return Answer(b"")
        finally:
            call.finish()


class _Aborted(Exception):
    """The call has ended with an error."""


class _Call:
    """As much of `grpc.aio.ServicerContext` as `transports.grpc` uses."""

    def __init__(self, message: bytes, context: RayContext) -> None:
        self._message = message
        self._context = context
        self._callbacks: list[Callable[[Any], None]] = []
        self.peer = context.peer
        self.invocation_metadata = context.invocation_metadata

    async def read(self) -> bytes:
        """The call's only message."""
        return self._message

    def time_remaining(self) -> None:
        """Not known."""

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Send metadata after the answer."""
        self._context.set_trailing_metadata(list(metadata))

    async def abort(self, status: grpc.StatusCode, detail: str, trailing: Metadata) -> None:
        """End the call with an error. Ray would drop the metadata of a call that raises."""
        self._context.set_code(status)
        self._context.set_details(detail)
        self.set_trailing_metadata(trailing)
        raise _Aborted

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call it when the call has ended."""
        self._callbacks.append(callback)

    def finish(self) -> None:
        """The call has ended."""
        for callback in self._callbacks:
            callback(self)
