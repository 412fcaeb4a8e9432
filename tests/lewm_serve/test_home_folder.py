"""No command writes below the user's home, where ONNX Runtime's telemetry keeps its queue."""

import os
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
CONTENT_OF_TRAINING = ("--preset", "edge", "--episodes", "2", "--episode-steps", "15")

COMMANDS = {
    "import": ["-c", "import lewm_serve.backends.onnx, lewm_models.export.onnx_files"],
    "import of ONNX Runtime afterwards": [
        "-c",
        "import lewm_models.export.runtime as runtime, onnxruntime;"
        "assert runtime.onnxruntime is onnxruntime",
    ],
    "models export": ["-m", "lewm_serve.cli.main", "models", "export", MODEL, "{output}"],
    "models verify": ["-m", "lewm_serve.cli.main", "models", "verify", MODEL],
    "train": [
        *("-m", "lewm_serve.cli.main", "train", *CONTENT_OF_TRAINING),
        *("--steps", "1", "--output", "{output}"),
    ],
    "benchmark": ["-m", "benchmarks", "--list"],
}


def files_below(folder: Path) -> list[str]:
    """The files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
    tmp_path: Path, variables: dict[str, str], name: str
) -> None:
    arguments = [part.format(output=tmp_path / "output") for part in COMMANDS[name]]
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert files_below(tmp_path / "home") == []


def test_a_server_leaves_the_home_folder_empty(
    tmp_path: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with ServerProcess(tmp_path / "log.jsonl", HOME=variables["HOME"]) as server:
        server.wait_ready()
        answer = httpx.post(f"{server.url}/encode", json={"frames": [pixels()]}, timeout=PATIENCE_S)
        assert answer.status_code == 200
    assert files_below(tmp_path / "home") == []
