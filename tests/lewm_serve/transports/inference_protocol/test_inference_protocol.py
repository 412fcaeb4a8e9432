"""The Open Inference Protocol beyond the cases of the contract: forms, batches, limits, the end."""

import json
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from lewm_client import PlannerClient
from lewm_serve.transports.grpc.inference import open_inference_pb2 as pb
from tests.lewm_serve.support.drivers import raw_call
from tests.lewm_serve.support.endless_plan import ENDLESS_SOLVER
from tests.lewm_serve.support.frames import LATENT_DIM, latent, picture
from tests.lewm_serve.support.inference_protocol import (
    OipHttpDriver,
    RawRequest,
    RawTensor,
    binary_outputs,
    tensor,
    to_array,
    to_message,
    translate,
)
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.raw_http import RawConnection
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import wait_until

INFER = f"/v2/models/{MODEL_NAME}/infer"
ENCODE = {"operation": "encode"}


def batch(*documents: dict[str, Any], **parameters: Any) -> RawRequest:
    """One request of several plans, of equal parameters."""
    requests = [translate("plan", document) for document in documents]
    inputs = {
        name: RawTensor(
            raw.datatype,
            [len(requests), *raw.shape[1:]],
            b"".join(request.inputs[name].data for request in requests),
        )
        for name, raw in requests[0].inputs.items()
    }
    first = requests[0]
    return first._replace(inputs=inputs, parameters=first.parameters | parameters)


def infer_json(rest: httpx.Client, *inputs: Any, **fields: Any) -> httpx.Response:
    """The answer to a request without binary data."""
    return rest.post(INFER, json={"inputs": list(inputs), **fields})


def assert_refused(answer: httpx.Response, status: int, code: str, text: str) -> None:
    """Check an error, which Triton's clients find under `error`."""
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert text in problem["detail"]
    assert problem["error"] == f"{code}: {problem['detail']}"


def test_json_without_binary_data(rest: httpx.Client) -> None:
    frames = {"name": "frames", "datatype": "UINT8", "shape": [1, 1, 8, 8, 3]}
    pixels = picture(0, 8)
    answers = [
        infer_json(rest, frames | {"data": data}, parameters=ENCODE).json()
        for data in (pixels.ravel().tolist(), [[pixels.tolist()]])
    ]
    assert answers[0]["outputs"][0] == answers[1]["outputs"][0]
    outputs = {output["name"]: output for output in answers[0]["outputs"]}
    assert list(outputs)[:3] == ["latents", "norms", "frame_ids"]
    assert list(outputs)[3:] == ["health", "health_reasons", "total_ms"]
    assert outputs["latents"]["shape"] == [1, 1, LATENT_DIM]
    assert len(outputs["latents"]["data"]) == LATENT_DIM
    assert outputs["health"]["data"] == ["uncalibrated"]
    assert answers[0]["model_name"] == MODEL_NAME
    assert "id" not in answers[0]


def test_outputs_in_different_forms(rest: httpx.Client) -> None:
    frames = {"name": "frames", "datatype": "FP32", "shape": [1, 1, LATENT_DIM]}
    frames["data"] = latent()["latent"]
    outputs = [
        {"name": "norms"},
        {"name": "latents", "parameters": {"binary_data": True}},
        {"name": "health", "parameters": {"binary_data": False}},
    ]
    answer = infer_json(rest, frames, parameters=ENCODE, outputs=outputs, id="a")
    size = int(answer.headers["inference-header-content-length"])
    document = json.loads(answer.content[:size])
    assert document["id"] == "a"
    norms, latents, health = document["outputs"]
    assert norms["data"] == [pytest.approx(0.1 * LATENT_DIM**0.5)]
    assert health["data"] == ["uncalibrated"]
    assert latents["parameters"] == {"binary_data_size": 4 * LATENT_DIM}
    assert to_array("FP32", [LATENT_DIM], answer.content[size:]) == pytest.approx(0.1)


def test_what_a_fallback_has_not_is_null(rest: httpx.Client) -> None:
    request = translate("plan", plan(fallback={"controller": "hold"}, deadline_ms=1e-6))
    outputs = {"cost", "distance", "status", "fallback_reason", "goal_id", "trajectory"}
    values = binary_outputs(OipHttpDriver(rest).infer(request._replace(outputs=tuple(outputs))))
    assert np.isnan(values["cost"]).all()
    assert np.isnan(values["distance"]).all()
    assert np.isnan(values["trajectory"]).all()
    assert values["status"].tolist() == ["fallback"]
    assert values["fallback_reason"].tolist() == ["deadline"]
    assert values["goal_id"].tolist() == [""]


