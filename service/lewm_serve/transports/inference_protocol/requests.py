"""From an inference request to encode, predict and plan requests: one for each item of its batch.

All tensors have the batch as their first axis. Parameters apply to all items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
from pydantic_core import from_json

from lewm_serve.api.fields import RequestModel, parse
from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest, SolverSettings
from lewm_serve.constants import InferenceEndpoint
from lewm_serve.errors import InvalidRequest, Unquoted
from lewm_serve.transports.inference_protocol.tensors import BYTES, Tensor

Document = dict[str, Any]

OPERATION = "operation"
OPERATIONS = get_args(InferenceEndpoint)
TIMEOUT = "timeout"
"""Triton's own parameter for deadlines, in microseconds."""

MAX_BATCH = 64

REQUEST_TYPES: dict[InferenceEndpoint, type[RequestModel]] = {
    "encode": EncodeRequest,
    "predict": PredictRequest,
    "plan": PlanRequest,
}


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor beforehand: the first type is the usual one, −1 is any size.

    Attributes:
        datatypes: the types that it may have.
        shape: its axes, the batch first.
        operations: the operations that have it.
        is_required: whether a plan needs it.
    """

    datatypes: tuple[str, ...]
    shape: tuple[int, ...]
    operations: tuple[InferenceEndpoint, ...]
    is_required: bool = False


NUMBER_TYPES = ("FP32", "FP64")
FRAME_TYPES = ("UINT8", BYTES, "FP32")
"""Pixels, PNG or JPEG files, latents."""

INPUTS: dict[str, TensorSpec] = {
    "frames": TensorSpec(FRAME_TYPES, (-1, -1, -1, -1, 3), OPERATIONS, is_required=True),
    "goal": TensorSpec(FRAME_TYPES, (-1, -1, -1, 3), ("plan",), is_required=True),
    "goal_state": TensorSpec((BYTES,), (-1,), ("plan",)),
    "avoid": TensorSpec((BYTES,), (-1,), ("plan",)),
    "vectors": TensorSpec(NUMBER_TYPES, (-1, -1, -1), OPERATIONS),
    "goal_vector": TensorSpec(NUMBER_TYPES, (-1, -1), ("plan",)),
    "frame_ids": TensorSpec((BYTES,), (-1, -1), OPERATIONS),
    "goal_id": TensorSpec((BYTES,), (-1,), ("plan",)),
    "past_actions": TensorSpec(NUMBER_TYPES, (-1, -1, -1), ("predict", "plan")),
    "committed_actions": TensorSpec(NUMBER_TYPES, (-1, -1, -1), ("plan",)),
    "warm_start": TensorSpec(NUMBER_TYPES, (-1, -1, -1), ("plan",)),
    "seed": TensorSpec(("INT64",), (-1,), ("plan",)),
    "fallback_state": TensorSpec(NUMBER_TYPES, (-1, -1), ("plan",)),
    "actions": TensorSpec(NUMBER_TYPES, (-1, -1, -1), ("predict",)),
    "candidates": TensorSpec(NUMBER_TYPES, (-1, -1, -1, -1), ("predict",)),
}
"""The inputs, in the order of the metadata."""

PARAMETERS: dict[InferenceEndpoint, tuple[str, ...]] = {
    "encode": (),
    "predict": (),
    "plan": (
        "seed",
        "deadline_ms",
        "min_iterations",
        "priority",
        "fallback.controller",
        *(f"solver.{name}" for name in SolverSettings.model_fields),
    ),
}
"""The parameters of each operation beside `operation` and `timeout`."""


@dataclass(frozen=True)
class InferRequest:
    """An inference request, whichever transport brought it.

    Attributes:
        model: the model's name, with its version if the client names one.
        parameters: of the whole request, by name.
        inputs: the tensors, by name.
        outputs: the names of the tensors that the client wants; empty: the usual ones.
    """

    model: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()

    @property
    def operation(self) -> InferenceEndpoint:
        """What the request asks for.

        Raises:
            InvalidRequest: there is no such operation.
        """
        operation = self.parameters.get(OPERATION, "plan")
        if operation not in OPERATIONS:
            expected = f"one of {', '.join(OPERATIONS)}"
            raise InvalidRequest("invalid_choice", OPERATION, received=operation, expected=expected)
        return cast(InferenceEndpoint, operation)

    @property
    def timeout_s(self) -> float | None:
        """The time in which the client expects its answer.

        Raises:
            InvalidRequest: it is not a positive number.
        """
        timeout = self.parameters.get(TIMEOUT)
        if timeout is None:
            return None
        if type(timeout) is not int or timeout < 1:
            expected = "a positive number of microseconds"
            raise InvalidRequest("out_of_range", TIMEOUT, received=timeout, expected=expected)
        return timeout / 1e6


def to_requests(request: InferRequest) -> list[RequestModel]:
    """The requests of a batch.

    Raises:
        InvalidRequest: a tensor or parameter is unknown, missing or wrong. In a batch of several
            items, the message begins with the item's number.
    """
    operation = request.operation
    common = _common_fields(request, operation)
    size = _batch_size(request.inputs, operation)
    requests = []
    for index in range(size):
        items = {name: tensor.values[index] for name, tensor in request.inputs.items()}
        try:
            document = common | _item_fields(items, request.inputs)
            if "fallback_state" in items:
                controller = common.get("fallback", {})
                document["fallback"] = controller | {"state": items["fallback_state"]}
            requests.append(parse(REQUEST_TYPES[operation], document))
        except InvalidRequest as error:
            raise of_item(error, index, size) from None
    return requests


def of_item(error: Any, index: int, size: int) -> Any:
    """The error of one item of a batch, whose number is in the message."""
    if size > 1:
        error.detail = f"item {index} of {size}: {error.detail}"
    return error


def _common_fields(request: InferRequest, operation: InferenceEndpoint) -> Document:
    """The fields that all items share, from the model's name and the parameters."""
    document: Document = {"model": request.model}
    known = PARAMETERS[operation]
    for name, value in request.parameters.items():
        if name in (OPERATION, TIMEOUT):
            continue
        if name not in known:
            expected = f"for {operation} one of {', '.join([OPERATION, TIMEOUT, *known])}"
            raise InvalidRequest("unknown_field", "parameters", received=name, expected=expected)
        group, _, setting = name.partition(".")
        if setting:
            document.setdefault(group, {})[setting] = value
        else:
            document[group] = value
    return document


