"""The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`."""

from __future__ import annotations  # gRPC's handler types are generic for the type checker only

from collections.abc import Mapping
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from lewm_serve.errors import BodyTooLarge, InvalidRequest, ServiceError, Unquoted
from lewm_serve.transports.exchange import Exchange, check_accepts, in_thread_if_large
from lewm_serve.transports.grpc.calls import INFERENCE_SERVICE, KEY_OF_CALL
from lewm_serve.transports.grpc.inference import open_inference_pb2 as pb
from lewm_serve.transports.grpc.methods import Methods, of_bytes, parse_message
from lewm_serve.transports.inference_protocol.requests import InferRequest
from lewm_serve.transports.inference_protocol.service import (
    InferAnswer,
    InferenceService,
    versioned,
)
from lewm_serve.transports.inference_protocol.tensors import BYTES, Tensor

CONTENTS = {
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Where a tensor that is not raw has its values, by its type."""

MAX_VALUES = 300_000
"""The most values of a tensor that is not raw. Each becomes an object."""

MAX_TENSORS = 64
"""The most inputs and outputs of a request. There are fewer names."""


class InferenceProtocolMethods(Methods):
    """The handlers of `GRPCInferenceService`."""

    service = INFERENCE_SERVICE
    protocol = "oip"

    def __init__(self, *arguments: Any, **shared: Any) -> None:
        super().__init__(*arguments, **shared)
        self._inference = InferenceService(self.planner)

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        """gRPC's handler of each method, by the method's name."""
        handlers = {
            "ServerLive": self.handler("ServerLive", "other", self._server_live),
            "ServerReady": self.handler("ServerReady", "other", self._server_ready),
            "ModelReady": self.handler("ModelReady", "models", self._model_ready),
            "ServerMetadata": self.handler("ServerMetadata", "models", self._server_metadata),
            "ModelMetadata": self.handler("ModelMetadata", "models", self._model_metadata),
            "ModelInfer": self.handler("ModelInfer", "plan", self._infer),
        }
        return of_bytes(handlers)

    async def _server_live(self, data: bytes, exchange: Exchange) -> Message:
        exchange.is_recorded = False
        parse_message(pb.ServerLiveRequest, data)
        return pb.ServerLiveResponse(live=self._inference.is_live)

    async def _server_ready(self, data: bytes, exchange: Exchange) -> Message:
        exchange.is_recorded = False
        parse_message(pb.ServerReadyRequest, data)
        return pb.ServerReadyResponse(ready=self._inference.is_ready)

    async def _model_ready(self, data: bytes, exchange: Exchange) -> Message:
        request = parse_message(pb.ModelReadyRequest, data)
        name = versioned(request.name, request.version)
        exchange.model = self.planner.log_label(name)
        try:
            self._inference.check_model_ready(name)
        except ServiceError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _server_metadata(self, data: bytes, _exchange: Exchange) -> Message:
        parse_message(pb.ServerMetadataRequest, data)
        return pb.ServerMetadataResponse(**self._inference.server_metadata())

    async def _model_metadata(self, data: bytes, exchange: Exchange) -> Message:
        request = parse_message(pb.ModelMetadataRequest, data)
        name = versioned(request.name, request.version)
        exchange.model = self.planner.log_label(name)
        return pb.ModelMetadataResponse(**self._inference.model_metadata(name))

    async def _infer(self, data: bytes, exchange: Exchange) -> Message:
        check_accepts(self.planner)
        message = parse_message(pb.ModelInferRequest, data)
        model = versioned(message.model_name, message.model_version)
        exchange.model = self.planner.log_label(model)
        request = await in_thread_if_large(len(data), partial(_to_request, message, model))
        answer = await self._inference.infer(request, exchange, KEY_OF_CALL.get())
        return _to_message(answer, message.id, exchange.context.request_id)


def _to_request(message: pb.ModelInferRequest, model: str) -> InferRequest:
    """The request in a message.

    Raises:
        InvalidRequest: a tensor is wrong, or its data is elsewhere.
        BodyTooLarge: a tensor that is not raw has too many values.
    """
    count, raw = len(message.inputs), message.raw_input_contents
    if max(count, len(message.outputs)) > MAX_TENSORS:
        expected = f"at most {MAX_TENSORS}"
        raise InvalidRequest("out_of_range", "inputs", received=count, expected=expected)
    if raw and len(raw) != count:
        received = Unquoted(f"{len(raw)} raw_input_contents")
        expected = f"one for each of the {count} inputs, or none"
        raise InvalidRequest("shape_mismatch", "inputs", received=received, expected=expected)
    inputs = {}
    for index, tensor in enumerate(message.inputs):
        for name in tensor.parameters:
            expected = "no parameters: data in shared memory is not read"
            raise InvalidRequest("unknown_field", tensor.name, received=name, expected=expected)
        shape = list(tensor.shape)
        if raw:
            read = Tensor.from_raw(tensor.name, tensor.datatype, shape, raw[index])
        else:
            read = Tensor.from_values(tensor.name, tensor.datatype, shape, _contents(tensor))
        inputs[tensor.name] = read
    return InferRequest(
        model,
        _to_values(message.parameters),
        inputs,
        tuple(output.name for output in message.outputs),
    )


def _contents(tensor: pb.ModelInferRequest.InferInputTensor) -> list[Any]:
    """The values of a tensor that is not raw."""
    field = CONTENTS.get(tensor.datatype)
    values = () if field is None else getattr(tensor.contents, field)
    if len(values) > MAX_VALUES:
        raise BodyTooLarge(
            f"{tensor.name}: received {len(values)} values, expected at most {MAX_VALUES}; "
            "use raw_input_contents for large arrays"
        )
    return list(values)


def _to_values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = None if choice is None else getattr(parameter, choice)
    return values


def _to_message(answer: InferAnswer, client_id: str, request_id: str) -> pb.ModelInferResponse:
    """The answer, with its tensors in raw form."""
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.model_version,
        id=client_id,
        parameters={"request_id": pb.InferParameter(string_param=request_id)},
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
            )
            for tensor in answer.outputs
        ],
        raw_output_contents=[tensor.to_raw() for tensor in answer.outputs],
    )