def test_a_batch_gives_the_plans_of_its_items(rest: httpx.Client) -> None:
    items = [plan(frames=[latent(value)], goal=latent(-value)) for value in (0.1, 0.2, 0.3)]
    driver = OipHttpDriver(rest)
    together = binary_outputs(driver.infer(batch(*items)))["actions"]
    alone = [binary_outputs(driver.infer(batch(item)))["actions"][0] for item in items]
    assert np.array_equal(together, np.stack(alone))
    seeds = batch(*items[:1] * 2)
    del seeds.parameters["seed"]
    seeds.inputs["seed"] = tensor(np.array([1, 2]))
    values = binary_outputs(driver.infer(seeds))
    assert values["seed"].tolist() == [1, 2]
    assert not np.array_equal(*values["actions"])


def test_a_refused_item_is_named(rest: httpx.Client) -> None:
    bad = plan(frames=[latent(1e30)], goal=latent())
    answer = OipHttpDriver(rest).infer(batch(plan(frames=[latent()], goal=latent()), bad))
    assert_refused(answer, 422, "out_of_range", "item 1 of 2: frames[0].latent")
    unknown = [plan(frames=[{"latent_id": "x"}], goal={"latent_id": "y"})] * 2
    answer = OipHttpDriver(rest).infer(batch(*unknown))
    assert_refused(answer, 404, "unknown_latent", "item 0 of 2: ")


def plans_in_progress(server: ServerProcess) -> float:
    """The plans that the engine has, started or not."""
    waiting = 'lewm_queued_requests{endpoint="plan"}'
    return server.metric("lewm_active_plans") + server.metric(waiting)


def test_the_items_of_a_batch_are_planned_at_the_same_time(server: ServerProcess) -> None:
    """And all are dropped when their client goes away."""
    endless = plan(solver=ENDLESS_SOLVER)
    request = batch(endless, endless, endless)
    inputs = [
        {
            "name": name,
            "datatype": raw.datatype,
            "shape": raw.shape,
            "parameters": {"binary_data_size": len(raw.data)},
        }
        for name, raw in request.inputs.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": request.parameters}).encode()
    body = b"".join([head, *(raw.data for raw in request.inputs.values())])
    fields = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(body)}"
    with RawConnection(server) as connection:
        connection.send(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n".encode(), body)
        wait_until(lambda: plans_in_progress(server) == 3)
    wait_until(lambda: plans_in_progress(server) == 0)
    cancelled = 'lewm_requests_total{code="cancelled",endpoint="plan",protocol="oip"}'
    assert server.metric(cancelled) >= 1


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"sizes": [65, 65]}, "out_of_range", "expected a batch of 1 to 64"),
        ({"sizes": [0, 0]}, "out_of_range", "expected a batch of 1 to 64"),
        ({"sizes": [1, 2]}, "shape_mismatch", "1 (frames), 2 (goal)"),
        ({"extra": "actions"}, "unknown_field", "inputs: received 'actions', expected for plan"),
        ({"extra": "frame_ids"}, "conflicting_fields", "either frames or frame_ids"),
        ({"parameters": {"operation": "fly"}}, "invalid_choice", "operation: received 'fly'"),
        ({"parameters": {"timeout": 0}}, "out_of_range", "timeout: received 0"),
        ({"parameters": {"timeout": "1"}}, "out_of_range", "timeout: received '1'"),
        ({"parameters": {"sequence_id": 1}}, "unknown_field", "parameters: received 'sequence_id'"),
        ({"parameters": {"frames": 1}}, "unknown_field", "parameters: received 'frames'"),
        ({"parameters": {"solver": 1}}, "unknown_field", "parameters: received 'solver'"),
        ({"outputs": ("norms",)}, "unknown_field", "outputs: received 'norms'"),
    ],
)
def test_requests_that_are_refused(
    rest: httpx.Client, changes: dict[str, Any], code: str, text: str
) -> None:
    request = translate("plan", plan(frames=[latent()], goal=latent()))
    sizes = changes.get("sizes", [1, 1])
    inputs = {
        name: RawTensor(raw.datatype, [size, *raw.shape[1:]], size * raw.data)
        for size, (name, raw) in zip(sizes, request.inputs.items(), strict=True)
    }
    if (name := changes.get("extra")) is not None:
        is_ids = name == "frame_ids"
        inputs[name] = (
            RawTensor("BYTES", [1, 0], b"") if is_ids else tensor(np.zeros((1, 5, 2), "<f4"))
        )
    parameters = request.parameters | changes.get("parameters", {})
    outputs = changes.get("outputs", request.outputs)
    changed = RawRequest(request.model, parameters, inputs, outputs)
    assert_refused(OipHttpDriver(rest).infer(changed), 422, code, text)


