"""Calls of Ray's proxy get the answers and the errors of the server's gRPC port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from lewm.v1 import planner_pb2 as pb
from lewm_serve.ray_serve.grpc_calls import GrpcCalls
from lewm_serve.service import Service
from lewm_serve.settings import Settings
from lewm_serve.transports.grpc.access import METHODS, OPEN_METHODS
from lewm_serve.transports.grpc.inference import open_inference_pb2 as oip
from tests.lewm_serve.support.frames import encoded
from tests.lewm_serve.support.keys import add_key

FRAME = pb.Frame(image=encoded("PNG"))
ENCODE = pb.EncodeRequest(frames=[FRAME])


class Context:
    """The context of a call, as Ray's proxy passes it on."""

    def __init__(self, **metadata: str) -> None:
        self.metadata = list(metadata.items())
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, str] = {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        self.trailing = dict(metadata)


async def service_and_calls(settings: Settings) -> tuple[Service, GrpcCalls]:
    """A service that has loaded no models, and its calls."""
    service = Service(settings)
    calls = GrpcCalls(service, settings)
    await calls.start()
    return service, calls


@pytest.fixture
async def service(model_folder: Path) -> AsyncIterator[tuple[Service, GrpcCalls]]:
    """A service of the random model, without keys."""
    settings = Settings(models=(model_folder,), threads=1, backend="torch", precision="float32")
    service, calls = await service_and_calls(settings)
    await service.planner.start()
    yield service, calls
    await service.planner.stop(0)


async def test_an_answer(service: tuple[Service, GrpcCalls]) -> None:
    planner, calls = service
    context = Context(**{"x-request-id": "request-7", "lewm-robot": "arm-1"})
    answer = await calls.answer("Encode", ENCODE.SerializeToString(), context)
    response = pb.EncodeResponse.FromString(answer.SerializeToString())
    assert len(response.latents) == 1
    assert context.code is None
    assert context.trailing == {"request_id": "request-7"}
    assert planner.memory.total == 0  # the answer is counted no more

    ready = await calls.answer("ServerReady", b"", Context())
    assert oip.ServerReadyResponse.FromString(ready.data).ready


async def test_errors_keep_their_metadata(service: tuple[Service, GrpcCalls]) -> None:
    _, calls = service
    context = Context(**{"x-request-id": "request-8"})
    assert (await calls.answer("Encode", b"\xff", context)).data == b""
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert context.details == "message: received 1 bytes, expected a lewm.v1.EncodeRequest"
    assert context.trailing == {"code": "malformed_message", "request_id": "request-8"}


async def test_a_message_is_as_large_as_the_settings_allow(model_folder: Path) -> None:
    _, calls = await service_and_calls(Settings(models=(model_folder,), max_body_bytes=1024))
    context = Context()
    await calls.answer("Encode", bytes(1025), context)
    assert context.trailing["code"] == "body_too_large"


async def test_while_the_models_are_loaded(model_folder: Path) -> None:
    _, calls = await service_and_calls(Settings(models=(model_folder,)))
    context = Context()
    await calls.answer("ListModels", b"", context)
    assert context.trailing["code"] == "loading"


async def test_keys(model_folder: Path, tmp_path: Path) -> None:
    reader = add_key(tmp_path / "keys", "grafana", "read")
    settings = Settings(models=(model_folder,), keys_file=tmp_path / "keys")
    _, calls = await service_and_calls(settings)

    async def code(method: str, **metadata: str) -> str:
        context = Context(**metadata)
        await calls.answer(method, b"", context)
        return context.trailing.get("code", "ok")

    for path in METHODS:
        if "reflection" not in path:
            assert await code(path.rpartition("/")[2]) == "unauthenticated"
    for path in OPEN_METHODS:
        assert await code(path.rpartition("/")[2]) == "ok"
    bearer = {"authorization": f"Bearer {reader}"}
    assert await code("Plan", **bearer) == "forbidden"
    assert await code("ListModels", **bearer) == "loading"


async def test_a_cancelled_call_is_dropped(service: tuple[Service, GrpcCalls]) -> None:
    planner, calls = service
    call: Any = asyncio.create_task(calls.answer("Encode", ENCODE.SerializeToString(), Context()))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert planner.memory.total == 0
    counted = planner.metrics.registry.get_sample_value(
        "lewm_requests_total", {"endpoint": "encode", "protocol": "grpc", "code": "cancelled"}
    )
    assert counted == 1
