"""The wheels and sdists of both packages, built once, and an environment that has them.

Environments are large, so they are removed after the tests that need them.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.packaging.distributions import PROJECTS, Builder, Distribution
from tests.packaging.environments import ROOT, Environment


@pytest.fixture(scope="session")
def builder() -> Iterator[Builder]:
    """What builds wheels and sdists."""
    with TemporaryDirectory() as folder:
        yield Builder(Path(folder) / "environment")


@pytest.fixture(scope="session")
def distributions(
    tmp_path_factory: pytest.TempPathFactory, builder: Builder
) -> dict[str, Distribution]:
    """The wheel and the sdist of each package, by the package's name."""
    return {
        name: Distribution(
            wheel=builder.build(folder, "wheel", tmp_path_factory.mktemp("wheel")),
            sdist=builder.build(folder, "sdist", tmp_path_factory.mktemp("sdist")),
        )
        for name, folder in PROJECTS.items()
    }


@pytest.fixture(scope="session")
def wheels_of_sdists(
    tmp_path_factory: pytest.TempPathFactory,
    builder: Builder,
    distributions: dict[str, Distribution],
) -> dict[str, Path]:
    """The wheel that is built of each package's sdist."""
    wheels = {}
    for name, distribution in distributions.items():
        unpacked = tmp_path_factory.mktemp("unpacked")
        with tarfile.open(distribution.sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (project,) = unpacked.iterdir()
        wheels[name] = builder.build(project, "wheel", tmp_path_factory.mktemp("wheel"))
    return wheels


@pytest.fixture(scope="session")
def installed(distributions: dict[str, Distribution]) -> Iterator[Environment]:
    """A fresh environment in which both wheels are installed with their dependencies."""
    with TemporaryDirectory() as folder:
        environment = Environment(Path(folder).resolve() / "environment")
        wheels = [str(distribution.wheel) for distribution in distributions.values()]
        environment.install(*wheels, constraints=ROOT / "constraints.txt")
        yield environment
