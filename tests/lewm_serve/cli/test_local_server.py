"""A server in a process of its own that lives as long as a `with` block."""

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from lewm_client import PlannerClient, PlannerError
from lewm_serve.cli.local_server import LocalServerError, local_server
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.server_process import ROOT
from tests.patience import PATIENCE_S

USING_PROGRAM = """
import signal, sys
from pathlib import Path
from lewm_serve.cli.local_server import local_server

with local_server(Path(sys.argv[1])) as server:
    print(server.target, flush=True)
    signal.pause()
"""


def test_a_server_ends_with_its_block(model_folder: Path) -> None:
    with local_server(model_folder, max_frames=1) as server:
        assert server.models == (MODEL_NAME,)
        assert server.url.endswith(str(server.http_port))
        with PlannerClient(server.target) as client:
            assert [model.name for model in client.models()] == [MODEL_NAME]
    with PlannerClient(server.target) as client, pytest.raises(PlannerError) as caught:
        client.models(timeout_s=PATIENCE_S)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


def test_a_server_ends_with_a_terminated_program(model_folder: Path) -> None:
    command = [sys.executable, "-c", USING_PROGRAM, str(model_folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        target = program.stdout.readline().strip()
        program.terminate()
        assert program.wait(PATIENCE_S) == 128 + signal.SIGTERM
    with PlannerClient(target) as client, pytest.raises(PlannerError) as caught:
        client.models(timeout_s=PATIENCE_S)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


def test_the_handler_of_sigterm_is_restored(model_folder: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with local_server(model_folder):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(LocalServerError, match=r"ended with code 1\n.*no/such/model"),
        local_server(Path("no/such/model")),
    ):
        pass


def test_a_server_that_refuses_its_settings_says_which() -> None:
    with (
        pytest.raises(LocalServerError, match=r"ended with code 2\n.*--max-pixels"),
        local_server(max_pixels=0),
    ):
        pass


def test_the_wait_for_a_server_is_limited(model_folder: Path) -> None:
    with (
        pytest.raises(LocalServerError, match=r"not ready after \d+ s"),
        local_server(model_folder, timeout_s=0.01),
    ):
        pass
