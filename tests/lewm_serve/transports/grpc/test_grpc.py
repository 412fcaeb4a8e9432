"""What only gRPC can get wrong: methods, messages, metadata, deadlines, the connection."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_client import PlannerClient, PlannerError, frame
from lewm_serve.settings import Settings
from tests.lewm_serve.support.requests import SOLVER
from tests.lewm_serve.support.drivers import UNKNOWN_FIELD, raw_call
from tests.lewm_serve.support.endless_plan import endless_plan
from tests.lewm_serve.support.frames import encoded, picture
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S, wait_until

LIMIT = Settings.model_fields["max_body_bytes"].default
PLAN = "/lewm.v1.PlannerService/Plan"
UNENDING = {"samples": 256, "iterations": 200, "horizon": 10}


def refusal(
    client: PlannerClient, data: bytes, method: str = PLAN, **options: Any
) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """The status and the trailing metadata of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(client, method)(data, timeout=PATIENCE_S, **options)
    error: grpc.Call = caught.value  # type: ignore[assignment]
    return error.code(), dict(error.trailing_metadata() or ())


def request(**changes: Any) -> pb.PlanRequest:
    """A small plan."""
    fields: dict[str, Any] = {
        "frames": [frame(picture(0))],
        "goal": frame(picture(1)),
        "solver": pb.SolverSettings(**SOLVER),
    }
    return pb.PlanRequest(**(fields | changes))


