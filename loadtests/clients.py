"""Connections to the server under load, one for each protocol. They return the codes of answers.

All connections of a load are opened here, by `Target`.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict

from benchmarks.clients import Document, image_document
from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, PlannerError
from lewm_serve.cli.options import read_api_key
from loadtests.spec import Address, LoadSpec, parse_address

OK = "ok"
NO_ANSWER = "no_answer"
"""The client waited `CALL_TIMEOUT_S` in vain."""
CONNECTION_LOST = "connection_lost"
"""The connection was refused, reset or closed without an answer."""

CALL_TIMEOUT_S = 60.0
"""No call waits longer for its answer. A server answers far earlier, even when it is overloaded."""

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""The channels of one process share a connection otherwise, and the robots would be one client."""

JSON_HEADERS = {"content-type": "application/json"}

SLOW_BUFFER_BYTES, SLOW_READ_BYTES = 16 * 1024, 16 * 1024
SLOW_PAUSE_S = 0.02
"""A slow reader takes at most 800 kilobytes a second."""


@dataclass(frozen=True)
class Access:
    """How the clients of a load come in.

    Attributes:
        api_key: the key of all clients; None: no key.
        tls_ca: a PEM file with the authorities that sign the server's certificate; None: no TLS.
        tls_cert, tls_key: PEM files with a certificate of the clients and its private key.
    """

    api_key: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @classmethod
    def of(cls, spec: LoadSpec) -> Access:
        """What a load says.

        Raises:
            ValueError: the key's file holds something else.
            OSError: the key's file cannot be read.
        """
        key = None if spec.api_key_file is None else read_api_key(Path(spec.api_key_file))
        return cls(key, spec.tls_ca, spec.tls_cert, spec.tls_key)

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """TLS for HTTP; None without TLS.

        Raises:
            OSError: a PEM file cannot be read.
        """
        if self.tls_ca is None:
            return None
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_cert is not None:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        return context

    @property
    def headers(self) -> dict[str, str]:
        """What every HTTP request has."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    def http_connection(self, address: Address) -> http.client.HTTPConnection:
        """A new connection."""
        if self.tls is None:
            return http.client.HTTPConnection(*address, timeout=CALL_TIMEOUT_S)
        return http.client.HTTPSConnection(*address, timeout=CALL_TIMEOUT_S, context=self.tls)

    def planner_client(self, address: Address) -> PlannerClient:
        """A new client for robots, without retries."""
        name = f"[{address.host}]" if ":" in address.host else address.host
        return PlannerClient(
            f"{name}:{address.port}",
            retries=0,
            tls=self.tls_ca or False,
            certificate=self.tls_cert,
            key=self.tls_key,
            api_key=self.api_key,
            channel_options=OWN_CONNECTION,
        )


OPEN_TO_ALL = Access()


class ModelShape(NamedTuple):
    """What requests have to know of the server's default model."""

    latent_dim: int
    action_block: int
    action_mean: list[float]

    @classmethod
    def from_card(cls, card: Document) -> ModelShape:
        """The values of a model's card."""
        return cls(int(card["latent_dim"]), int(card["action_block"]), list(card["action_mean"]))

    @property
    def mean_actions(self) -> list[list[float]]:
        """One action block of mean actions."""
        return [self.action_mean] * self.action_block


class PlanningClient(Protocol):
    """One robot's connection. All methods return the code of the answer."""

    def encode(self, image: bytes) -> str:
        """Encode a frame."""

    def predict(self, image: bytes, actions: list[list[float]]) -> str:
        """Predict what follows these actions."""

    def plan(self, image: bytes, goal: bytes, deadline_ms: float) -> str:
        """Plan from a frame to a goal."""

    def close(self) -> None:
        """Close the connection."""


