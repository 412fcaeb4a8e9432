"""The two packages, and the wheels and sdists that are built of them."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from tests.packaging.environments import ROOT, Environment

PROJECTS = {"lewm-serve": ROOT, "lewm-client": ROOT / "client"}
"""The folder of each package's pyproject.toml, by the package's name."""


def pyproject(name: str) -> dict[str, Any]:
    """The pyproject.toml of a package."""
    return tomllib.loads((PROJECTS[name] / "pyproject.toml").read_text())


VERSION: str = pyproject("lewm-serve")["project"]["version"]


@dataclass(frozen=True)
class Distribution:
    """The wheel and the sdist of one package."""

    wheel: Path
    sdist: Path


def wheel_files(wheel: Path) -> set[str]:
    """The files in a wheel."""
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


class Builder:
    """Builds wheels and sdists, in an environment that holds the packages' build requirements."""

    def __init__(self, folder: Path) -> None:
        self._environment = Environment(folder)
        for name in PROJECTS:
            self._environment.install(*pyproject(name)["build-system"]["requires"])

    def build(self, project: Path, target: str, output: Path) -> Path:
        """Build the "wheel" or the "sdist" of a project into an empty folder."""
        arguments = ["build", "--target", target, "--directory", str(output)]
        self._environment.run("hatchling", arguments, cwd=project)
        (built,) = output.iterdir()
        return built
