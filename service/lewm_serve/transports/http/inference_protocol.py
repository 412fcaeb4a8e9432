"""The Open Inference Protocol over HTTP, with Triton's extension for binary tensors.

With the extension, the body is a JSON document of `Inference-Header-Content-Length` bytes, and
after it the data of each tensor that has a ``binary_data_size``, in their order.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from lewm_serve.constants import JSON_MEDIA_TYPE
from lewm_serve.errors import Failed, InvalidRequest, MalformedJson, shorten
from lewm_serve.observability.metrics import Metrics
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import (
    LARGE_DOCUMENT_BYTES,
    RequestMemory,
    cancel_when_gone,
    check_accepts,
    check_ready,
    exchange_of,
    in_thread_if_large,
)
from lewm_serve.transports.http.access import KEY_OF_REQUEST
from lewm_serve.transports.http.admin import check_origin
from lewm_serve.transports.http.bodies import (
    BINARY_MEDIA_TYPE,
    JSON_BYTES_PER_VALUE,
    LargeResponse,
    disconnected,
    parse_json,
    read_body,
)
from lewm_serve.transports.inference_protocol.requests import InferRequest
from lewm_serve.transports.inference_protocol.service import (
    InferAnswer,
    InferenceService,
    versioned,
)
from lewm_serve.transports.inference_protocol.tensors import Tensor

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_SIZE = "binary_data_size"
BINARY = "binary_data"
ALL_BINARY = "binary_data_output"
"""The names of the binary extension."""

MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{model_version}")


@dataclass(frozen=True)
class _HttpInferRequest:
    """An inference request, its id, and the outputs that are wanted in binary form."""

    request: InferRequest
    id: str | None
    binary_outputs: frozenset[str]
    others_are_binary: bool


class InferenceProtocolRoutes:
    """The routes below `/v2`."""

    def __init__(
        self,
        service: InferenceService,
        settings: Settings,
        *,
        metrics: Metrics,
        memory: RequestMemory,
    ) -> None:
        self._service = service
        self._settings = settings
        self._metrics = metrics
        self._memory = memory

    def router(self) -> APIRouter:
        """The routes. They are described by the protocol, not by our OpenAPI document."""
        router, service = APIRouter(include_in_schema=False), self._service

        @router.get("/v2/health/live")
        async def live() -> dict[str, bool]:
            if not service.is_live:
                raise Failed
            return {"live": True}

        @router.get("/v2/health/ready")
        async def ready() -> dict[str, bool]:
            check_ready(service.planner)
            return {"ready": True}

        @router.get("/v2")
        async def server_metadata() -> dict[str, Any]:
            return service.server_metadata()

        async def model_metadata(http_request: Request) -> JSONResponse:
            return JSONResponse(service.model_metadata(_model_of(http_request)))

        async def model_ready(http_request: Request) -> dict[str, Any]:
            name = _model_of(http_request)
            service.check_model_ready(name)
            return {"name": name, "ready": True}

        for path in MODEL_PATHS:
            router.get(path)(model_metadata)
            router.get(f"{path}/ready")(model_ready)
            router.post(f"{path}/infer")(self._infer)
        return router

    async def _infer(self, http_request: Request) -> Response:
        exchange = exchange_of(http_request.scope)
        exchange.awaits_body = True
        model = _model_of(http_request)
        exchange.model = self._service.planner.log_label(model)
        check_origin(http_request.headers, self._settings.cors_origins)
        check_accepts(self._service.planner)
        with self._memory.reserve() as reservation:
            body = await read_body(
                http_request,
                limit=self._settings.max_body_bytes,
                timeout_s=self._settings.receive_s,
                memory=reservation,
                media_types=(JSON_MEDIA_TYPE, BINARY_MEDIA_TYPE, ""),
            )
            exchange.mark_received()
            header = http_request.headers.get(HEADER_LENGTH)
            received = await in_thread_if_large(
                len(body), partial(_read_request, body, model, header)
            )
            key = http_request.scope.get(KEY_OF_REQUEST)
            answer = await cancel_when_gone(
                partial(disconnected, http_request),
                self._service.infer(received.request, exchange, key),
            )
        return await self._write_response(answer, received, exchange.context.request_id)

    async def _write_response(
        self, answer: InferAnswer, received: _HttpInferRequest, request_id: str
    ) -> Response:
        started = time.monotonic()
        head, tails = await in_thread_if_large(
            JSON_BYTES_PER_VALUE * sum(tensor.values.size for tensor in answer.outputs),
            partial(_write_document, answer, received, request_id),
        )
        content = b"".join([head, *tails])
        self._metrics.stage_duration.labels("serialize").observe(time.monotonic() - started)
        headers = {HEADER_LENGTH: str(len(head))} if tails else {}
        media_type = BINARY_MEDIA_TYPE if tails else JSON_MEDIA_TYPE
        if len(content) > LARGE_DOCUMENT_BYTES:
            return LargeResponse(content, self._memory, media_type=media_type, headers=headers)
        return Response(content, media_type=media_type, headers=headers)


def _model_of(http_request: Request) -> str:
    """The model that a path names."""
    parameters = http_request.path_params
    return versioned(parameters["name"], parameters.get("model_version", ""))


def _write_document(
    answer: InferAnswer, received: _HttpInferRequest, request_id: str
) -> tuple[bytes, list[bytes]]:
    """The JSON document of an answer, and the binary data that follow it."""
    outputs, tails = [], []
    for tensor in answer.outputs:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if tensor.name in received.binary_outputs or received.others_are_binary:
            tails.append(tensor.to_raw())
            output["parameters"] = {BINARY_SIZE: len(tails[-1])}
        else:
            output["data"] = tensor.to_values()
        outputs.append(output)
    document = {
        "model_name": answer.model,
        "model_version": answer.model_version,
        **({} if received.id is None else {"id": received.id}),
        "parameters": {"request_id": request_id},
        "outputs": outputs,
    }
    return orjson.dumps(document), tails


def _read_request(body: bytearray, model: str, header_length: str | None) -> _HttpInferRequest:
    """The request in a body.

    Raises:
        MalformedJson: the document is not JSON, or not as long as the header says.
        InvalidRequest: it is not an inference request.
    """
    head, tail = body, b""
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            received, expected = shorten(header_length), f"at most the body's {len(body)} bytes"
            raise MalformedJson(f"{HEADER_LENGTH}: received {received}, expected {expected}")
        head, tail = body[: int(header_length)], bytes(memoryview(body)[int(header_length) :])
    document = _expect(parse_json(head), dict, "body", "an object")
    parameters = dict(_field(document, "parameters", dict))
    others_are_binary = parameters.pop(ALL_BINARY, False) is True
    inputs: dict[str, Tensor] = {}
    start = 0
    for index, item in enumerate(_field(document, "inputs", list)):
        tensor, start = _read_input(item, f"inputs[{index}]", tail, start)
        inputs[tensor.name] = tensor
    if start != len(tail):
        expected = f"{start} bytes, as the tensors' {BINARY_SIZE} say"
        raise InvalidRequest("shape_mismatch", "body", received=tail, expected=expected)
    names, binary = [], set()
    for index, item in enumerate(_field(document, "outputs", list)):
        output = _expect(item, dict, f"outputs[{index}]", "an object")
        name = _expect(output.get("name"), str, f"outputs[{index}].name", "a string")
        names.append(name)
        if _field(output, "parameters", dict).get(BINARY, others_are_binary) is True:
            binary.add(name)
    request = InferRequest(model, parameters, inputs, tuple(names))
    request_id = document.get("id")
    return _HttpInferRequest(
        request,
        request_id if isinstance(request_id, str) else None,
        frozenset(binary),
        others_are_binary=others_are_binary and not names,
    )


def _read_input(item: Any, path: str, tail: bytes, start: int) -> tuple[Tensor, int]:
    """A tensor, and where the next one's binary data starts."""
    tensor = _expect(item, dict, path, "an object")
    name = _expect(tensor.get("name"), str, f"{path}.name", "a string")
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    parameters = _field(tensor, "parameters", dict)
    for parameter in parameters:
        if parameter != BINARY_SIZE:
            raise InvalidRequest(
                "unknown_field", f"{path}.parameters", received=parameter, expected=BINARY_SIZE
            )
    size = parameters.get(BINARY_SIZE)
    if size is None:
        return Tensor.from_values(name, datatype, shape, tensor.get("data")), start
    if type(size) is not int or not 0 <= size <= len(tail) - start:
        expected = f"at most the {len(tail) - start} bytes that are left of the body"
        raise InvalidRequest(
            "out_of_range", f"{path}.{BINARY_SIZE}", received=size, expected=expected
        )
    end = start + size
    return Tensor.from_raw(name, datatype, shape, tail[start:end]), end


def _field(document: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """A field that may be left out: then it is empty."""
    value = document.get(name)
    return kind() if value is None else _expect(value, kind, name, f"a {kind.__name__}")


def _expect(value: Any, kind: type[Any], path: str, expected: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidRequest("wrong_type", path, received=value, expected=expected)
    return value
