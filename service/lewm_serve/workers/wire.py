"""Messages between the process with the event loop and that of an engine, over a socket.

A message is a pickled object after its length in bytes and the number of its call. Only these two
processes hold the socket. What both of them have is sent by reference: rows of numbers, latency
models, and, towards the engine, a model's backend, learned distance and probe.
"""

from __future__ import annotations

import copyreg
import io
import math
import pickle
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.engine.scheduler import Batch
from lewm_serve.engine.shared_numbers import Row
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.states import StateReader
from lewm_serve.workers.launcher import SOCKET_BUFFER_BYTES

HEADER = struct.Struct("<QQ")
"""The length of the pickled object, and the number of the call."""
PICKLE_PROTOCOL = 5

Reference = tuple[Any, ...]


class Call(NamedTuple):
    """What an engine is to do. It answers each call with one `Result` of the same number."""

    name: str
    arguments: tuple[Any, ...]


class Cancel(NamedTuple):
    """Nobody waits any more for the call of the same number."""


class Result(NamedTuple):
    """The result of a call, or its error, and the batches that ran since the last message."""

    value: Any = None
    error: BaseException | None = None
    batches: tuple[Batch, ...] = ()


class RemoteBackend(NamedTuple):
    """The backend of a model in an engine's process; see `Backend` for the attributes.

    ``pin`` is the model's name and version.
    """

    pin: str
    name: str
    device: str
    precision: str
    encode_precision: str
    rows_are_independent: bool
    threads: int


class RemoteDistance(DistanceObjective):
    """The learned distance of a model in an engine's process."""

    def __init__(self, pin: str) -> None:
        self.pin = pin


class RemoteProbe(StateReader):
    """The probe of a model in an engine's process."""

    def __init__(self, pin: str) -> None:
        self.pin = pin


def _row(row: Row) -> Reference:
    if row.index is None:
        raise ValueError("the row is not shared")
    return "row", row.index


def _latency(latency: LatencyModel) -> Reference:
    return "latency", latency.rows[0].index


REFERENCES_OF_ROWS: dict[type, Callable[[Any], Reference]] = {Row: _row}
REFERENCES: dict[type, Callable[[Any], Reference]] = {
    **REFERENCES_OF_ROWS,
    LatencyModel: _latency,
    RemoteBackend: lambda backend: ("backend", backend.pin),
    RemoteDistance: lambda distance: ("distance", distance.pin),
    RemoteProbe: lambda probe: ("probe", probe.pin),
}


class _Pickler(pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, references: dict[type, Callable[[Any], Reference]]
    ) -> None:
        super().__init__(file, PICKLE_PROTOCOL)
        self.dispatch_table = {**copyreg.dispatch_table, Tensor: _reduce_tensor}
        self._references = references

    def persistent_id(self, obj: Any) -> Reference | None:
        refer = self._references.get(type(obj))
        return None if refer is None else refer(obj)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, resolve: Callable[[Reference], Any]) -> None:
        super().__init__(file)
        self._resolve = resolve

    def persistent_load(self, pid: Reference) -> Any:
        return self._resolve(pid)


def encode(number: int, message: object, *, models_by_reference: bool = True) -> bytes:
    """A message as it is sent.

    Raises:
        ValueError: it holds a row that is not shared.
    """
    file = io.BytesIO(bytes(HEADER.size))
    file.seek(HEADER.size)
    references = REFERENCES if models_by_reference else REFERENCES_OF_ROWS
    _Pickler(file, references).dump(message)
    file.seek(0)
    file.write(HEADER.pack(len(file.getbuffer()) - HEADER.size, number))
    return file.getvalue()


def decode(data: bytes, resolve: Callable[[Reference], Any]) -> Any:
    """The object of a message. ``resolve`` gives what a reference means."""
    return _Unpickler(io.BytesIO(data), resolve).load()


def _reduce_tensor(tensor: Tensor) -> tuple[Any, ...]:
    array = tensor.detach().contiguous().numpy()
    return _make_tensor, (array.tobytes(), tensor.dtype, tuple(tensor.shape))


def _make_tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


class MessageReader:
    """Divides received bytes into messages."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The messages that are complete with these bytes: number and pickled object."""
        self._received += data
        while len(self._received) >= HEADER.size:
            length, number = HEADER.unpack_from(self._received)
            end = HEADER.size + length
            if len(self._received) < end:
                return
            message = bytes(memoryview(self._received)[HEADER.size : end])
            del self._received[:end]
            yield number, message


class BlockingChannel:
    """The engine's end of the socket. Any thread may send, and one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._reader = MessageReader()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, number: int, message: object) -> None:
        """Send a message, whole. If the other end is closed, `receive` will say so."""
        data = encode(number, message, models_by_reference=False)
        with self._sending, suppress(OSError):
            self._connection.sendall(data)

    def receive(self, timeout_s: float | None) -> Iterator[tuple[int, bytes]]:
        """The messages that have come, or that come first within a time; None: any time.

        Raises:
            EOFError: the other end is closed.
        """
        wait_ms = None if timeout_s is None else math.ceil(1000 * timeout_s)
        while self._poll.poll(wait_ms):
            data = self._connection.recv(SOCKET_BUFFER_BYTES)
            if not data:
                raise EOFError
            yield from self._reader.feed(data)
            wait_ms = 0  # what has come is not left for later