@pytest.mark.parametrize(
    ("content", "headers", "status", "code", "text"),
    [
        (b"", {}, 400, "malformed_json", "received nothing"),
        (b"{", {}, 400, "malformed_json", "body: "),
        (b"[]", {}, 422, "wrong_type", "body: received [], expected an object"),
        (b'{"inputs": {}}', {}, 422, "wrong_type", "inputs: "),
        (b'{"inputs": [1]}', {}, 422, "wrong_type", "inputs[0]: received 1"),
        (b'{"inputs": [{}]}', {}, 422, "wrong_type", "inputs[0].name: received null"),
        (b'{"outputs": [{}]}', {}, 422, "wrong_type", "outputs[0].name: received null"),
        (b'{"parameters": []}', {}, 422, "wrong_type", "parameters: "),
        (
            b"{}",
            {"inference-header-content-length": "3"},
            400,
            "malformed_json",
            "at most the body's 2",
        ),
        (b"{}", {"inference-header-content-length": "-1"}, 400, "malformed_json", "received '-1'"),
        (
            b"{}x",
            {"inference-header-content-length": "2"},
            422,
            "shape_mismatch",
            "expected 0 bytes",
        ),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type", "'text/plain'"),
        (
            zlib.compress(b"{}"),
            {"content-encoding": "deflate"},
            *(415, "unsupported_media_type", "content-encoding: received 'deflate'"),
        ),
        (b"{}", {"origin": "http://evil.example"}, 403, "forbidden", "origin: "),
    ],
)
def test_bodies_that_are_refused(
    rest: httpx.Client, content: bytes, headers: dict[str, str], status: int, code: str, text: str
) -> None:
    assert_refused(rest.post(INFER, content=content, headers=headers), status, code, text)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"binary_data_size": 9999}, "inputs[0].binary_data_size: received 9999"),
        ({"binary_data_size": -1}, "inputs[0].binary_data_size: received -1"),
        ({"binary_data_size": True}, "inputs[0].binary_data_size: received true"),
        ({"shared_memory_region": "x"}, "inputs[0].parameters: received 'shared_memory_region'"),
    ],
)
def test_binary_data_that_are_not_there(
    rest: httpx.Client, parameters: dict[str, Any], text: str
) -> None:
    frames = {"name": "frames", "datatype": "UINT8", "shape": [1, 1, 8, 8, 3]}
    answer = infer_json(rest, frames | {"parameters": parameters}, parameters=ENCODE)
    assert answer.status_code == 422
    assert text in answer.json()["detail"]


def test_metadata_of_a_version(rest: httpx.Client) -> None:
    (version,) = rest.get(f"/v2/models/{MODEL_NAME}").json()["versions"]
    path = f"/v2/models/{MODEL_NAME}/versions/{version}"
    described = rest.get(path).json()
    assert described["inputs"][0] == {
        "name": "frames",
        "datatype": "UINT8",
        "shape": [-1, -1, -1, -1, 3],
    }
    assert rest.get(f"{path}/ready").json() == {"name": MODEL_NAME + "@" + version, "ready": True}
    assert_refused(
        rest.get(f"/v2/models/{MODEL_NAME}/versions/7"), 404, "unknown_model", "random@7"
    )
    assert_refused(rest.get("/v2/models/x/ready"), 404, "unknown_model", "received 'x'")
    assert_refused(rest.get("/v2/nothing"), 404, "unknown_route", "/v2/nothing")
    assert_refused(rest.get(INFER), 405, "method_not_allowed", "does not take 'GET'")


