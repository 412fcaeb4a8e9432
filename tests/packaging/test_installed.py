"""Both wheels, installed in a fresh environment and run from an empty folder."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np

from lewm_serve.backends.native.build import NativeUnavailable
from lewm_serve.backends.native.library import load_library
from tests.packaging import make_plan
from tests.packaging.distributions import VERSION
from tests.packaging.environments import Environment, clean_variables
from tests.patience import PATIENCE_S

PRINT_FILES_OF_PACKAGES = """
import lewm.v1, lewm_client, lewm_models, lewm_serve
for package in (lewm.v1, lewm_client, lewm_models, lewm_serve):
    print(package.__file__)
"""


def native_backend_runs_here() -> bool:
    """Whether this machine's processor and compiler allow the native backend."""
    try:
        load_library()
    except NativeUnavailable:
        return False
    return True


def test_version(installed: Environment, tmp_path: Path) -> None:
    assert installed.run("lewm", ["--version"], cwd=tmp_path) == f"lewm-serve {VERSION}\n"


def test_packages_are_those_of_the_environment(installed: Environment, tmp_path: Path) -> None:
    files = installed.run("python", ["-c", PRINT_FILES_OF_PACKAGES], cwd=tmp_path).splitlines()
    assert len(files) == 4
    assert all(Path(file).is_relative_to(installed.folder) for file in files)


def test_models_list(installed: Environment, tmp_path: Path) -> None:
    output = installed.run("lewm", ["models", "list"], cwd=tmp_path)
    (row,) = [line for line in output.splitlines() if line.startswith("two-room")]
    assert "64 px" in row
    assert "5 × 2" in row


def test_a_plan_of_the_embedded_model(installed: Environment, tmp_path: Path) -> None:
    working_folder = tmp_path / "empty"
    working_folder.mkdir()
    log = tmp_path / "log.jsonl"
    flags = ["--http-port", "0", "--grpc-port", "0", "--log-format", "json"]
    home = tmp_path / "home"
    home.mkdir()
    # The native backend needs neither a compiler nor a folder of the user.
    variables = clean_variables() | {"PATH": "/nowhere", "HOME": str(home)}
    with (
        log.open("w") as standard_error,
        subprocess.Popen(
            [installed.program("lewm"), "serve", *flags],
            cwd=working_folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=standard_error,
            text=True,
        ) as server,
    ):
        try:
            assert server.stdout is not None
            ready_line = server.stdout.readline()
            assert ready_line, log.read_text()
            ready = json.loads(ready_line)
            arguments = ["-I", str(make_plan.PROGRAM), f"127.0.0.1:{ready['grpc_port']}"]
            output = installed.run("python", arguments, cwd=working_folder)
        finally:
            server.terminate()
        assert server.wait(PATIENCE_S) == 0

    assert (ready["event"], ready["models"]) == ("ready", ["two-room"])
    log_lines = [json.loads(line) for line in log.read_text().splitlines()]
    (backend,) = [line["backend"] for line in log_lines if line["event"] == "backend chosen"]
    assert (backend == "native") == native_backend_runs_here()

    plan = json.loads(output)
    assert (plan["model"], plan["backend"]) == ("two-room", backend)
    assert (plan["status"], plan["health"]) == ("completed", "ok")
    assert math.isfinite(plan["cost"])
    actions = np.array(plan["actions"])
    assert actions.shape == (plan["solver"]["horizon"] * plan["action_block"], 2)
    assert np.isfinite(actions).all()
    assert (actions >= plan["action_low"]).all()
    assert (actions <= plan["action_high"]).all()
    assert np.ptp(actions, axis=0).min() > 0
    assert list(working_folder.iterdir()) == list(home.iterdir()) == []