def _batch_size(inputs: Mapping[str, Tensor], operation: InferenceEndpoint) -> int:
    """The number of items, the same for all tensors."""
    sizes: dict[int, str] = {}
    for name, tensor in inputs.items():
        spec = INPUTS.get(name)
        if spec is None or operation not in spec.operations:
            known = [key for key, item in INPUTS.items() if operation in item.operations]
            expected = f"for {operation} one of {', '.join(known)}"
            raise InvalidRequest("unknown_field", "inputs", received=name, expected=expected)
        _check_spec(tensor, spec)
        sizes.setdefault(tensor.shape[0], name)
    for alternatives in (("frames", "frame_ids"), ("goal", "goal_id", "goal_state")):
        given = [name for name in alternatives if name in inputs]
        if len(given) > 1:
            received = Unquoted("both")
            expected = f"either {' or '.join(given)}"
            raise InvalidRequest(
                "conflicting_fields", given[-1], received=received, expected=expected
            )
    if not sizes:
        raise InvalidRequest.missing("frames", "at least one frame for each item of the batch")
    if len(sizes) > 1:
        received = Unquoted(", ".join(f"{size} ({name})" for size, name in sizes.items()))
        expected = "the same size of all first axes"
        raise InvalidRequest("shape_mismatch", "inputs", received=received, expected=expected)
    (size,) = sizes
    if not 1 <= size <= MAX_BATCH:
        expected = f"a batch of 1 to {MAX_BATCH}"
        raise InvalidRequest("out_of_range", "inputs", received=size, expected=expected)
    return size


def _check_spec(tensor: Tensor, spec: TensorSpec) -> None:
    if tensor.datatype not in spec.datatypes:
        raise InvalidRequest(
            "invalid_choice",
            f"{tensor.name}.datatype",
            received=tensor.datatype,
            expected=f"one of {', '.join(spec.datatypes)}",
        )
    rank = len(spec.shape)
    if spec.datatypes is FRAME_TYPES:  # a file has no axes, and a latent has one
        rank -= {BYTES: 3, "FP32": 2}.get(tensor.datatype, 0)
    if len(tensor.shape) != rank:
        expected = f"{rank} axes for {tensor.datatype}, the batch first"
        raise InvalidRequest(
            "shape_mismatch", f"{tensor.name}.shape", received=tensor.shape, expected=expected
        )


def _item_fields(items: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Document:
    """The fields of one item, from its part of each tensor."""
    document: Document = {}
    for name, value in items.items():
        if name == "frames":
            document["frames"] = [_frame(item, tensors[name].datatype) for item in value]
        elif name == "goal":
            document["goal"] = _frame(value, tensors[name].datatype)
        elif name == "frame_ids":
            document["frames"] = [_latent_id(item) for item in value]
        elif name == "goal_id":
            document["goal"] = _latent_id(value)
        elif name == "goal_state":
            document["goal"] = {"state": _from_json(name, value)}
        elif name == "avoid":
            document["avoid"] = _from_json(name, value)
        elif name == "seed":
            document["seed"] = int(value)
        elif name not in ("vectors", "goal_vector", "fallback_state"):
            document[name] = value
    if "goal_vector" in items and "goal" in document:
        document["goal"]["vector"] = items["goal_vector"]
    if "vectors" in items:
        _add_vectors(document.get("frames", []), items["vectors"])
    return document


def _add_vectors(frames: Sequence[Document], vectors: Sequence[Any]) -> None:
    """Give each frame its vector.

    Raises:
        InvalidRequest: there are more or fewer frames.
    """
    if len(frames) != len(vectors):
        received = Unquoted(f"{len(vectors)} vectors")
        expected = f"{len(frames)}, one for each frame"
        raise InvalidRequest("shape_mismatch", "vectors", received=received, expected=expected)
    for frame, vector in zip(frames, vectors, strict=True):
        frame["vector"] = vector


def _frame(value: Any, datatype: str) -> Document:
    """One frame as `lewm_serve.api.requests.Frame` takes it."""
    if datatype == BYTES:
        return {"image": value}
    if datatype == "FP32":
        return {"latent": value}
    return {"pixels": {"data": np.ascontiguousarray(value).tobytes(), "shape": list(value.shape)}}


def _from_json(name: str, value: bytes) -> Any:
    """What an item holds whose names depend on the model.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        return from_json(value)
    except ValueError as error:
        received = Unquoted(f"{len(value)} bytes ({error})")
        raise InvalidRequest("wrong_type", name, received=received, expected="JSON") from None


def _latent_id(value: bytes) -> Document:
    return {"latent_id": value.decode(errors="replace")}