@pytest.mark.parametrize("method", ["/lewm.v1.PlannerService/Dream", "/nobody.Service/Plan", "/x"])
def test_unknown_methods(rpc: PlannerClient, method: str) -> None:
    status, trailing = refusal(rpc, b"", method)
    assert (status, trailing["code"]) == (grpc.StatusCode.UNIMPLEMENTED, "unknown_route")
    assert trailing["request_id"]


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xff\x01", b"\x00", b"GET / HTTP/1.1"])
def test_malformed_messages(rpc: PlannerClient, data: bytes) -> None:
    status, trailing = refusal(rpc, data)
    assert (status, trailing["code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed_message")


def test_unknown_field_in_a_part(rpc: PlannerClient) -> None:
    inner = frame(picture(0)).SerializeToString() + UNKNOWN_FIELD
    data = pb.PlanRequest(frames=[pb.Frame.FromString(inner)], goal=frame(picture(1)))
    status, trailing = refusal(rpc, data.SerializeToString())
    assert (status, trailing["code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "unknown_field")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ([], 0),
        ([], 4),
        ([2], 4),
        ([-1, 2], 8),
        ([-1, -2], 8),
        ([5, 0], 0),
        ([1 << 40, 1 << 40], 8),
        ([(1 << 63) - 1], 8),
        ([1] * 40, 4),
        ([2, 2], 15),
        ([2, 2], 17),
    ],
)
def test_tensors_that_do_not_fit(rpc: PlannerClient, shape: list[int], size: int) -> None:
    tensor = pb.Tensor(shape=shape, data=bytes(size))
    status, trailing = refusal(rpc, request(warm_start=tensor).SerializeToString())
    assert (status, trailing["code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "shape_mismatch")


@pytest.mark.parametrize("excess", [1, LIMIT + 1], ids=["a-little", "far"])
def test_oversized_message(rpc: PlannerClient, excess: int) -> None:
    status, trailing = refusal(rpc, bytes(LIMIT + excess))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    if excess == 1:
        assert trailing["code"] == "body_too_large"
    assert rpc.encode([picture(0)]).latents


def test_compressed_messages_are_refused(rpc: PlannerClient) -> None:
    bomb = bytes(1 << 20)
    status, _ = refusal(rpc, bomb, compression=grpc.Compression.Gzip)
    assert status is grpc.StatusCode.UNIMPLEMENTED


def test_request_id_and_trace(server: ServerProcess, rpc: PlannerClient) -> None:
    metadata = (("x-request-id", "arm-3"), ("traceparent", "00-aa-bb-01"))
    answer, call = rpc.stub.Plan.with_call(request(), metadata=metadata, timeout=PATIENCE_S)
    assert answer.request_id == "arm-3"
    assert ("request_id", "arm-3") in [(item.key, item.value) for item in call.trailing_metadata()]
    _, trailing = refusal(rpc, b"", metadata=metadata)
    assert trailing["request_id"] == "arm-3"
    lines = server.wait_logged("arm-3", count=2)
    assert [line["protocol"] for line in lines] == ["grpc", "grpc"]
    assert {line["traceparent"] for line in lines} == {"00-aa-bb-01"}


def test_deadline_of_the_call_is_the_plans(server: ServerProcess, rpc: PlannerClient) -> None:
    """And the answer arrives before it: on a busy machine, where more time is left for the way."""
    for timeout_s in (1, 2, 4, 8, 16, 32, 64):
        wait_until(lambda: server.metric("lewm_active_plans") == 0)
        try:
            plan = rpc.plan([picture(0)], picture(1), solver=UNENDING, timeout_s=timeout_s)
        except PlannerError as late:
            if late.code != "deadline_exceeded":
                raise
        else:
            assert plan.status == "deadline"
            assert plan.iterations >= 1
            return
    pytest.fail("no answer arrived in time")


def test_cancelled_plan_is_dropped(server: ServerProcess) -> None:
    wait_until(lambda: server.metric("lewm_active_plans") == 0)
    with endless_plan(server, request_id="dropped") as call:
        call.cancel()
        assert [line["code"] for line in server.wait_logged("dropped")] == ["cancelled"]
        wait_until(lambda: server.metric("lewm_active_plans") == 0)


def test_health_and_reflection(rpc: PlannerClient) -> None:
    stub = health_pb2_grpc.HealthStub(rpc.channel)
    for service in ("", "lewm.v1.PlannerService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    services = ProtoReflectionDescriptorDatabase(rpc.channel).get_services()
    assert {"lewm.v1.PlannerService", "grpc.health.v1.Health"} <= set(services)


def test_models(server: ServerProcess, rest: httpx.Client, rpc: PlannerClient) -> None:
    (model,) = rpc.models()
    described = rest.get(f"/models/{model.name}").json()
    assert (model.version, model.default) == (described["version"], True)
    assert model.card["action_dim"] == described["card"]["action_dim"]
    answer = rpc.stub.GetModel(pb.GetModelRequest(name=model.name), timeout=PATIENCE_S)
    assert answer.model == model
    data = pb.GetModelRequest(name="nobody").SerializeToString()
    status, trailing = refusal(rpc, data, "/lewm.v1.PlannerService/GetModel")
    assert (status, trailing["code"]) == (grpc.StatusCode.NOT_FOUND, "unknown_model")


def test_client(rpc: PlannerClient) -> None:
    start, goal = rpc.encode([picture(0), encoded("PNG", 1)]).latents
    assert start.latent.shape == goal.latent.shape
    steps = rpc.predict([start.latent], candidates=np.zeros((3, 10, 2))).latents
    assert steps.shape == (3, 2, *start.latent.shape)
    plan = rpc.plan(
        [start.latent_id], goal.latent_id, solver=SOLVER, seed=1, include=["trajectory"]
    )
    assert plan.actions.dtype == np.float32
    assert plan.trajectory is not None
    assert plan.solver["samples"] == SOLVER["samples"]
    with pytest.raises(PlannerError, match="unknown_model") as caught:
        rpc.encode([picture(0)], model="nobody")
    assert caught.value.request_id


def test_client_needs_little() -> None:
    """Robots with the client alone need neither torch nor a web stack."""
    program = "import sys, lewm_client; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT, text=True, check=True
    )
    assert not {"torch", "PIL", "pydantic", "fastapi", "orjson"} & set(result.stdout.split())


def test_client_does_not_hang_on_a_dead_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        with PlannerClient(target) as client, pytest.raises(PlannerError) as caught:
            client.encode([picture(0)], timeout_s=0.5)
    assert caught.value.code in ("deadline_exceeded", "unavailable")


def test_frequent_pings_are_not_punished(server: ServerProcess) -> None:
    """Beside a server of gRPC's own settings, which sends the same client away."""
    ready, idle = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE
    options = (
        ("grpc.keepalive_time_ms", 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    strict = grpc.server(ThreadPoolExecutor(1))
    target = f"127.0.0.1:{strict.add_insecure_port('127.0.0.1:0')}"
    strict.start()
    ours: list[grpc.ChannelConnectivity] = []
    others: list[grpc.ChannelConnectivity] = []
    with (
        grpc.insecure_channel(server.target, options=options) as channel,
        grpc.insecure_channel(target, options=options) as other,
    ):
        channel.subscribe(ours.append, try_to_connect=True)
        wait_until(lambda: ready in ours)
        other.subscribe(others.append, try_to_connect=True)
        wait_until(lambda: ready in others and others[-1] is idle)
        assert ours.count(ready) == 1
        assert ours[-1] is ready
        stub = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]
        assert stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
    strict.stop(None).wait()


@pytest.mark.parametrize("data", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)])
def test_garbage_on_the_port(server: ServerProcess, rpc: PlannerClient, data: bytes) -> None:
    with socket.create_connection(
        ("127.0.0.1", server.grpc_port), timeout=PATIENCE_S
    ) as bare:
        bare.sendall(data)
    assert rpc.encode([picture(0)]).latents


def test_the_client_sends_a_fallback(rpc: PlannerClient) -> None:
    frames = [picture(0)]
    unused = {"controller": "none", "state": [0.5, 0.25]}
    assert rpc.plan(frames, picture(1), solver=SOLVER, fallback=unused).fallback is None
    with pytest.raises(PlannerError, match=r"invalid_choice: fallback\.controller"):
        rpc.plan(frames, picture(1), solver=SOLVER, fallback={"controller": "who"})
