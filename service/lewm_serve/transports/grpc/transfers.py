"""Messages on their way: how long that may take, and how many bytes they may hold.

gRPC keeps the received part of a message until the message is complete, and does not say how much
that is. The handler of a call runs from the call's headers on, so the time is limited here. The
bytes are those that the kernel has received on the connection, minus those of the complete
messages. They are measured only while a message takes longer than `CHECK_S`, and from time to time.

An answer counts until the client has taken it.
"""

from __future__ import annotations  # gRPC's types are generic for the type checker only

import asyncio
import contextlib
import socket
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc.aio

from lewm_serve.errors import (
    BodyTooLarge,
    MalformedMessage,
    Overloaded,
    RequestTimeout,
    ServiceError,
)
from lewm_serve.observability.logging import log
from lewm_serve.transports.exchange import MemoryReservation, RequestMemory

Call = grpc.aio.ServicerContext[Any, Any]

CHECK_S = 0.1
"""How often the bytes of incomplete messages are measured, while there are some."""

MEASUREMENT_S = 10.0
"""How often, in any case, to find out which connections there are, and how many bytes of theirs
belong to no message (headers and pings)."""

END_OF_MESSAGES = grpc.aio.EOF  # type: ignore[attr-defined]
DISCONNECTION_S = 0.1
"""If a call ends without a message because the client is gone, it is cancelled within this time."""

CUT_RETRY_AFTER_S = 1.0

CALL_BYTES = 32 * 1024
"""What a call takes beside its message. 20 KiB were measured."""

RELIEF_S = 1.0
MAX_USED_CONNECTIONS = 0.9
"""How often the connections are counted, and the share of them that is not relieved."""

OPEN_FILES = Path("/proc/self/fd")
HAS_OPEN_FILES = sys.platform == "linux" and OPEN_FILES.is_dir()
"""On other systems only the time is limited."""

BYTES_RECEIVED = struct.Struct("@128xQ")
"""The field `tcpi_bytes_received` in Linux's `struct tcp_info`."""


class _Upload:
    """A message that is being received.

    Attributes:
        started: when its call began.
        timeout: ends the wait for it, once it is given up.
        error: why it was given up.
    """

    def __init__(self, started: float) -> None:
        self.started = started
        self.timeout = asyncio.timeout(None)
        self.error: ServiceError | None = None

    def give_up(self, error: ServiceError) -> None:
        """End the wait for the message."""
        if self.error is None:
            self.error = error
            self.timeout.reschedule(0)


