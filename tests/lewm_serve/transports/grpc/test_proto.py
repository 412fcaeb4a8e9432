"""The generated code is that of the proto, and the proto keeps its rules."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROTO = ROOT / "proto"
GENERATED_FOLDER = ROOT / "client" / "lewm" / "v1"
GENERATED = ("planner_pb2.py", "planner_pb2.pyi", "planner_pb2_grpc.py")


def test_generated_code_is_current(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *outputs]
    subprocess.run([*command, "lewm/v1/planner.proto"], check=True)
    for name in GENERATED:
        assert (GENERATED_FOLDER / name).read_text() == (tmp_path / "lewm/v1" / name).read_text()


def test_lint() -> None:
    buf = shutil.which("buf") or str(Path(sys.executable).with_name("buf"))
    result = subprocess.run([buf, "lint"], cwd=PROTO, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")
