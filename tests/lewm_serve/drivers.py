"""The same JSON documents over both protocols, so that one table tests them."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import httpx
import numpy as np
from google.protobuf.message import Message

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, PlannerError

UNKNOWN_FIELD = b"\x92\x3f\x01a"  # field 1010, which no message has

GRPC_STATUS = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True)
class Answer:
    """What came back: the protocol's status, the code (`ok` without error), the document."""

    status: object
    code: str
    request_id: str
    detail: str
    document: dict[str, Any]


class Driver(Protocol):
    """One protocol."""

    name: str

    def status(self, http_status: int) -> object:
        """The protocol's own status for an HTTP status."""

    def ask(self, method: str, document: dict[str, Any]) -> Answer:
        """Send a request as JSON would hold it."""


def raw_call(client: PlannerClient, method: str) -> Callable[..., bytes]:
    """A gRPC method that takes and gives bytes."""
    call: Callable[..., bytes] = client.channel.unary_unary(method)  # type: ignore[call-arg]
    return call


class RestDriver:
    """Sends the document as it is."""

    name = "rest"

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def status(self, http_status: int) -> object:
        """The same."""
        return http_status

    def ask(self, method: str, document: dict[str, Any]) -> Answer:
        """POST, with NaN and infinities as the literals that many clients write."""
        headers = {"content-type": "application/json"}
        response = self.client.post(f"/{method}", content=json.dumps(document), headers=headers)
        body = response.json()
        assert response.headers["x-request-id"] == body["request_id"]
        if response.status_code == 200:
            return Answer(200, "ok", body["request_id"], "", body)
        assert response.headers["content-type"] == "application/problem+json"
        assert body["status"] == response.status_code
        return Answer(response.status_code, body["code"], body["request_id"], body["detail"], body)


class RpcDriver:
    """Writes the document as a message, and the answer as a document."""

    name = "grpc"

    def __init__(self, client: PlannerClient) -> None:
        self.client = client

    def status(self, http_status: int) -> object:
        """As the contract's table has it."""
        return GRPC_STATUS[http_status]

    def ask(self, method: str, document: dict[str, Any]) -> Answer:
        """Call the method of that name."""
        name = method.capitalize()
        data = _write(getattr(pb, f"{name}Request"), document)
        kind = getattr(pb, f"{name}Response")
        call = raw_call(self.client, f"/lewm.v1.PlannerService/{name}")
        try:
            body = read(kind.FromString(call(data)))  # a timeout would be the plan's deadline
        except grpc.RpcError as error:
            refused = PlannerError(error)  # type: ignore[arg-type]
            return Answer(refused.status, refused.code, refused.request_id, refused.detail, {})
        return Answer(grpc.StatusCode.OK, "ok", body["request_id"], "", body)


def _write(kind: type[Message], document: dict[str, Any]) -> bytes:
    """The message that says what the document says; unknown fields become an unknown number."""
    message = kind()
    unknown = b""
    for name, value in document.items():
        field = kind.DESCRIPTOR.fields_by_name.get(name)
        if name == "encoding" or value is None:
            continue
        if field is None:
            unknown = UNKNOWN_FIELD
        elif field.message_type is None:
            content = base64.b64decode(value) if field.type == field.TYPE_BYTES else value
            if field.is_repeated:
                getattr(message, name).extend(content)
            else:
                setattr(message, name, content)
        else:
            inner = getattr(pb, field.message_type.name)
            for item in value if field.is_repeated else [value]:
                place = getattr(message, name)
                place = place.add() if field.is_repeated else place
                place.MergeFromString(_tensor(item) if inner is pb.Tensor else _write(inner, item))
                place.SetInParent()
    return message.SerializeToString() + unknown


def _tensor(rows: Any) -> bytes:
    array = np.asarray(rows, "<f4")
    return pb.Tensor(shape=array.shape, data=array.tobytes()).SerializeToString()


def read(message: Message) -> dict[str, Any]:
    """A message as the document that REST answers; what is left out is None."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            document[field.name] = [_plain(item) for item in value]
        else:
            given = not field.has_presence or message.HasField(field.name)
            document[field.name] = _plain(value) if given else None
    return document


def _plain(value: Any) -> Any:
    if isinstance(value, pb.Tensor):
        return np.frombuffer(value.data, "<f4").reshape(tuple(value.shape)).tolist()
    return read(value) if isinstance(value, Message) else value
