"""Sends the same JSON documents over both protocols, so that one table of cases tests them."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc
import httpx
import numpy as np
from google.protobuf.message import Message

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, PlannerError

UNKNOWN_FIELD = b"\x92\x3f\x01a"
"""The bytes of field 1010, which no message has."""

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
"""The gRPC status that the contract gives for each HTTP status."""


@dataclass(frozen=True)
class Answer:
    """An answer of either protocol.

    Attributes:
        status: the protocol's own status.
        code: ``ok``, or the code of the error.
        request_id: the request id.
        detail: the error's sentence for people.
        document: the response as REST renders it; for errors over REST, the problem document.
    """

    status: object
    code: str
    request_id: str
    detail: str
    document: dict[str, Any]


DRIVERS = ("rest", "grpc")
"""The names of the drivers that can say everything."""


class Driver(Protocol):
    """Sends requests over one protocol."""

    name: str

    def status(self, http_status: int) -> object:
        """The protocol's own status for an HTTP status."""

    def send(self, method: str, document: dict[str, Any]) -> Answer:
        """Send a JSON document to a method ("encode", "predict" or "plan")."""


def raw_call(client: PlannerClient, method: str) -> Callable[..., bytes]:
    """A gRPC method that takes and returns bytes."""
    call: Callable[..., bytes] = client.channel.unary_unary(method)  # type: ignore[call-arg]
    return call


class RestDriver:
    """Sends the document as it is."""

    name = "rest"

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def status(self, http_status: int) -> object:
        """See `Driver.status`."""
        return http_status

    def send(self, method: str, document: dict[str, Any]) -> Answer:
        """See `Driver.send`. NaN and infinities are the literals that many clients write."""
        headers = {"content-type": "application/json"}
        response = self.client.post(f"/{method}", content=json.dumps(document), headers=headers)
        body = response.json()
        assert response.headers["x-request-id"] == body["request_id"]
        if response.status_code == 200:
            return Answer(200, "ok", body["request_id"], "", body)
        assert response.headers["content-type"] == "application/problem+json"
        assert body["status"] == response.status_code
        return Answer(response.status_code, body["code"], body["request_id"], body["detail"], body)


class GrpcDriver:
    """Turns the document into a message, and the answer into a document."""

    name = "grpc"

    def __init__(self, client: PlannerClient) -> None:
        self.client = client

    def status(self, http_status: int) -> object:
        """See `Driver.status`."""
        return GRPC_STATUS[http_status]

    def send(self, method: str, document: dict[str, Any]) -> Answer:
        """See `Driver.send`."""
        name = method.capitalize()
        data = _to_message_bytes(getattr(pb, f"{name}Request"), document)
        response_message = getattr(pb, f"{name}Response")
        call = raw_call(self.client, f"/lewm.v1.PlannerService/{name}")
        try:
            # Without a timeout, because that would be the plan's deadline.
            body = to_document(response_message.FromString(call(data)))
        except grpc.RpcError as error:
            refusal = PlannerError(error)  # type: ignore[arg-type]
            return Answer(refusal.status, refusal.code, refusal.request_id, refusal.detail, {})
        return Answer(grpc.StatusCode.OK, "ok", body["request_id"], "", body)


def _to_message_bytes(kind: type[Message], document: dict[str, Any]) -> bytes:
    """The bytes of the document's message. Unknown fields become an unknown field number."""
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
            part_kind = getattr(pb, field.message_type.name)
            for item in value if field.is_repeated else [value]:
                part = getattr(message, name)
                part = part.add() if field.is_repeated else part
                to_bytes = TO_BYTES.get(part_kind, partial(_to_message_bytes, part_kind))
                part.MergeFromString(to_bytes(item))
                part.SetInParent()
    return message.SerializeToString() + unknown


def _to_tensor_bytes(rows: Any) -> bytes:
    array = np.asarray(rows, "<f4")
    return pb.Tensor(shape=array.shape, data=array.tobytes()).SerializeToString()


def _to_states_bytes(states: dict[str, float]) -> bytes:
    return pb.States(values=states).SerializeToString()


def _to_box_bytes(ranges: dict[str, list[float]]) -> bytes:
    box = pb.StateBox()
    for name, (low, high) in ranges.items():
        box.ranges[name].CopyFrom(pb.StateRange(low=low, high=high))
    return box.SerializeToString()


TO_BYTES: dict[type[Message], Callable[[Any], bytes]] = {
    pb.Tensor: _to_tensor_bytes,
    pb.States: _to_states_bytes,
    pb.StateBox: _to_box_bytes,
}
"""How messages are made whose documents have no fields of their names."""


def to_document(message: Message) -> dict[str, Any]:
    """A message as the document that REST would send. Fields that are left out are None."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            document[field.name] = dict(value)
        elif field.is_repeated:
            document[field.name] = [_to_plain(item) for item in value]
        else:
            is_present = not field.has_presence or message.HasField(field.name)
            document[field.name] = _to_plain(value) if is_present else None
    return document


def _to_plain(value: Any) -> Any:
    if isinstance(value, pb.Tensor):
        return np.frombuffer(value.data, "<f4").reshape(tuple(value.shape)).tolist()
    return to_document(value) if isinstance(value, Message) else value
