"""Commands work without a network, and write nothing below the user's home.

ONNX Runtime's telemetry would keep a device id and a queue there, from its import on.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from lewm_models.checkpoint import PRETRAINED
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.server_process import ROOT, ServerProcess
from tests.patience import PATIENCE_S

MODEL = str(PRETRAINED / "two-room")

COMMANDS = {
    "import": [
        "-c",
        "import lewm_serve.server, lewm_serve.backends.onnx, lewm_models.export.onnx_files,"
        "lewm_models.training.run, lewm_client",
    ],
    "import of ONNX Runtime afterwards": [
        "-c",
        "import lewm_models.export.runtime as runtime, onnxruntime;"
        "assert runtime.onnxruntime is onnxruntime",
    ],
    "models export": ["-m", "lewm_serve.cli.main", "models", "export", MODEL, "{output}"],
    "benchmark": ["-m", "benchmarks", "--list"],
}


@pytest.fixture(scope="session")
def without_network() -> list[str]:
    """What runs a command in a network of its own that has nothing, if the system allows that."""
    command = ["unshare", "--user", "--map-root-user", "--net"]
    allowed = shutil.which("unshare") and subprocess.run([*command, "true"], check=False)
    return command if allowed and allowed.returncode == 0 else []


def files(home: Path) -> list[str]:
    """The files below a home folder."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose home is empty and who has not asked for telemetry."""
    home = tmp_path / "home"
    home.mkdir()
    removed = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return kept | {"HOME": str(home)}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_leave_the_home_folder_empty(
    tmp_path: Path, variables: dict[str, str], without_network: list[str], name: str
) -> None:
    arguments = [part.format(output=tmp_path / "output") for part in COMMANDS[name]]
    process = subprocess.run(
        [*without_network, sys.executable, *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert files(tmp_path / "home") == []


def test_a_server_leaves_the_home_folder_empty(
    tmp_path: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with ServerProcess(tmp_path / "log.jsonl", HOME=variables["HOME"]) as server:
        server.wait_ready()
        answer = httpx.post(f"{server.url}/encode", json={"frames": [pixels()]}, timeout=PATIENCE_S)
        assert answer.status_code == 200
    assert files(tmp_path / "home") == []
