"""The clients of a planner, blocking and asyncio. They have the same arguments and methods."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import grpc
import grpc.aio

from lewm_client import calls
from lewm_client.calls import Call
from lewm_client.connection import Attempts, Connection
from lewm_client.errors import PlannerError

P = ParamSpec("P")
ResponseT = TypeVar("ResponseT")
ClientT = TypeVar("ClientT", bound="PlannerClient")
AsyncClientT = TypeVar("AsyncClientT", bound="AsyncPlannerClient")


def _blocking(
    make_call: Callable[Concatenate[Connection, P], Call[ResponseT]],
) -> Callable[Concatenate[PlannerClient, P], ResponseT]:
    """The method of the blocking client that makes a call and runs it."""

    @functools.wraps(make_call)
    def method(client: PlannerClient, /, *args: P.args, **kwargs: P.kwargs) -> ResponseT:
        return client.run(make_call(client, *args, **kwargs))

    return method


def _asynchronous(
    make_call: Callable[Concatenate[Connection, P], Call[ResponseT]],
) -> Callable[Concatenate[AsyncPlannerClient, P], Coroutine[Any, Any, ResponseT]]:
    """The method of the asyncio client that makes a call and runs it."""

    @functools.wraps(make_call)
    async def method(client: AsyncPlannerClient, /, *args: P.args, **kwargs: P.kwargs) -> ResponseT:
        return await client.run(make_call(client, *args, **kwargs))

    return method


class PlannerClient(Connection):
    """A connection to a planner; `Connection` describes its arguments. Threads may share it.

    Every call takes `timeout_s`, so that a dead server never blocks a robot. For a plan it is also
    the deadline. The client reconnects to a lost server at least once a second, and retries a call
    that is lost up to `retries` times within its `timeout_s`.

    All calls raise `PlannerError` where they get no response, and `ValueError` where `timeout_s` is
    not a finite number above 0.
    """

    transport: ClassVar[Any] = grpc
    channel: grpc.Channel

    encode = _blocking(calls.encode)
    predict = _blocking(calls.predict)
    plan = _blocking(calls.plan)
    models = _blocking(calls.models)

    def run(self, call: Call[ResponseT]) -> ResponseT:
        """Send a call and wait for its response.

        Raises:
            PlannerError: the error of the last attempt.
        """
        attempts = Attempts(call.timeout_s, self.retries)
        send = getattr(self.stub, call.method)
        while True:
            try:
                message = send(call.request, timeout=attempts.time_left_s(), metadata=self.metadata)
                return call.read(message)
            except grpc.RpcError as rpc_error:
                error = PlannerError(rpc_error)  # type: ignore[arg-type]
            time.sleep(attempts.pause_after_s(error))

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


class AsyncPlannerClient(Connection):
    """A `PlannerClient` for asyncio: the calls are awaited. It is made inside of a coroutine.

    A call that is cancelled is cancelled on the server, too.
    """

    transport: ClassVar[Any] = grpc.aio
    channel: grpc.aio.Channel

    encode = _asynchronous(calls.encode)
    predict = _asynchronous(calls.predict)
    plan = _asynchronous(calls.plan)
    models = _asynchronous(calls.models)

    async def run(self, call: Call[ResponseT]) -> ResponseT:
        """Send a call and wait for its response.

        Raises:
            PlannerError: the error of the last attempt.
        """
        attempts = Attempts(call.timeout_s, self.retries)
        send = getattr(self.stub, call.method)
        while True:
            try:
                message = await send(
                    call.request, timeout=attempts.time_left_s(), metadata=self.metadata
                )
                return call.read(message)
            except grpc.RpcError as rpc_error:
                error = PlannerError(rpc_error)  # type: ignore[arg-type]
            await asyncio.sleep(attempts.pause_after_s(error))

    async def close(self) -> None:
        """Close the connection."""
        await self.channel.close(None)

    async def __aenter__(self: AsyncClientT) -> AsyncClientT:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()
