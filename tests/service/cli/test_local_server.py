"""A server that others start for themselves."""

from pathlib import Path

import grpc
import pytest

from service.cli.local_server import LocalServerError, local_server
from service.rpc.client import PlannerClient, PlannerError
from tests.service.checkpoint import NAME


def test_a_server_lives_as_long_as_it_is_needed(model_folder: Path) -> None:
    with local_server(model_folder, max_frames=1) as server:
        assert server.models == (NAME,)
        assert server.url.endswith(str(server.http_port))
        with PlannerClient(server.target) as client:
            assert [model.name for model in client.models()] == [NAME]
    with PlannerClient(server.target) as client, pytest.raises(PlannerError) as caught:
        client.models(timeout_s=5)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


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


def test_nobody_waits_for_ever(model_folder: Path) -> None:
    with (
        pytest.raises(LocalServerError, match="not ready after 0 s"),
        local_server(model_folder, timeout_s=0.01),
    ):
        pass
