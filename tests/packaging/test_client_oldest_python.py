"""The client's wheel on the oldest Python and with the oldest packages that it allows."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.lewm_serve.support.server_process import ServerProcess
from tests.packaging import make_plan
from tests.packaging.distributions import Distribution, pyproject
from tests.packaging.environments import Environment

PROJECT = pyproject("lewm-client")["project"]
OLDEST_PYTHON: str = PROJECT["requires-python"].removeprefix(">=")
PRINT_VERSION_IF_VENV_WORKS = "import ensurepip, sys, venv; print(*sys.version_info[:2], sep='.')"


def possible_interpreters(version: str) -> Iterator[str]:
    """Where a Python of this version may be: on the path, or among those of pyenv or uv."""
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        yield on_path
    data_folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    pyenv_folder = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for folder in (pyenv_folder / "versions", data_folder / "uv" / "python"):
        yield from map(str, sorted(folder.glob(f"*{version}.*/bin/python{version}")))


def makes_environments(interpreter: str, version: str) -> bool:
    """Whether this is a Python of this version that can make virtual environments."""
    command = [interpreter, "-I", "-c", PRINT_VERSION_IF_VENV_WORKS]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.returncode == 0 and result.stdout.strip() == version


def oldest_requirements() -> list[str]:
    """The lowest allowed version of each dependency."""
    return [requirement.replace(">=", "==") for requirement in PROJECT["dependencies"]]


@pytest.fixture(scope="module")
def oldest_python() -> str:
    """An interpreter of the oldest version that the client supports."""
    for interpreter in possible_interpreters(OLDEST_PYTHON):
        if makes_environments(interpreter, OLDEST_PYTHON):
            return interpreter
    pytest.skip(f"this machine has no Python {OLDEST_PYTHON} that can make virtual environments")


def test_every_dependency_has_a_lowest_version() -> None:
    assert len(oldest_requirements()) == 3
    assert all(
        re.fullmatch(r"[a-z]+==[\d.]+", requirement) for requirement in oldest_requirements()
    )


def test_a_plan_on_the_oldest_python(
    oldest_python: str, distributions: dict[str, Distribution], tmp_path: Path
) -> None:
    with (
        TemporaryDirectory() as folder,
        ServerProcess(tmp_path / "log").wait_ready() as server,
    ):
        environment = Environment(Path(folder) / "environment", oldest_python)
        environment.install(str(distributions["lewm-client"].wheel), *oldest_requirements())
        arguments = ["-I", str(make_plan.PROGRAM), server.target]
        plan = json.loads(environment.run("python", arguments, cwd=tmp_path))
        expected = make_plan.make_plan(server.target)
    assert plan["status"] == "completed"
    assert len(plan["actions"]) == plan["solver"]["horizon"] * plan["action_block"]
    # Both requests have the same seed, so the actions are the same, bit for bit.
    assert plan == expected
