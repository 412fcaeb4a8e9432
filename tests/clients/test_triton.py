"""An unmodified tritonclient over both of its transports, in an environment of its own."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.lewm_serve.support.frames import base64_of
from tests.lewm_serve.support.keys import add_key
from tests.lewm_serve.support.server_process import ServerProcess
from tests.packaging.environments import ROOT, Environment
from tests.patience import PATIENCE_S

PROGRAM = Path(__file__).with_name("triton_program.py")
FRAMES = ROOT / "docs" / "frames"
LATENT_DIM = 128

ERRORS = [
    ("422", "INVALID_ARGUMENT", "solver.samples: received 0, expected 1 or more"),
    (
        "422",
        "INVALID_ARGUMENT",
        "parameters: received 'colour', expected for plan one of",
    ),
    ("422", "INVALID_ARGUMENT", "goal: received nothing, expected a value"),
    ("422", "INVALID_ARGUMENT", "outputs: received 'height', expected for plan one of actions"),
    ("504", "DEADLINE_EXCEEDED", "deadline: it leaves no time for the iterations"),
    ("404", "NOT_FOUND", "model: received 'nothing', expected one of two-room"),
    ("404", "NOT_FOUND", "model: received 'nothing', expected one of two-room"),
]


def run(clients: Environment, server: ServerProcess, transport: str, *key: str) -> dict[str, Any]:
    """What the program prints."""
    address = server.target if transport == "grpc" else server.url.removeprefix("http://")
    arguments = ["-I", str(PROGRAM), transport, address, str(FRAMES), *key]
    printed: dict[str, Any] = json.loads(clients.run("python", arguments, cwd=ROOT))
    return printed


@pytest.fixture(scope="module", params=["http", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both transports in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def printed(clients: Environment, embedded: ServerProcess, transport: str) -> dict[str, Any]:
    """What the program prints against the embedded model."""
    return run(clients, embedded, transport)


def test_health(printed: dict[str, Any]) -> None:
    assert (printed["live"], printed["ready"]) == (True, True)
    assert (printed["model_ready"], printed["version_ready"]) == (True, True)
    assert printed["no_model_ready"] is False


def test_metadata(printed: dict[str, Any]) -> None:
    assert printed["server"] == "lewm-serve"
    assert list(printed["inputs"])[:2] == ["frames", "goal"]
    assert (
        printed["inputs"].items() >= {"frames": "UINT8", "goal": "UINT8", "seed": "INT64"}.items()
    )
    assert printed["outputs"].items() >= {"actions": "FP32", "status": "BYTES"}.items()


def test_a_plan_is_that_of_rest(printed: dict[str, Any], embedded: ServerProcess) -> None:
    start, goal = (base64_of((FRAMES / f"{name}.png").read_bytes()) for name in ("start", "goal"))
    request = {"frames": [{"image": start}], "goal": {"image": goal}, "seed": 7}
    plan = httpx.post(f"{embedded.url}/plan", json=request, timeout=PATIENCE_S).json()
    assert np.array_equal(np.float32(printed["actions"]), np.float32(plan["actions"]))
    assert printed["status"] == plan["status"]
    assert printed["one"]["cost"] == pytest.approx(plan["cost"])
    assert (printed["one"]["seed"], printed["one"]["iterations"]) == (7, plan["iterations"])
    assert printed["one"]["total_ms"] > 0
    assert re.fullmatch("[0-9a-f]{32}", printed["goal_id"])
    assert printed["id"] == "my-id"
    assert printed["no_trajectory"] is True


def test_a_batch_of_plans(printed: dict[str, Any]) -> None:
    assert printed["pair"] == [[2, 25, 2], [2, 5, LATENT_DIM]]
    assert printed["pair_first"] == printed["actions"]
    assert printed["pair_health"] == ["ok", "ok"]
    assert printed["by_id"] is True


def test_encode_and_predict(printed: dict[str, Any], transport: str) -> None:
    assert printed["latents"] == [1, 1, LATENT_DIM]
    assert printed["predicted"] == [1, 5, LATENT_DIM]
    if transport == "http":
        assert printed["norm_in_json"] == pytest.approx(printed["norm"])
        assert printed["norm_of_gzip"] == printed["norm"]


def test_errors(printed: dict[str, Any], transport: str) -> None:
    assert len(printed["errors"]) == len(ERRORS)
    for (status, message), (http, grpc, text) in zip(printed["errors"], ERRORS, strict=True):
        assert status == (http if transport == "http" else f"StatusCode.{grpc}")
        assert text in message


def test_keys(clients: Environment, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "fleet", "infer")
    with ServerProcess(tmp_path / "log", "--keys-file", str(tmp_path / "keys")) as server:
        server.wait_ready()
        for transport in ("http", "grpc"):
            assert run(clients, server, transport, key)["status"] == "completed"
        with pytest.raises(AssertionError, match=r"\[401\] unauthenticated: expected a key"):
            run(clients, server, "http")
        with pytest.raises(AssertionError, match=r"UNAUTHENTICATED\] expected a key"):
            run(clients, server, "grpc")
