"""An environment with the unmodified clients of others, and a server of the embedded model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lewm_serve.support.server_process import ServerProcess
from tests.packaging.environments import Environment, kept_environment

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


@pytest.fixture(scope="session")
def clients() -> Environment:
    """The environment. The clients need other versions than the server, and they are pinned."""
    return kept_environment(
        REQUIREMENTS.read_text(),
        lambda environment: environment.install("--no-deps", "--requirement", str(REQUIREMENTS)),
    )


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the embedded model."""
    with ServerProcess(tmp_path_factory.mktemp("embedded") / "log.jsonl") as server:
        yield server.wait_ready()
        assert server.stop() == 0, server.errors()
        assert "Traceback" not in server.errors()
