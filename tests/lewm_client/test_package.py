"""What the package needs: few modules, and the versions that its generated code was made with."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "client"
PROJECT = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
LOWEST_VERSIONS: dict[str, str] = dict(
    requirement.split(">=") for requirement in PROJECT["dependencies"]
)
"""The lowest allowed version of each dependency."""

IMPORT_AND_LIST_NEW_MODULES = """
import sys
before = set(sys.modules)
import lewm_client
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""


def test_the_client_imports_nothing_but_its_dependencies() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_AND_LIST_NEW_MODULES],
        capture_output=True,
        text=True,
        check=True,
    )
    # gRPC imports its further packages, such as grpc_health, where they are installed.
    dependencies = ("google", "grpc", "numpy", "typing_extensions", "cython_runtime", "_")
    packages = {name for name in result.stdout.split() if not name.startswith(dependencies)}
    assert packages - sys.stdlib_module_names == {"lewm", "lewm_client"}


def test_minimum_versions_are_those_of_the_generated_code() -> None:
    messages = (CLIENT / "lewm" / "v1" / "planner_pb2.py").read_text()
    services = (CLIENT / "lewm" / "v1" / "planner_pb2_grpc.py").read_text()
    protobuf = re.search(r"^# Protobuf Python Version: (\S+)$", messages, re.MULTILINE)
    grpcio = re.search(r"^GRPC_GENERATED_VERSION = '(\S+)'$", services, re.MULTILINE)
    assert protobuf is not None
    assert grpcio is not None
    assert LOWEST_VERSIONS["protobuf"] == protobuf[1]
    assert LOWEST_VERSIONS["grpcio"] == grpcio[1]


def test_compatibility_table_has_the_lowest_versions() -> None:
    (row,) = re.findall(r"^\| 0\.2 .*$", (CLIENT / "README.md").read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3:] == [
        PROJECT["requires-python"].replace(">=", "≥ "),
        *(f"≥ {LOWEST_VERSIONS[name]}" for name in ("grpcio", "protobuf", "numpy")),
    ]
