"""Nothing that is not finite leaves the server, whatever its weights and latents are."""

import math
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from safetensors.torch import load_file, save_file

from lewm_client import PlannerClient
from lewm_models.checkpoint import WEIGHTS_FILE
from tests.lewm_serve.support.drivers import Driver, GrpcDriver, RestDriver
from tests.lewm_serve.support.frames import ACTION_BLOCK, LATENT_DIM, latent, pixels
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.requests import HOLD, plan, rows
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

GRPC_INTERNAL = grpc.StatusCode.INTERNAL

OVERFLOWING_TENSORS = {"encodes": "projector.net.3.weight", "predicts": "pred_proj.net.3.weight"}
"""By the name of a model: the tensor whose values are near the largest float32."""


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of models whose latents, or predictions, overflow."""
    folder = tmp_path_factory.mktemp("overflowing")
    for name, tensor in OVERFLOWING_TENSORS.items():
        path = write_random_model(folder / "models" / name, name) / WEIGHTS_FILE
        tensors = load_file(path)
        tensors[tensor].fill_(3e38)
        save_file(tensors, path)
    with ServerProcess(folder / "log", "--models", str(folder / "models")) as process:
        yield process.wait_ready()
        assert process.stop() == 0
        assert "Traceback" not in process.errors()


@pytest.fixture(params=["rest", "grpc"])
def sender(request: pytest.FixtureRequest, overflowing: ServerProcess) -> Iterator[Driver]:
    if request.param == "rest":
        with httpx.Client(base_url=overflowing.url, timeout=PATIENCE_S) as client:
            yield RestDriver(client)
    else:
        with PlannerClient(overflowing.target) as client:
            yield GrpcDriver(client)


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def predict(**changes: Any) -> dict[str, Any]:
    return {"frames": [pixels(0)], "actions": rows(ACTION_BLOCK)} | changes


REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("encodes", "encode", {"frames": [pixels(0)]}),
    ("encodes", "predict", predict()),
    ("encodes", "plan", plan()),
    ("predicts", "predict", predict()),
    ("predicts", "plan", plan(include=["trajectory"])),
    ("predicts", "plan", plan(solver={"name": "gradient", "samples": 4, "iterations": 2})),
    ("predicts", "plan", plan(solver={"name": "mppi", "samples": 4, "iterations": 2})),
    ("predicts", "plan", plan(solver={"name": "icem", "samples": 4, "iterations": 2})),
    ("predicts", "plan", plan(solver={"name": "random", "samples": 4, "iterations": 2})),
]


@pytest.mark.parametrize(("model", "method", "document"), REQUESTS)
def test_a_model_that_overflows_is_reported(
    sender: Driver, model: str, method: str, document: dict[str, Any]
) -> None:
    answer = sender.send(method, document | {"model": model})
    assert (answer.status, answer.code) == (
        500 if sender.name == "rest" else GRPC_INTERNAL,
        "non_finite_result",
    )
    assert "that are not finite" in answer.detail


def test_a_latent_of_the_client_is_blamed(sender: Driver) -> None:
    document = plan(frames=[latent(9e3)], model="predicts")
    answer = sender.send("plan", document)
    assert answer.status == sender.status(422)
    assert answer.code == "not_finite"
    assert answer.detail.startswith("frames[0].latent: received numbers up to 9000, expected a")
    document = predict(frames=[latent(1e-45)], model="predicts")
    assert sender.send("predict", document).code == "not_finite"


@pytest.mark.parametrize("model", OVERFLOWING_TENSORS)
def test_a_fallback_answers_for_a_model_that_overflows(sender: Driver, model: str) -> None:
    answer = sender.send("plan", plan(fallback=HOLD, model=model))
    assert answer.code == "ok"
    assert answer.document["status"] == "fallback"
    assert answer.document["fallback"] == {"controller": "hold", "reason": "engine_failure"}
    assert answer.document["cost"] is None
    assert (answer.document["iterations"], answer.document["candidates"]) == (0, 0)
    assert all(map(math.isfinite, numbers(answer.document)))


def test_the_metrics_stay_finite(overflowing: ServerProcess) -> None:
    for _ in range(20):
        httpx.post(f"{overflowing.url}/encode", json={"frames": [pixels(0)], "model": "encodes"})
    lines = [line for line in overflowing.get("/metrics").text.splitlines() if line[0] != "#"]
    assert all(math.isfinite(float(line.split()[-1])) for line in lines)


@pytest.mark.parametrize("value", [3e38, -3e38, 1.01e4, 1e-45, 1e-310, 0.0, 1e4])
def test_latents_at_the_limits_of_float32(driver: Driver, value: float) -> None:
    frame = {"latent": [value] * LATENT_DIM}
    for method, document in (
        ("encode", {"frames": [frame]}),
        ("predict", predict(frames=[frame])),
        ("plan", plan(frames=[frame], goal=frame, include=["trajectory"])),
    ):
        answer = driver.send(method, document)
        if abs(value) > 1e4:
            assert (answer.status, answer.code) == (driver.status(422), "out_of_range")
            assert ".latent: received" in answer.detail
        else:
            assert answer.code == "ok"
            assert all(map(math.isfinite, numbers(answer.document)))


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-45, -1e-45])
def test_actions_at_the_limits_of_float32(driver: Driver, value: float) -> None:
    actions = rows(ACTION_BLOCK, value)
    two_frames = {"frames": [pixels(0), pixels(1)], "past_actions": actions}
    for method, document in (
        ("predict", predict(actions=actions)),
        ("predict", predict(**two_frames)),
        ("plan", plan(warm_start=actions)),
        ("plan", plan(**two_frames)),
    ):
        answer = driver.send(method, document)
        if abs(value) > 1:
            assert (answer.status, answer.code) == (driver.status(422), "out_of_range")
        else:
            assert answer.code == "ok"
            assert all(map(math.isfinite, numbers(answer.document)))


@pytest.mark.parametrize(
    "solver",
    [
        {"name": "mppi", "temperature": 5e-324},
        {"name": "mppi", "temperature": 1.7e308},
        {"name": "cem", "deviation": 5e-324, "tolerance": 5e-324},
        {"name": "cem", "tolerance": 1.7e308, "momentum": 0.9999999999999999},
        {"name": "icem", "deviation": 100, "noise_exponent": 10},
        {"name": "gradient", "learning_rate": 5e-324, "deviation": 100},
        {"name": "gradient", "learning_rate": 100},
        {"name": "random", "deviation": 1e-45},
    ],
)
def test_solver_settings_at_the_limits_of_numbers(driver: Driver, solver: dict[str, Any]) -> None:
    document = plan(solver=solver | {"samples": 4, "iterations": 3}, include=["trajectory"])
    answer = driver.send("plan", document)
    assert answer.code == "ok", answer.detail
    assert all(map(math.isfinite, numbers(answer.document)))
