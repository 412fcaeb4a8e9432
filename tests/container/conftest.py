"""The image, built once, and one server in a container for the tests that leave it as it is."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.containers import ServerContainer
from tests.container.images import build, run


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the image that the Dockerfile builds."""
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def unpacked(image: str) -> Iterator[Path]:
    """The folder with all files of the image."""
    yield Path(run("podman", "image", "mount", image).strip())
    subprocess.run(["podman", "image", "unmount", image], check=False)


@pytest.fixture(scope="session")
def server(image: str) -> Iterator[ServerContainer]:
    """A server that is ready."""
    with ServerContainer(image) as container:
        yield container.wait_ready()
