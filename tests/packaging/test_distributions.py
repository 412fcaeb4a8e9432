"""The wheels and sdists hold what they should, and nothing else."""

import tarfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.packaging.distributions import PROJECTS, VERSION, Distribution, wheel_files
from tests.packaging.environments import ROOT

NAMES = sorted(PROJECTS)
PACKAGES = {
    "lewm-serve": {
        "lewm_models": ROOT / "models" / "lewm_models",
        "lewm_serve": ROOT / "service" / "lewm_serve",
    },
    "lewm-client": {
        "lewm": ROOT / "client" / "lewm",
        "lewm_client": ROOT / "client" / "lewm_client",
    },
}
"""The top-level packages of each wheel, and their folders in the repository."""


def folder_name(name: str) -> str:
    """The name of an unpacked sdist's folder."""
    return f"{name.replace('-', '_')}-{VERSION}"


def metadata_folder(name: str) -> str:
    """The name of a wheel's metadata folder."""
    return f"{folder_name(name)}.dist-info"


def metadata(distribution: Distribution, name: str) -> Message:
    """The metadata of a wheel."""
    with ZipFile(distribution.wheel) as archive:
        return Parser().parsestr(archive.read(f"{metadata_folder(name)}/METADATA").decode())


@pytest.mark.parametrize("name", NAMES)
def test_top_level_of_the_wheel(distributions: dict[str, Distribution], name: str) -> None:
    top_level = {path.partition("/")[0] for path in wheel_files(distributions[name].wheel)}
    assert top_level == {*PACKAGES[name], metadata_folder(name)}


def test_no_file_is_in_both_wheels(distributions: dict[str, Distribution]) -> None:
    client, server = (wheel_files(distributions[name].wheel) for name in NAMES)
    assert client & server == set()


@pytest.mark.parametrize("name", NAMES)
def test_wheel_has_every_file_of_its_packages(
    distributions: dict[str, Distribution], name: str
) -> None:
    in_repository = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES[name].items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    in_wheel = wheel_files(distributions[name].wheel)
    assert {path for path in in_wheel if ".dist-info/" not in path} == in_repository


def test_package_lewm_is_the_generated_code(distributions: dict[str, Distribution]) -> None:
    files = wheel_files(distributions["lewm-client"].wheel)
    assert {path for path in files if path.startswith("lewm/")} == {
        "lewm/__init__.py",
        "lewm/py.typed",
        "lewm/v1/__init__.py",
        "lewm/v1/planner_pb2.py",
        "lewm/v1/planner_pb2.pyi",
        "lewm/v1/planner_pb2_grpc.py",
    }


@pytest.mark.parametrize("name", NAMES)
def test_packages_are_typed(distributions: dict[str, Distribution], name: str) -> None:
    files = wheel_files(distributions[name].wheel)
    assert {f"{package}/py.typed" for package in PACKAGES[name]} <= files


@pytest.mark.parametrize("name", NAMES)
def test_license_is_in_the_wheel_and_in_the_sdist(
    distributions: dict[str, Distribution], name: str
) -> None:
    distribution = distributions[name]
    license_text = (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in license_text
    assert metadata(distribution, name)["License-Expression"] == "Apache-2.0"
    with ZipFile(distribution.wheel) as wheel:
        assert wheel.read(f"{metadata_folder(name)}/licenses/LICENSE") == license_text
    with tarfile.open(distribution.sdist) as sdist:
        member = sdist.extractfile(f"{folder_name(name)}/LICENSE")
        assert member is not None
        assert member.read() == license_text


def test_versions_in_the_metadata(distributions: dict[str, Distribution]) -> None:
    client, server = (metadata(distributions[name], name) for name in NAMES)
    assert client["Version"] == server["Version"] == VERSION
    assert f"lewm-client=={VERSION}" in server.get_all("Requires-Dist", [])
    assert client["Requires-Python"] == ">=3.10"
    assert server["Requires-Python"] == ">=3.11"


@pytest.mark.parametrize("name", NAMES)
def test_sdist_builds_the_same_wheel(
    distributions: dict[str, Distribution], wheels_of_sdists: dict[str, Path], name: str
) -> None:
    assert wheel_files(wheels_of_sdists[name]) == wheel_files(distributions[name].wheel)
