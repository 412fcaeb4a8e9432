"""A client of openpi's protocol, and a driver that turns documents into observations.

`tests/clients` uses the real client, which needs an environment of its own. Its messages are made
here anew, with the library that it uses too.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection, connect

from tests.lewm_serve.support.drivers import Answer
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.inexpressible import Inexpressible
from tests.lewm_serve.support.requests import SMALL_SOLVER
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

Document = dict[str, Any]

OBSERVATION: Document = {
    "observation/image": picture(0),
    "goal/image": picture(1),
    "solver": SMALL_SOLVER,
    "seed": 7,
}
"""A small plan."""


def pack(message: Any) -> bytes:
    """A message as the client sends it."""

    def form(value: Any) -> Document | dict[bytes, Any]:
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        assert isinstance(value, np.generic)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}

    packed: bytes = msgpack.packb(message, default=form)
    return packed


def unpack(data: bytes) -> Any:
    """A message as the client reads it."""

    def value_of(fields: dict[Any, Any]) -> Any:
        if b"__ndarray__" not in fields:
            return fields
        array = np.frombuffer(fields[b"data"], fields[b"dtype"])
        return array.reshape(fields[b"shape"])

    return msgpack.unpackb(data, object_hook=value_of)


class OpenpiConnection:
    """A connection whose metadata has been read."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.metadata: Document = unpack(self._receive())

    def infer(self, observation: Any) -> Any:
        """The answer to an observation: a map, or the text of an error."""
        self.websocket.send(pack(observation))
        return self.receive()

    def receive(self) -> Any:
        """The next answer."""
        message = self._receive()
        return message if isinstance(message, str) else unpack(message)

    def _receive(self) -> Any:
        return self.websocket.recv(timeout=PATIENCE_S)


@contextmanager
def openpi(
    server: ServerProcess, key: str | None = None, **options: Any
) -> Iterator[OpenpiConnection]:
    """A connection to a server, with the client's options."""
    headers = {} if key is None else {"Authorization": f"Api-Key {key}"}
    uri = options.pop("uri", f"ws://127.0.0.1:{server.http_port}")
    with connect(
        uri,
        compression=None,
        max_size=None,
        additional_headers=headers,
        proxy=None,
        open_timeout=PATIENCE_S,
        **options,
    ) as websocket:
        yield OpenpiConnection(websocket)


class OpenpiDriver:
    """Sends plan requests as observations."""

    name = "openpi"

    def __init__(self, connection: OpenpiConnection) -> None:
        self.connection = connection

    @staticmethod
    def translate(method: str, document: Document) -> Document:
        """The observation of a request.

        Raises:
            Inexpressible: there is none.
        """
        if method != "plan" or not document.get("frames") or document.get("goal") == {}:
            raise Inexpressible
        observation = {
            name: value if name == "avoid" else _to_arrays(value)
            for name, value in document.items()
            if name not in ("frames", "goal")
        }
        frames = [_to_sources(frame) for frame in document["frames"]]
        vectors = [frame.pop("vector", None) for frame in frames]
        if any(vector is not None for vector in vectors):
            observation["observation/vector"] = vectors if len(frames) > 1 else vectors[0]
        (source,) = {name for frame in frames for name in frame}
        if source == "state":
            raise Inexpressible  # observation/state is the state of the fallback controller
        values = [frame[source] for frame in frames]
        if len(values) == 1:
            (observation[f"observation/{source}"],) = values
        elif source == "image" and isinstance(values[0], np.ndarray):
            observation["observation/image"] = np.stack(values)
        else:
            observation[f"observation/{source}"] = values
        if "goal" not in document:
            raise Inexpressible  # the connection keeps the goal of the last case
        for name, value in _to_sources(document["goal"]).items():
            observation[f"goal/{name}"] = value
        return observation

    def send(self, method: str, document: Document) -> Answer:
        """Send a document. The status is None: the protocol has none."""
        answer = self.connection.infer(self.translate(method, document))
        if isinstance(answer, str):
            code, _, rest = answer.partition(": ")
            detail, _, request = rest.rpartition(" (request ")
            return Answer(None, code, request.removesuffix(")"), detail, {})
        answer["actions"] = answer["actions"].tolist()
        if "trajectory" in answer:
            answer["trajectory"] = answer["trajectory"].tolist()
        assert answer.pop("server_timing")["infer_ms"] == answer["timing_ms"]["total"]
        return Answer(None, "ok", answer["request_id"], "", answer)


def _to_sources(frame: Document) -> Document:
    """A frame by its sources in an observation."""
    if not isinstance(frame, dict):
        raise Inexpressible
    if "vector" in frame:
        rest = {name: value for name, value in frame.items() if name != "vector"}
        return _to_sources(rest) | {"vector": np.asarray(frame["vector"], "f4")}
    if len(frame) != 1:
        raise Inexpressible
    ((source, value),) = frame.items()
    if source == "image":
        return {"image": base64.b64decode(value)}
    if source == "pixels":
        data = base64.b64decode(value["data"])
        return {"image": np.frombuffer(data, np.uint8).reshape(value["shape"])}
    return {source: np.asarray(value, "f4") if source == "latent" else value}


def _to_arrays(value: Any) -> Any:
    """Rows of numbers as arrays."""
    if isinstance(value, list) and value and isinstance(value[0], list | float):
        return np.asarray(value, "f4")
    return value
