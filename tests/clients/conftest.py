"""An environment with the unmodified clients of others, and a server of the embedded model.

The clients need other versions than the server. Their packages are pinned, so an environment that
was once complete is used again, by other workers and in later runs: it is in `.clients`, by the
hash of the pins and the interpreter. `make clean` removes it.
"""

import fcntl
import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lewm_serve.support.server_process import ServerProcess
from tests.packaging.environments import ROOT, Environment

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
COMPLETE = "complete"


@pytest.fixture(scope="session")
def clients() -> Environment:
    """The environment."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = ROOT / ".clients" / key
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / COMPLETE).exists():
            return Environment.existing(folder)
        shutil.rmtree(folder, ignore_errors=True)
        environment = Environment(folder)
        environment.install("--no-deps", "--requirement", str(REQUIREMENTS))
        (folder / COMPLETE).touch()
    return environment


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the embedded model."""
    with ServerProcess(tmp_path_factory.mktemp("embedded") / "log.jsonl") as server:
        yield server.wait_ready()
        assert server.stop() == 0, server.errors()
        assert "Traceback" not in server.errors()
