"""What the Open Inference Protocol asks of the server: health, metadata and inference."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from lewm_serve.access.keys import Key
from lewm_serve.api.requests import PlanRequest
from lewm_serve.api.responses import ModelDescription
from lewm_serve.constants import InferenceEndpoint
from lewm_serve.errors import ServiceError
from lewm_serve.planner.planner import Planner
from lewm_serve.transports.exchange import Exchange, Response, check_ready
from lewm_serve.transports.inference_protocol.answers import (
    OUTPUTS,
    TRAJECTORY,
    check_outputs,
    to_tensors,
)
from lewm_serve.transports.inference_protocol.requests import (
    INPUTS,
    InferRequest,
    TensorSpec,
    of_item,
    to_requests,
)
from lewm_serve.transports.inference_protocol.tensors import Tensor

SERVER_NAME = "lewm-serve"
PLATFORM = "lewm"

EXTENSIONS = ("binary_tensor_data",)
"""The extensions of Triton that the server has."""

MAX_ANSWER_VALUES = 1_000_000
"""The most values in the answer to a predict request, for all items of the batch together."""

Document = dict[str, Any]


@dataclass(frozen=True)
class InferAnswer:
    """The model that answered, its version, and the outputs."""

    model: str
    model_version: str
    outputs: list[Tensor]


class InferenceService:
    """The service, which both transports share."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self._work: dict[InferenceEndpoint, Callable[..., Awaitable[Response]]] = {
            "encode": planner.encode,
            "predict": planner.predict,
            "plan": planner.plan,
        }

    @property
    def is_live(self) -> bool:
        """Whether the process can serve, now or later."""
        return self.planner.state != "failed"

    @property
    def is_ready(self) -> bool:
        """Whether the server takes requests."""
        return self.planner.state == "ready"

    def server_metadata(self) -> Document:
        """Name, version and extensions."""
        return {
            "name": SERVER_NAME,
            "version": version("lewm-serve"),
            "extensions": list(EXTENSIONS),
        }

    def model_metadata(self, name: str) -> Document:
        """A model's versions, inputs and outputs. ``name`` may be ``name@version``.

        Raises:
            UnknownModel: there is none of this name and version.
            Loading, Failed: the planner cannot answer.
        """
        model = self.planner.describe_model(name)
        return {
            "name": model.name,
            "versions": _versions(model),
            "platform": PLATFORM,
            "inputs": [_describe(*item) for item in INPUTS.items()],
            "outputs": [_describe(*item) for item in OUTPUTS.items()],
        }

    def check_model_ready(self, name: str) -> None:
        """Refuse unless a model answers requests and goes on to do so.

        Raises:
            UnknownModel: there is none of this name and version.
            Loading, Restarting, Draining, Failed: the server does not.
        """
        self.planner.describe_model(name)
        check_ready(self.planner)

    async def infer(
        self, request: InferRequest, exchange: Exchange, key: Key | None
    ) -> InferAnswer:
        """The answer to an inference request. The items of a batch are in work at the same time.

        Args:
            request: the request.
            exchange: learns operation and response.
            key: the key of the client, under which one request has been started.

        Raises:
            ServiceError: an item cannot be answered. Then none is.
        """
        operation = request.operation
        context = exchange.context = replace(exchange.context, endpoint=operation)
        check_outputs(request.outputs, operation)
        requests = to_requests(request)
        size = len(requests)
        timeout_s = request.timeout_s
        if timeout_s is not None:
            deadline = context.earliest_deadline(1000 * timeout_s)
            context = replace(context, deadline=deadline)
        context = replace(context, max_answer_values=MAX_ANSWER_VALUES // size)
        if TRAJECTORY in request.outputs:
            requests = [_with_trajectory(item) for item in requests]
        with _further_requests(key, size - 1):
            work = [self._work[operation](item, context) for item in requests]
            responses = [await work[0]] if size == 1 else await _all(work)
        if size == 1:
            exchange.response = responses[0]
        first = responses[0]
        return InferAnswer(first.model, first.model_version, to_tensors(responses, request.outputs))


def versioned(name: str, model_version: str) -> str:
    """The name of a model, or of one version of it."""
    return f"{name}@{model_version}" if model_version else name


def _versions(model: ModelDescription) -> list[str]:
    return [model.version, *(old.version for old in model.old_versions)]


def _describe(name: str, spec: TensorSpec) -> Document:
    return {"name": name, "datatype": spec.datatypes[0], "shape": list(spec.shape)}


def _with_trajectory(request: Any) -> Any:
    assert isinstance(request, PlanRequest)
    return request.model_copy(update={"include": (TRAJECTORY,)})


@contextmanager
def _further_requests(key: Key | None, count: int) -> Iterator[None]:
    """Count the other items of a batch as requests of the key.

    Raises:
        RateLimited: they are too many.
    """
    started = 0
    try:
        if key is not None:
            for _ in range(count):
                key.start()
                started += 1
        yield
    finally:
        for _ in range(started):
            assert key is not None
            key.finish()


async def _all(work: Sequence[Awaitable[Response]]) -> list[Response]:
    """All results. If one fails, the others are cancelled.

    Raises:
        ServiceError: the error of the item that failed, with its number.
    """
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for index, task in enumerate(tasks):
            error = task.exception() if task.done() else None
            if isinstance(error, ServiceError):
                raise of_item(error, index, len(tasks))
            if error is not None:
                raise error
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
