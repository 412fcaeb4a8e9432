"""Virtual environments that know nothing of this repository."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
PREFIXES_OF_DROPPED_VARIABLES = ("COVERAGE_", "PYTHON", "VIRTUAL_ENV", "LEWM_")
"""Variables that lead an environment to this repository or its coverage, or set up the server."""


COMPLETE = "complete"


def clean_variables() -> dict[str, str]:
    """This process's environment variables, without those that concern Python and `lewm`."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIXES_OF_DROPPED_VARIABLES)
    }


class Environment:
    """A virtual environment in a new folder, made by an interpreter (by default, this one)."""

    def __init__(self, folder: Path, interpreter: str = sys.executable) -> None:
        self.folder = folder
        _run([interpreter, "-I", "-m", "venv", str(folder)], cwd=folder.parent)

    @classmethod
    def existing(cls, folder: Path) -> Self:
        """The environment that is in a folder."""
        environment = cls.__new__(cls)
        environment.folder = folder
        return environment

    def program(self, name: str) -> str:
        """The path of one of the environment's programs."""
        return str(self.folder / "bin" / name)

    def run(self, name: str, arguments: Sequence[str], cwd: Path) -> str:
        """Run one of the environment's programs and return its standard output.

        Raises:
            AssertionError: it fails; the message holds its output.
        """
        return _run([self.program(name), *arguments], cwd=cwd)

    def install(self, *requirements: str, constraints: Path | None = None) -> None:
        """Install packages with pip, from wheels alone."""
        options = ["--quiet", "--no-compile", "--only-binary", ":all:"]
        if constraints is not None:
            options += ["--constraint", str(constraints)]
        self.run("python", ["-m", "pip", "install", *options, *requirements], cwd=self.folder)


def kept_environment(key: str, fill: Callable[[Environment], None]) -> Environment:
    """An environment that is used again, by other workers and in later runs, once it is complete.

    It is in `.clients`, which `make clean` removes.

    Args:
        key: what its content depends on, beside the interpreter.
        fill: installs the packages.
    """
    name = hashlib.sha256(f"{key}{sys.version}".encode()).hexdigest()[:16]
    folder = ROOT / ".clients" / name
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / COMPLETE).exists():
            return Environment.existing(folder)
        shutil.rmtree(folder, ignore_errors=True)
        environment = Environment(folder)
        fill(environment)
        (folder / COMPLETE).touch()
    return environment


def _run(command: list[str], cwd: Path) -> str:
    variables = clean_variables()
    result = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}:\n{result.stdout}{result.stderr}"
    return result.stdout