class _Connection:
    """What is known of a client's connection.

    Attributes:
        host: the client's address.
        last_call: when its last call began.
        known_bytes: the received bytes that belong to complete messages, to headers, or to messages
            that were given up.
        uploads: the incomplete messages, the oldest first.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.last_call = 0.0
        self.known_bytes = 0
        self.uploads: dict[_Upload, None] = {}

    def started(self) -> float:
        """When the oldest incomplete message began."""
        return next(iter(self.uploads)).started


class Transfers:
    """Receives messages within limits, and watches answers. Used only from the event loop.

    Incomplete messages may hold half of the memory of all requests. Above that, the client that
    holds the most bytes for the longest time loses its incomplete messages.

    Args:
        memory: the memory of the requests in progress.
        receive_s: the time in which a message must arrive, and an answer be taken.
        max_message_bytes: the largest message.
    """

    def __init__(self, memory: RequestMemory, *, receive_s: float, max_message_bytes: int) -> None:
        self.port = 0
        self._memory = memory
        self._limit = max(memory.limit // 2, 2 * max_message_bytes)
        self._receive_s = receive_s
        self._max_message_bytes = max_message_bytes
        self._connections: dict[str, _Connection] = {}
        self._receiving: set[_Connection] = set()
        self._answers: dict[Call, float] = {}
        self._next_check: asyncio.TimerHandle | None = None
        self._last_measurement = 0.0

    async def receive(self, call: Call) -> bytes:
        """The first message of a call.

        Raises:
            MalformedMessage: there is none.
            BodyTooLarge: it has more bytes than a message may have.
            RequestTimeout: it does not arrive in time.
            Overloaded: it was given up, because incomplete messages hold too many bytes.
        """
        data = await self._receive(call)
        if data is None:
            await asyncio.sleep(DISCONNECTION_S)
            raise MalformedMessage("message: received nothing, expected one message")
        return data

    async def receive_all(self, call: Call) -> AsyncIterator[bytes]:
        """The messages of a call, until the client sends no more. Raises as `receive` does."""
        while (data := await self._receive(call)) is not None:
            yield data

    async def _receive(self, call: Call) -> bytes | None:
        """The next message of a call, or None if there is no other."""
        connection = self._connection(call.peer())
        upload = _Upload(self._schedule_check())
        connection.uploads[upload] = None
        connection.last_call = upload.started
        self._receiving.add(connection)
        try:
            async with upload.timeout:
                data: Any = await call.read()
        except TimeoutError:
            assert upload.error is not None
            raise upload.error from None
        finally:
            del connection.uploads[upload]
        if data is END_OF_MESSAGES:
            return None
        message: bytes = data
        connection.known_bytes += len(message)
        if len(message) > self._max_message_bytes:
            expected = f"expected at most {self._max_message_bytes}"
            raise BodyTooLarge(f"message: received {len(message)} bytes, {expected}")
        return message

    async def send(self, call: Call, message: object) -> None:
        """Send one of several answers. If the client does not take it in time, disconnect it."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._receive_s, self._disconnect, call.peer())
        try:
            await call.write(message)
        finally:
            timer.cancel()

    def hold_answer(self, call: Call, size: int) -> None:
        """Count the one answer until the client has taken it. If it does not, disconnect it.

        Raises:
            Overloaded: the server holds too many bytes already.
        """
        reservation = MemoryReservation(self._memory)
        reservation.add(size)
        self._answers[call] = self._schedule_check()

        def release(_call: Call) -> None:
            self._answers.pop(call, None)
            reservation.release()

        call.add_done_callback(release)  # type: ignore[arg-type]  # the stub's type is wrong

    def relieve(self, max_connections: int) -> None:
        """From now on, close the least used connections when there are nearly too many.

        Otherwise, clients that connect and do nothing would keep others from connecting.
        """
        loop = asyncio.get_running_loop()
        loop.call_later(RELIEF_S, self.relieve, max_connections)
        clients = [client for client, _ in _connections_to(self.port)]
        if len(clients) <= max_connections * MAX_USED_CONNECTIONS:
            return
        last_calls = {_client(peer): item.last_call for peer, item in self._connections.items()}
        connections_of_host = Counter(host for host, _ in clients)
        clients.sort(
            key=lambda client: (last_calls.get(client, 0), -connections_of_host[client[0]])
        )
        least_used = set(clients[: max(1, len(clients) // 10)])
        log.warning("nearly too many gRPC connections", closed=len(least_used))
        for client, connection in _connections_to(self.port):
            if client in least_used:
                _shut_down(connection)

    def _disconnect(self, peer: str) -> None:
        for client, connection in _connections_to(self.port):
            if client == _client(peer):
                _shut_down(connection)

    def _connection(self, peer: str) -> _Connection:
        connection = self._connections.get(peer)
        if connection is None:
            connection = self._connections[peer] = _Connection(_client(peer)[0])
        return connection

    def _schedule_check(self) -> float:
        """Have the messages on their way checked soon, and return the present time."""
        loop = asyncio.get_running_loop()
        if self._next_check is None:
            self._next_check = loop.call_later(CHECK_S, self._check)
        return loop.time()

    def _check(self) -> None:
        """Give up what takes too long, and incomplete messages that hold too many bytes."""
        self._receiving = {connection for connection in self._receiving if connection.uploads}
        self._next_check = None
        if self._receiving or self._answers:
            now = self._schedule_check()
        else:
            now = asyncio.get_running_loop().time()
            self._memory.incomplete = 0
        self._end_slow_transfers(now)
        is_slow = any(now - connection.started() >= CHECK_S for connection in self._receiving)
        if is_slow or now - self._last_measurement >= MEASUREMENT_S:
            self._last_measurement = now
            self._memory.incomplete = self._bound(self._measure(), now)

    def _end_slow_transfers(self, now: float) -> None:
        limit_s = self._receive_s
        for connection in self._receiving:
            for upload in connection.uploads:
                if now - upload.started < limit_s:
                    break
                upload.give_up(RequestTimeout(f"message: not received within {limit_s:g} s"))
        for call, started in list(self._answers.items()):
            if now - started < limit_s:
                break
            del self._answers[call]
            self._disconnect(call.peer())

    def _measure(self) -> dict[_Connection, int]:
        """The bytes that the incomplete messages of each connection hold."""
        received = _received_bytes(self.port)
        held = {}
        for peer, connection in list(self._connections.items()):
            size = received.get(_client(peer))
            if connection.uploads:
                incomplete = 0 if size is None else max(0, size - connection.known_bytes)
                held[connection] = incomplete + CALL_BYTES * len(connection.uploads)
            elif size is None:
                del self._connections[peer]
            else:
                connection.known_bytes = size
        return held

    def _bound(self, held: dict[_Connection, int], now: float) -> int:
        """Give up incomplete messages until the others hold few enough bytes, and return these."""
        # Who holds much for long counts more than who is sending a large message just now.
        cost = {
            connection: size * (now - connection.started()) for connection, size in held.items()
        }
        cost_of_host: dict[str, float] = defaultdict(float)
        for connection in held:
            cost_of_host[connection.host] += cost[connection]
        total = sum(held.values())
        error = Overloaded(CUT_RETRY_AFTER_S, "incomplete messages hold too many bytes; try again")
        by_cost = sorted(held, key=lambda item: (cost_of_host[item.host], cost[item]))
        while total > self._limit:
            worst = by_cost.pop()
            for upload in worst.uploads:
                upload.give_up(error)
            worst.known_bytes += held[worst] - CALL_BYTES * len(worst.uploads)
            total -= held[worst]
        return total


def _received_bytes(port: int) -> dict[tuple[str, str], int]:
    """How many bytes each connection to a port has received, by the client's host and port."""
    received = {}
    for client, connection in _connections_to(port):
        with contextlib.suppress(OSError, struct.error):
            size = BYTES_RECEIVED.size
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
            (received[client],) = BYTES_RECEIVED.unpack(info)
    return received


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


def _connections_to(port: int) -> Iterator[tuple[tuple[str, str], socket.socket]]:
    """The process's connections to a port, each with the client's host and port.

    The sockets are the library's. It may close them at any time, from its own threads.
    """
    for file in OPEN_FILES.iterdir() if HAS_OPEN_FILES else ():
        # Files, listening sockets and sockets of other families raise one of these errors.
        with contextlib.suppress(OSError, IndexError):
            connection = _Borrowed(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=int(file.name))
            with connection:
                if connection.getsockname()[1] == port:
                    host, client_port, *_ = connection.getpeername()
                    yield (_plain_address(host), str(client_port)), connection


class _Borrowed(socket.socket):
    """A socket that somebody else closes."""

    def close(self) -> None:
        """Leave it open."""
        self.detach()


@lru_cache(maxsize=4096)
def _client(peer: str) -> tuple[str, str]:
    """The host and port of a peer, which gRPC writes like ``ipv4:127.0.0.1:50000`` or
    ``ipv6:%5B::1%5D:50000``. The peer of a call that has ended may be ``unknown``."""
    _, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    return _plain_address(host.strip("[]")), port


def _plain_address(host: str) -> str:
    return host.removeprefix("::ffff:")
