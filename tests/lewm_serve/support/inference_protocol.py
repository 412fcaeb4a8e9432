"""Drivers of the Open Inference Protocol. Each turns documents into tensors and parameters."""

import base64
import json
import struct
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
from numpy.typing import NDArray

from lewm_client import PlannerClient, PlannerError
from lewm_serve.transports.grpc.inference import open_inference_pb2 as pb
from tests.lewm_serve.support.drivers import GRPC_STATUS, Answer, raw_call
from tests.lewm_serve.support.inexpressible import Inexpressible
from tests.lewm_serve.support.random_model import MODEL_NAME

Document = dict[str, Any]

TYPES = {"UINT8": "u1", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
ARRAYS = ("past_actions", "committed_actions", "warm_start", "actions", "candidates")
STATE_OUTPUTS = ("states", "violations")
PLAN_OUTPUTS = ("actions", "cost", "status", "iterations", "seed", "frame_ids", "goal_id")
OUTPUTS = {
    "encode": ("latents", "norms", "frame_ids", "health"),
    "predict": ("latents", "health"),
    "plan": (*PLAN_OUTPUTS, "health"),
}


class RawTensor(NamedTuple):
    """A tensor as it is sent."""

    datatype: str
    shape: list[int]
    data: bytes


class RawRequest(NamedTuple):
    """An inference request as both transports send it."""

    model: str
    parameters: Document
    inputs: dict[str, RawTensor]
    outputs: tuple[str, ...]


def tensor(array: NDArray[Any]) -> RawTensor:
    """An array of numbers in raw form."""
    names = {np.dtype(code): name for name, code in TYPES.items()}
    return RawTensor(names[array.dtype], list(array.shape), array.tobytes())


def bytes_tensor(items: list[bytes], *shape: int) -> RawTensor:
    """Items of type BYTES in raw form."""
    data = b"".join(struct.pack("<I", len(item)) + item for item in items)
    return RawTensor("BYTES", list(shape), data)


def to_array(datatype: str, shape: list[int], data: bytes) -> Any:
    """The values of an output in raw form: numbers, or text."""
    if datatype != "BYTES":
        return np.frombuffer(data, TYPES[datatype]).reshape(shape)
    items, start = [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        items.append(data[start + 4 : start + 4 + length].decode())
        start += 4 + length
    return np.array(items, object).reshape(shape)


def translate(method: str, document: Document) -> RawRequest:
    """The inference request of a document, in a batch of one item.

    Raises:
        Inexpressible: there is none.
    """
    parameters: Document = {"operation": method}
    inputs: dict[str, RawTensor] = {}
    outputs = OUTPUTS[method]
    for name, value in document.items():
        if value is None or name == "model":
            continue
        if name == "frames":
            _add_frames(inputs, value)
        elif name == "goal" and value.keys() == {"state"}:
            inputs["goal_state"] = bytes_tensor([json.dumps(value["state"]).encode()], 1)
            outputs = (*outputs, *STATE_OUTPUTS)
        elif name == "goal":
            _add_goal(inputs, value)
        elif name == "avoid":
            inputs["avoid"] = bytes_tensor([json.dumps(value).encode()], 1)
            outputs = tuple(dict.fromkeys((*outputs, *STATE_OUTPUTS)))
        elif name in ARRAYS:
            array = np.asarray(value, "<f4") if value != [] else np.zeros((0, 2), "<f4")
            inputs[name] = tensor(array[None])
        elif name == "include":
            if value != ["trajectory"]:
                raise Inexpressible
            outputs = (*outputs, "trajectory")
        elif name in ("solver", "fallback"):
            for setting, item in value.items():
                if setting == "state":
                    inputs["fallback_state"] = tensor(np.asarray([item], "<f4"))
                elif item is not None:
                    parameters[f"{name}.{setting}"] = item
        else:
            parameters[name] = value
    return RawRequest(document.get("model") or MODEL_NAME, parameters, inputs, outputs)


def _add_frames(inputs: dict[str, RawTensor], frames: Any) -> None:
    if frames == []:
        inputs["frames"] = tensor(np.zeros((1, 0, 8, 8, 3), "u1"))
        return
    vectors = [frame["vector"] for frame in frames if "vector" in frame]
    if vectors:
        if len(vectors) < len(frames) or len({len(vector) for vector in vectors}) > 1:
            raise Inexpressible
        inputs["vectors"] = tensor(np.asarray([vectors], "<f4"))
        frames = [_without_vector(frame) for frame in frames]
    source, values = _one_source(frames)
    count = len(values)
    if source == "pixels":
        shape = values[0]["shape"]
        data = b"".join(base64.b64decode(value["data"]) for value in values)
        inputs["frames"] = RawTensor("UINT8", [1, count, *shape], data)
    elif source == "image":
        items = [base64.b64decode(value) for value in values]
        inputs["frames"] = bytes_tensor(items, 1, count)
    elif source == "latent":
        inputs["frames"] = tensor(np.asarray([values], "<f4"))
    else:
        inputs["frame_ids"] = bytes_tensor([value.encode() for value in values], 1, count)


def _add_goal(inputs: dict[str, RawTensor], goal: Any) -> None:
    frames: dict[str, RawTensor] = {}
    _add_frames(frames, [goal])
    for name, raw in frames.items():
        goal_name = {"frames": "goal", "frame_ids": "goal_id", "vectors": "goal_vector"}[name]
        inputs[goal_name] = RawTensor(raw.datatype, [1, *raw.shape[2:]], raw.data)


def _without_vector(frame: Document) -> Document:
    return {name: value for name, value in frame.items() if name != "vector"}


def _one_source(frames: Any) -> tuple[str, list[Any]]:
    """The source that all frames have, and its values. Pixels have one shape."""
    if any(len(frame) != 1 for frame in frames):
        raise Inexpressible
    sources = {name for frame in frames for name in frame}
    if len(sources) > 1:
        raise Inexpressible
    (source,) = sources
    if source == "state":
        raise Inexpressible
    values = [frame[source] for frame in frames]
    if source == "pixels" and any(value["shape"] != values[0]["shape"] for value in values):
        raise Inexpressible
    return source, values


def to_document(outputs: Document) -> Document:
    """The fields of REST that the outputs of one item have."""
    document: Document = {}
    for name, value in outputs.items():
        item = value[0]
        if name == "frame_ids":
            document["frame_ids"] = list(item)
        elif name in STATE_OUTPUTS:
            document[name] = json.loads(item) if item else None
        elif isinstance(item, np.ndarray):
            document[name] = item.tolist()
        else:
            document[name] = item.item() if isinstance(item, np.generic) else item
    return document


class OipHttpDriver:
    """Sends inference requests over HTTP, with binary tensors."""

    name = "oip-http"
    translate = staticmethod(translate)

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def status(self, http_status: int) -> object:
        """See `Driver.status`."""
        return http_status

    def infer(self, request: RawRequest) -> httpx.Response:
        """The answer to a request."""
        document = {
            "parameters": request.parameters | {"binary_data_output": True},
            "inputs": [
                {
                    "name": name,
                    "shape": raw.shape,
                    "datatype": raw.datatype,
                    "parameters": {"binary_data_size": len(raw.data)},
                }
                for name, raw in request.inputs.items()
            ],
            "outputs": [{"name": name} for name in request.outputs],
        }
        head = json.dumps(document).encode()
        body = b"".join([head, *(raw.data for raw in request.inputs.values())])
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return self.client.post(f"/v2/models/{request.model}/infer", content=body, headers=headers)

    def send(self, method: str, document: Document) -> Answer:
        """See `Driver.send`."""
        response = self.infer(translate(method, document))
        request_id = response.headers["x-request-id"]
        if response.status_code != 200:
            problem = response.json()
            assert problem["error"] == f"{problem['code']}: {problem['detail']}"
            return Answer(
                response.status_code, problem["code"], request_id, problem["detail"], problem
            )
        outputs = binary_outputs(response)
        return Answer(200, "ok", request_id, "", to_document(outputs))


def binary_outputs(response: httpx.Response) -> Document:
    """The outputs in a body with binary data."""
    size = int(response.headers["inference-header-content-length"])
    outputs, start = {}, size
    for output in json.loads(response.content[:size])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        data = response.content[start:end]
        outputs[output["name"]] = to_array(output["datatype"], output["shape"], data)
        start = end
    assert start == len(response.content)
    return outputs


class OipGrpcDriver:
    """Sends inference requests over gRPC, with raw contents."""

    name = "oip-grpc"
    translate = staticmethod(translate)

    def __init__(self, client: PlannerClient) -> None:
        self.client = client  # whose metadata, such as its key, are sent too

    def status(self, http_status: int) -> object:
        """See `Driver.status`."""
        return GRPC_STATUS[http_status]

    def send(self, method: str, document: Document) -> Answer:
        """See `Driver.send`."""
        call = raw_call(self.client, "/inference.GRPCInferenceService/ModelInfer")
        message = to_message(translate(method, document))
        try:
            answer = pb.ModelInferResponse.FromString(
                call(message.SerializeToString(), metadata=self.client.metadata)
            )
        except grpc.RpcError as error:
            refusal = PlannerError(error)  # type: ignore[arg-type]
            return Answer(refusal.status, refusal.code, refusal.request_id, refusal.detail, {})
        outputs = {
            output.name: to_array(output.datatype, list(output.shape), data)
            for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        request_id = answer.parameters["request_id"].string_param
        return Answer(grpc.StatusCode.OK, "ok", request_id, "", to_document(outputs))


def to_message(request: RawRequest) -> pb.ModelInferRequest:
    """The message of a request."""
    message = pb.ModelInferRequest(model_name=request.model)
    for name, value in request.parameters.items():
        kind = {bool: "bool", int: "int64", float: "double", str: "string"}[type(value)]
        setattr(message.parameters[name], f"{kind}_param", value)
    for name, raw in request.inputs.items():
        message.inputs.add(name=name, datatype=raw.datatype, shape=raw.shape)
        message.raw_input_contents.append(raw.data)
    for name in request.outputs:
        message.outputs.add(name=name)
    return message
