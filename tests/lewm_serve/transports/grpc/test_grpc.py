"""What only gRPC has: methods, messages, metadata, the deadlines of calls, connections."""

import socket
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
from tests.lewm_serve.support.drivers import UNKNOWN_FIELD, raw_call
from tests.lewm_serve.support.endless_plan import endless_plan
from tests.lewm_serve.support.frames import encoded, picture
from tests.lewm_serve.support.requests import SMALL_SOLVER
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

MAX_MESSAGE_BYTES = Settings.model_fields["max_body_bytes"].default
PLAN_METHOD = "/lewm.v1.PlannerService/Plan"
LONG_SOLVER = {"samples": 256, "iterations": 200, "horizon": 10}


def refusal(
    client: PlannerClient, data: bytes, method: str = PLAN_METHOD, **options: Any
) -> tuple[grpc.StatusCode, dict[str, Any]]:
    """The status and the trailing metadata of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(client, method)(data, timeout=PATIENCE_S, **options)
    error: grpc.Call = caught.value  # type: ignore[assignment]
    return error.code(), dict(error.trailing_metadata() or ())


def plan_message(**changes: Any) -> pb.PlanRequest:
    """A small plan with changed fields."""
    fields: dict[str, Any] = {
        "frames": [frame(picture(0))],
        "goal": frame(picture(1)),
        "solver": pb.SolverSettings(**SMALL_SOLVER),
    }
    return pb.PlanRequest(**(fields | changes))


@pytest.mark.parametrize("method", ["/lewm.v1.PlannerService/Dream", "/nobody.Service/Plan", "/x"])
def test_unknown_methods_are_refused(rpc: PlannerClient, method: str) -> None:
    status, trailing = refusal(rpc, b"", method)
    assert (status, trailing["code"]) == (grpc.StatusCode.UNIMPLEMENTED, "unknown_route")
    assert trailing["request_id"]


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xff\x01", b"\x00", b"GET / HTTP/1.1"])
def test_malformed_messages_are_refused(rpc: PlannerClient, data: bytes) -> None:
    status, trailing = refusal(rpc, data)
    assert (status, trailing["code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed_message")


def test_an_unknown_field_of_a_part_is_refused(rpc: PlannerClient) -> None:
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
def test_tensors_whose_bytes_do_not_match_their_shape_are_refused(
    rpc: PlannerClient, shape: list[int], size: int
) -> None:
    tensor = pb.Tensor(shape=shape, data=bytes(size))
    status, trailing = refusal(rpc, plan_message(warm_start=tensor).SerializeToString())
    assert (status, trailing["code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "shape_mismatch")


@pytest.mark.parametrize("excess", [1, MAX_MESSAGE_BYTES + 1], ids=["our-limit", "library-limit"])
def test_a_message_that_is_too_large_is_refused(rpc: PlannerClient, excess: int) -> None:
    status, trailing = refusal(rpc, bytes(MAX_MESSAGE_BYTES + excess))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    if excess == 1:
        assert trailing["code"] == "body_too_large"
    assert rpc.encode([picture(0)]).latents


def test_compressed_messages_are_refused(rpc: PlannerClient) -> None:
    bomb = bytes(1 << 20)
    status, _ = refusal(rpc, bomb, compression=grpc.Compression.Gzip)
    assert status is grpc.StatusCode.UNIMPLEMENTED


def test_request_id_and_traceparent(server: ServerProcess, rpc: PlannerClient) -> None:
    metadata = (("x-request-id", "arm-3"), ("traceparent", "00-aa-bb-01"))
    answer, call = rpc.stub.Plan.with_call(plan_message(), metadata=metadata, timeout=PATIENCE_S)
    assert answer.request_id == "arm-3"
    assert ("request_id", "arm-3") in [(item.key, item.value) for item in call.trailing_metadata()]
    _, trailing = refusal(rpc, b"", metadata=metadata)
    assert trailing["request_id"] == "arm-3"
    lines = server.wait_logged("arm-3", count=2)
    assert [line["protocol"] for line in lines] == ["grpc", "grpc"]
    assert {line["traceparent"] for line in lines} == {"00-aa-bb-01"}


def test_the_deadline_of_the_call_is_that_of_the_plan(
    server: ServerProcess, rpc: PlannerClient
) -> None:
    """The answer arrives before it. On a busy machine that takes a longer deadline."""
    for timeout_s in (1, 2, 4, 8, 16, 32, 64):
        wait_until(lambda: server.metric("lewm_active_plans") == 0)
        try:
            plan = rpc.plan([picture(0)], picture(1), solver=LONG_SOLVER, timeout_s=timeout_s)
        except PlannerError as error:
            if error.code != "deadline_exceeded":
                raise
        else:
            assert plan.status == "deadline"
            assert plan.iterations >= 1
            return
    pytest.fail("no answer arrived in time")


def test_a_cancelled_plan_is_dropped(server: ServerProcess) -> None:
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


def test_a_method_that_the_library_only_names(rpc: PlannerClient, server: ServerProcess) -> None:
    status, metadata = refusal(rpc, b"", "/grpc.health.v1.Health/List")
    assert (status, metadata["code"]) == (grpc.StatusCode.UNIMPLEMENTED, "unknown_route")
    assert "NotImplementedError" not in server.errors()


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


def test_all_methods_of_the_client(rpc: PlannerClient) -> None:
    start, goal = rpc.encode([picture(0), encoded("PNG", 1)]).latents
    assert start.latent.shape == goal.latent.shape
    steps = rpc.predict([start.latent], candidates=np.zeros((3, 10, 2))).latents
    assert steps.shape == (3, 2, *start.latent.shape)
    plan = rpc.plan(
        [start.latent_id], goal.latent_id, solver=SMALL_SOLVER, seed=1, include=["trajectory"]
    )
    assert plan.actions.dtype == np.float32
    assert plan.trajectory is not None
    assert plan.solver["samples"] == SMALL_SOLVER["samples"]
    with pytest.raises(PlannerError, match="unknown_model") as caught:
        rpc.encode([picture(0)], model="nobody")
    assert caught.value.request_id


def test_frequent_pings_do_not_end_the_connection(server: ServerProcess) -> None:
    """A server with gRPC's default settings closes the connection of the same client."""
    ready, idle = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE
    options = (
        ("grpc.keepalive_time_ms", 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    default_server = grpc.server(ThreadPoolExecutor(1))
    target = f"127.0.0.1:{default_server.add_insecure_port('127.0.0.1:0')}"
    default_server.start()
    our_states: list[grpc.ChannelConnectivity] = []
    default_states: list[grpc.ChannelConnectivity] = []
    with (
        grpc.insecure_channel(server.target, options=options) as channel,
        grpc.insecure_channel(target, options=options) as default_channel,
    ):
        channel.subscribe(our_states.append, try_to_connect=True)
        wait_until(lambda: ready in our_states)
        default_channel.subscribe(default_states.append, try_to_connect=True)
        wait_until(lambda: ready in default_states and default_states[-1] is idle)
        assert our_states.count(ready) == 1
        assert our_states[-1] is ready
        stub = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]
        assert stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
    default_server.stop(None).wait()


@pytest.mark.parametrize("data", [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)])
def test_other_bytes_on_the_port_do_no_harm(
    server: ServerProcess, rpc: PlannerClient, data: bytes
) -> None:
    with socket.create_connection(
        ("127.0.0.1", server.grpc_port), timeout=PATIENCE_S
    ) as connection:
        connection.sendall(data)
    assert rpc.encode([picture(0)]).latents


def test_the_fallback_of_the_client(rpc: PlannerClient) -> None:
    frames = [picture(0)]
    unused = {"controller": "none", "state": [0.5, 0.25]}
    assert rpc.plan(frames, picture(1), solver=SMALL_SOLVER, fallback=unused).fallback is None
    with pytest.raises(PlannerError, match=r"invalid_choice: fallback\.controller"):
        rpc.plan(frames, picture(1), solver=SMALL_SOLVER, fallback={"controller": "who"})