def test_contents_instead_of_raw_data(rpc: PlannerClient) -> None:
    call = raw_call(rpc, "/inference.GRPCInferenceService/ModelInfer")
    message = pb.ModelInferRequest(model_name=MODEL_NAME)
    message.parameters["operation"].string_param = "encode"
    frames = message.inputs.add(name="frames", datatype="UINT8", shape=[1, 1, 8, 8, 3])
    frames.contents.uint_contents.extend(picture(0, 8).ravel().tolist())
    answer = pb.ModelInferResponse.FromString(call(message.SerializeToString()))
    assert [output.name for output in answer.outputs][:2] == ["latents", "norms"]
    frames.contents.uint_contents.extend([0] * 300_000)
    with pytest.raises(grpc.RpcError, match="use raw_input_contents for large arrays"):
        call(message.SerializeToString())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda message: message.raw_input_contents.pop(), "received 1 raw_input_contents"),
        (lambda message: message.inputs[0].parameters["x"].SetInParent(), "frames: received 'x'"),
        (lambda message: setattr(message.inputs[0], "datatype", "FP16"), "frames.datatype: "),
        (lambda message: setattr(message, "model_name", "x"), "model: received 'x'"),
        (lambda message: setattr(message, "model_version", "1"), "model: received 'random@1'"),
    ],
)
def test_messages_that_are_refused(rpc: PlannerClient, change: Any, text: str) -> None:
    call = raw_call(rpc, "/inference.GRPCInferenceService/ModelInfer")
    message = to_message(translate("plan", plan(frames=[latent()], goal=latent())))
    change(message)
    with pytest.raises(grpc.RpcError, match=text) as refused:
        call(message.SerializeToString())
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_a_parameter_without_a_value_counts_as_left_out(rpc: PlannerClient) -> None:
    call = raw_call(rpc, "/inference.GRPCInferenceService/ModelInfer")
    message = to_message(translate("plan", plan(frames=[latent()], goal=latent())))
    message.parameters["seed"].SetInParent()
    assert call(message.SerializeToString())


def test_bytes_that_are_no_message(rpc: PlannerClient) -> None:
    call = raw_call(rpc, "/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError, match=r"expected a inference\.ModelInferRequest"):
        call(b"\xff")


def test_the_deadline_of_a_call_is_that_of_its_plans(rpc: PlannerClient) -> None:
    call = raw_call(rpc, "/inference.GRPCInferenceService/ModelInfer")
    endless = plan(solver=ENDLESS_SOLVER | {"samples": 300})
    answer = call(to_message(translate("plan", endless)).SerializeToString(), timeout=2)
    outputs = pb.ModelInferResponse.FromString(answer)
    index = [output.name for output in outputs.outputs].index("status")
    assert to_array("BYTES", [1], outputs.raw_output_contents[index])[0] == "deadline"


@pytest.fixture
def own_server(tmp_path: Path, model_folder: Path) -> Iterator[ServerProcess]:
    """A server that this test stops."""
    flags = ["--models", str(model_folder), "--drain-lag-s", "60"]
    with ServerProcess(tmp_path / "log", *flags).wait_ready() as process:
        yield process
        process.process.kill()


def test_a_server_that_leaves_is_not_ready_and_answers(own_server: ServerProcess) -> None:
    with httpx.Client(base_url=own_server.url) as rest, PlannerClient(own_server.target) as rpc:
        call = raw_call(rpc, "/inference.GRPCInferenceService/ServerReady")
        model = raw_call(rpc, "/inference.GRPCInferenceService/ModelReady")
        name = pb.ModelReadyRequest(name=MODEL_NAME).SerializeToString()
        assert pb.ServerReadyResponse.FromString(call(b"")).ready
        assert pb.ModelReadyResponse.FromString(model(name)).ready
        own_server.signal(signal.SIGTERM)
        wait_until(lambda: rest.get("/v2/health/ready").status_code == 503)
        assert rest.get("/v2/health/live").status_code == 200
        assert_refused(rest.get(f"/v2/models/{MODEL_NAME}/ready"), 503, "draining", "shutting down")
        assert not pb.ServerReadyResponse.FromString(call(b"")).ready
        assert not pb.ModelReadyResponse.FromString(model(name)).ready
        assert OipHttpDriver(rest).infer(translate("plan", plan())).status_code == 200
