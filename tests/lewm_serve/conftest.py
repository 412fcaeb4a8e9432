"""One server for the whole session, and a client for each protocol."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lewm_client import PlannerClient
from tests.lewm_serve.support.drivers import DRIVERS, Driver, GrpcDriver, RestDriver
from tests.lewm_serve.support.random_model import MODEL_NAME, STATE_INPUT, write_random_model
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, with a random probe of states."""
    return write_random_model(tmp_path_factory.mktemp("models") / MODEL_NAME, probe=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[ServerProcess]:
    """A ready server; at the end it must stop by itself and exit with 0."""
    log = tmp_path_factory.mktemp("server") / "log.jsonl"
    with ServerProcess(log, "--models", str(model_folder)) as process:
        yield process.wait_ready()
        assert process.stop() == 0, process.errors()


@pytest.fixture(scope="session")
def states_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server of a random model that takes states beside the pixels, and has a probe."""
    folder = tmp_path_factory.mktemp("states-models") / MODEL_NAME
    write_random_model(folder, probe=True, state_input=STATE_INPUT)
    log = tmp_path_factory.mktemp("states-server") / "log.jsonl"
    with ServerProcess(log, "--models", str(folder)) as process:
        yield process.wait_ready()
        assert process.stop() == 0, process.errors()


@pytest.fixture(scope="session")
def states_rest(states_server: ServerProcess) -> Iterator[httpx.Client]:
    """An HTTP client of the server whose model takes states."""
    with httpx.Client(base_url=states_server.url, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="session")
def states_rpc(states_server: ServerProcess) -> Iterator[PlannerClient]:
    """A gRPC client of the server whose model takes states."""
    with PlannerClient(states_server.target) as client:
        yield client


@pytest.fixture(scope="session")
def rest(server: ServerProcess) -> Iterator[httpx.Client]:
    """An HTTP client of the server."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="session")
def rpc(server: ServerProcess) -> Iterator[PlannerClient]:
    """A gRPC client of the server."""
    with PlannerClient(server.target) as client:
        yield client


@pytest.fixture(scope="session", params=DRIVERS)
def driver(request: pytest.FixtureRequest, rest: httpx.Client, rpc: PlannerClient) -> Driver:
    """Both protocols in turn. Each takes and returns JSON documents."""
    return RestDriver(rest) if request.param == "rest" else GrpcDriver(rpc)


@pytest.fixture(scope="session", params=DRIVERS)
def states_driver(
    request: pytest.FixtureRequest, states_rest: httpx.Client, states_rpc: PlannerClient
) -> Driver:
    """Both protocols in turn, to the server whose model takes states."""
    return RestDriver(states_rest) if request.param == "rest" else GrpcDriver(states_rpc)
