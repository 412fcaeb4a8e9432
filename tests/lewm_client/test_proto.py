"""The proto files follow buf's rules, break no client, and match the generated code."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
PLANNER = Path("lewm/v1/planner.proto")
GENERATED_FOLDER = ROOT / "client" / "lewm" / "v1"
GENERATED = ("planner_pb2.py", "planner_pb2.pyi", "planner_pb2_grpc.py")


def run_buf(*arguments: str, folder: Path = PROTO) -> tuple[int, str]:
    """Run buf in a folder; the exit code and what it found."""
    buf = shutil.which("buf") or str(Path(sys.executable).with_name("buf"))
    result = subprocess.run([buf, *arguments], cwd=folder, capture_output=True, text=True)
    return result.returncode, result.stdout


def run_buf_breaking(folder: Path = PROTO) -> tuple[int, str]:
    """Compare the proto files in a folder with the last release, as `make check` does."""
    return run_buf("breaking", "--against", "last_release.txtpb", folder=folder)


@pytest.mark.parametrize(
    ("file", "folder", "names"),
    [
        (PLANNER, GENERATED_FOLDER, GENERATED),
        (
            Path("inference/open_inference.proto"),
            ROOT / "service" / "lewm_serve" / "transports" / "grpc" / "inference",
            ("open_inference_pb2.py", "open_inference_pb2.pyi"),
        ),
    ],
    ids=["planner", "open inference"],
)
def test_generated_code_is_current(
    tmp_path: Path, file: Path, folder: Path, names: tuple[str, ...]
) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs, str(file)]
    subprocess.run(command, check=True)
    for name in names:
        assert (folder / name).read_text() == (tmp_path / file.parent / name).read_text()


def test_lint() -> None:
    assert run_buf("lint") == (0, "")


def test_nothing_breaks_clients_of_the_last_release() -> None:
    assert run_buf_breaking() == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("double norm = 3;", "float norm = 3;", 'Field "3" with name "norm"'),
        ("string latent_id = 2;", "string latent_name = 2;", 'from "latent_id" to "latent_name"'),
        ("  optional int64 seed = 7;\n", "", 'Previously present field "7"'),
        (
            "  rpc GetModel(GetModelRequest) returns (GetModelResponse);\n",
            "",
            'Previously present RPC "GetModel"',
        ),
    ],
    ids=["type", "name", "removed field", "removed method"],
)
def test_a_breaking_change_is_found(tmp_path: Path, old: str, new: str, problem: str) -> None:
    folder = tmp_path / "proto"
    shutil.copytree(PROTO, folder)
    text = (folder / PLANNER).read_text()
    assert old in text
    (folder / PLANNER).write_text(text.replace(old, new, 1))
    code, output = run_buf_breaking(folder)
    assert code == 100
    assert problem in output


def test_a_new_field_breaks_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "proto"
    shutil.copytree(PROTO, folder)
    text = (folder / PLANNER).read_text()
    old = "  optional int64 min_iterations = 12;\n"
    assert old in text
    (folder / PLANNER).write_text(text.replace(old, f"{old}  optional string note = 1000;\n"))
    assert run_buf_breaking(folder) == (0, "")