class RestClient:
    """A connection to the REST port. It is opened again after it has been lost."""

    def __init__(self, address: Address, access: Access = OPEN_TO_ALL) -> None:
        self.connection = access.http_connection(address)
        self._headers = access.headers
        self._json_headers = JSON_HEADERS | access.headers

    def encode(self, image: bytes) -> str:
        """See `PlanningClient`."""
        return self.post("/encode", {"frames": [image_document(image)]})

    def predict(self, image: bytes, actions: list[list[float]]) -> str:
        """See `PlanningClient`."""
        return self.post("/predict", {"frames": [image_document(image)], "actions": actions})

    def plan(self, image: bytes, goal: bytes, deadline_ms: float) -> str:
        """See `PlanningClient`."""
        return self.post("/plan", plan_document(image, goal, deadline_ms=deadline_ms))

    def post(self, path: str, document: Document) -> str:
        """The code of the answer to a JSON document."""
        return self.send("POST", path, json.dumps(document).encode(), JSON_HEADERS)

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> str:
        """The code of the answer to any request."""
        try:
            self.connection.request(method, path, body, headers | self._headers)
            response = self.connection.getresponse()
            text = response.read()
        except TimeoutError:
            self.close()
            return NO_ANSWER
        except (OSError, http.client.HTTPException):
            self.close()
            return CONNECTION_LOST
        return code_of(response.status, text)

    def ask_and_leave(self, path: str, document: Document, stay_s: float) -> None:
        """Send a JSON document, and close the connection after a while without reading."""
        try:
            self.connection.request("POST", path, json.dumps(document), self._json_headers)
            time.sleep(stay_s)
        finally:
            self.close()

    def read_slowly(self, path: str, document: Document) -> str:
        """The code of the answer to a JSON document, of which small pieces are read with pauses."""
        try:
            self.connection.connect()
            self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
            self.connection.request("POST", path, json.dumps(document), self._json_headers)
            response = self.connection.getresponse()
            text = bytearray()
            while piece := response.read(SLOW_READ_BYTES):
                text += piece
                time.sleep(SLOW_PAUSE_S)
        except TimeoutError:
            return NO_ANSWER
        except (OSError, http.client.HTTPException):
            return CONNECTION_LOST
        finally:
            self.close()
        return code_of(response.status, text)

    def get(self, path: str) -> str:
        """The text of an answer that must be good.

        Raises:
            OSError: there is no answer.
            RuntimeError: it is an error.
        """
        self.connection.request("GET", path, headers=self._headers)
        response = self.connection.getresponse()
        text = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}: {text[:200]}")
        return text

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def code_of(status: int, body: bytes | bytearray) -> str:
    """The code of an HTTP answer; its status if it has none."""
    if status == 200:
        return OK
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return f"http_{status}"


def plan_document(image: bytes, goal: bytes, **fields: Any) -> Document:
    """A plan request of REST."""
    return {"frames": [image_document(image)], "goal": image_document(goal), **fields}


class GrpcClient:
    """A connection to the gRPC port by the client for robots, without retries."""

    def __init__(self, address: Address, access: Access) -> None:
        self.planner = access.planner_client(address)

    def ask_and_leave(self, request: pb.PlanRequest, stay_s: float) -> None:
        """Ask for a plan, and close the connection after a while."""
        try:
            self.planner.stub.Plan.future(
                request, timeout=CALL_TIMEOUT_S, metadata=self.planner.metadata
            )
            time.sleep(stay_s)
        finally:
            self.close()

    def encode(self, image: bytes) -> str:
        """See `PlanningClient`."""
        return grpc_code(lambda: self.planner.encode([image], timeout_s=CALL_TIMEOUT_S))

    def predict(self, image: bytes, actions: list[list[float]]) -> str:
        """See `PlanningClient`."""
        rows = np.asarray(actions, np.float32)
        return grpc_code(
            lambda: self.planner.predict([image], actions=rows, timeout_s=CALL_TIMEOUT_S)
        )

    def plan(self, image: bytes, goal: bytes, deadline_ms: float) -> str:
        """See `PlanningClient`."""
        return grpc_code(
            lambda: self.planner.plan(
                [image], goal, deadline_ms=deadline_ms, timeout_s=CALL_TIMEOUT_S
            )
        )

    def close(self) -> None:
        """Close the connection."""
        self.planner.close()


def grpc_code(call: Callable[[], object]) -> str:
    """The code of a call over gRPC."""
    try:
        call()
    except PlannerError as error:
        return error.code
    except grpc.RpcError as error:
        return PlannerError(error).code  # type: ignore[arg-type]
    return OK


class Target:
    """The server of a load. It opens all connections.

    Raises:
        OSError, ValueError: the file of the API key cannot be read, or holds something else.
    """

    def __init__(self, spec: LoadSpec) -> None:
        self._access = Access.of(spec)
        self._http = None if spec.http is None else parse_address("--http", spec.http)
        self._grpc = None if spec.grpc is None else parse_address("--grpc", spec.grpc)

    def connect(self, protocol: str) -> PlanningClient:
        """A new connection."""
        return self.connect_rest() if protocol == "rest" else self.connect_grpc()

    def connect_rest(self) -> RestClient:
        """A new connection to REST."""
        assert self._http is not None
        return RestClient(self._http, self._access)

    def connect_grpc(self) -> GrpcClient:
        """A new connection to gRPC."""
        assert self._grpc is not None
        return GrpcClient(self._grpc, self._access)

    def default_model(self) -> ModelShape:
        """The model of requests that name none.

        Raises:
            OSError, RuntimeError, PlannerError: the server does not answer.
            ValueError: it has no default model.
        """
        if self._http is not None:
            models = json.loads(self.connect_rest().get("/models"))["models"]
            cards = [model["card"] for model in models if model["default"]]
        else:
            client = self.connect_grpc()
            models = client.planner.models()
            cards = [MessageToDict(model.card) for model in models if model.default]
            client.close()
        if not cards:
            raise ValueError("the server has no default model")
        return ModelShape.from_card(cards[0])
