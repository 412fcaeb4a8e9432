"""An unmodified openpi-client, in an environment of its own."""

import json
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

PROGRAM = Path(__file__).with_name("openpi_program.py")
FRAMES = ROOT / "docs" / "frames"


def drive(clients: Environment, server: ServerProcess, *key: str) -> dict[str, Any]:
    """What the program prints."""
    arguments = ["-I", str(PROGRAM), str(server.http_port), str(FRAMES), *key]
    printed: dict[str, Any] = json.loads(clients.run("python", arguments, cwd=ROOT))
    return printed


@pytest.fixture(scope="module")
def printed(clients: Environment, embedded: ServerProcess) -> dict[str, Any]:
    """What the program prints against the embedded model."""
    return drive(clients, embedded)


def test_the_client_is_an_older_one(printed: dict[str, Any]) -> None:
    assert printed["numpy"].startswith("1.")


def test_the_metadata_say_what_is_expected(printed: dict[str, Any]) -> None:
    metadata = printed["metadata"]
    assert metadata["server"].startswith("lewm-serve ")
    assert set(metadata["observation"]) == {
        "observation/image",
        "observation/state",
        "observation/vector",
        "goal/image",
        "goal/state",
        "goal/vector",
        "prompt",
    }
    assert metadata["model"] == "two-room"
    described = {"action_dim": 2, "action_block": 5, "action_horizon": 25, "image_size": 64}
    assert metadata.items() >= described.items()
    assert metadata["models"]["two-room"].items() >= described.items()
    assert metadata["controllers"] == ["waypoint"]


def test_the_plan_is_that_of_rest(printed: dict[str, Any], embedded: ServerProcess) -> None:
    start, goal = (base64_of((FRAMES / f"{name}.png").read_bytes()) for name in ("start", "goal"))
    request = {"frames": [{"image": start}], "goal": {"image": goal}, "seed": 7}
    plan = httpx.post(f"{embedded.url}/plan", json=request, timeout=PATIENCE_S).json()
    assert printed["dtype"] == "float32"
    assert np.array_equal(np.float32(printed["actions"]), np.float32(plan["actions"]))
    assert printed["health"] == plan["health"]["status"] == "ok"


def test_the_connection_keeps_the_goal(printed: dict[str, Any]) -> None:
    assert printed["same"] is True
    assert printed["timing"] == ["infer_ms", "prev_total_ms"]


def test_the_client_understands_errors_and_goes_on(printed: dict[str, Any]) -> None:
    starts = [
        "not_square: observation/image: received 100 x 224",
        "wrong_type: observation/image: received an array of float64, expected an array of uint8",
        "unknown_field: observation: received 'observation/wrist_image', expected one of",
        "out_of_range: seed: received -1, expected 0 or more",
        "invalid_choice: fallback.controller: received 'who', expected one of",
    ]
    assert len(printed["errors"]) == len(starts)
    for error, start in zip(printed["errors"], starts, strict=True):
        first_line, second_line = error.split("\n")
        assert first_line == "Error in inference server:"
        assert second_line.startswith(start)
        assert "(request " in second_line


def test_the_broker_cuts_a_plan_into_actions(printed: dict[str, Any]) -> None:
    assert printed["chunks"] == [*printed["actions"][:5], *printed["actions"][:2]]


def test_the_state_is_that_of_the_fallback(printed: dict[str, Any]) -> None:
    assert printed["late"] == ["fallback", {"controller": "waypoint", "reason": "deadline"}]


def test_the_key_of_the_client(
    clients: Environment, tmp_path: Path, printed: dict[str, Any]
) -> None:
    key = add_key(tmp_path / "keys", "arm-1", "infer")
    with ServerProcess(tmp_path / "log", "--keys-file", str(tmp_path / "keys")) as server:
        server.wait_ready()
        assert drive(clients, server, key)["actions"] == printed["actions"]
        with pytest.raises(AssertionError, match="HTTP 401"):
            drive(clients, server)
