"""The client against servers that die, come back, or never answer."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, PlannerError
from lewm_client.retries import call
from tests.lewm_serve.checkpoint import write_random_model
from tests.lewm_serve.process import ServerProcess
from tests.patience import PATIENCE_S

FRAME = np.zeros((64, 64, 3), np.uint8)


class Refusal(grpc.RpcError):
    """What gRPC raises."""

    def __init__(self, status: grpc.StatusCode, **trailing: str) -> None:
        self.status, self.trailing = status, tuple(trailing.items())

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> Any:
        return tuple((name.replace("_", "-"), value) for name, value in self.trailing)


class Method:
    """A method that refuses so many times, and then answers."""

    def __init__(self, refusals: int, refusal: Refusal) -> None:
        self.refusals, self.refusal = refusals, refusal
        self.timeouts: list[float] = []

    def __call__(self, _request: pb.EncodeRequest, timeout: float) -> pb.EncodeResponse:
        self.timeouts.append(timeout)
        if len(self.timeouts) <= self.refusals:
            raise self.refusal
        return pb.EncodeResponse()


def attempts(method: Method, retries: int, timeout_s: float = PATIENCE_S) -> int:
    """How often a call that fails was tried."""
    with pytest.raises(PlannerError):
        call(method, pb.EncodeRequest(), timeout_s, retries)
    return len(method.timeouts)


def test_unavailable_is_tried_again_within_one_timeout() -> None:
    method = Method(2, Refusal(grpc.StatusCode.UNAVAILABLE))
    call(method, pb.EncodeRequest(), PATIENCE_S, 3)
    assert len(method.timeouts) == 3
    assert PATIENCE_S >= method.timeouts[0] > method.timeouts[1] > method.timeouts[2]


def test_attempts_are_bounded() -> None:
    unavailable = Refusal(grpc.StatusCode.UNAVAILABLE)
    assert attempts(Method(9, unavailable), 2) == 3
    assert attempts(Method(9, unavailable), 0) == 1
    patient = Refusal(grpc.StatusCode.UNAVAILABLE, retry_after_ms="60000")
    assert attempts(Method(9, patient), 5, timeout_s=30) == 1  # it would be too late


@pytest.mark.parametrize(
    "status",
    set(grpc.StatusCode) - {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE},
    ids=lambda status: status.name,
)
def test_nothing_else_is_tried_again(status: grpc.StatusCode) -> None:
    assert attempts(Method(9, Refusal(status)), 5) == 1


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, np.inf, np.nan])
def test_a_call_without_an_end_is_refused(timeout_s: float, silent: str) -> None:
    with PlannerClient(silent) as client, pytest.raises(ValueError, match="timeout_s"):
        client.models(timeout_s)


def test_a_server_that_never_answers(silent: str) -> None:
    with PlannerClient(silent) as client, pytest.raises(PlannerError) as caught:
        client.encode([FRAME], timeout_s=0.5)
    assert caught.value.temporary
    assert caught.value.code in ("deadline_exceeded", "unavailable")


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    flags = ("--models", str(folder))
    with (
        ServerProcess(tmp_path / "first.log", *flags).wait_ready() as first,
        PlannerClient(first.target) as client,
        PlannerClient(first.target, retries=1000) as patient,
        ThreadPoolExecutor(1) as pool,
    ):
        assert client.encode([FRAME]).latents
        first.signal(signal.SIGKILL)
        first.wait_stopped()
        with pytest.raises(PlannerError) as caught:
            client.encode([FRAME], timeout_s=5)
        assert caught.value.status is grpc.StatusCode.UNAVAILABLE

        asking = pool.submit(patient.encode, [FRAME], timeout_s=PATIENCE_S)
        port = first.target.rpartition(":")[2]
        with ServerProcess(tmp_path / "second.log", *flags, "--grpc-port", port).wait_ready():
            # It waited through the death, the start and the loading.
            assert asking.result(PATIENCE_S).latents
            assert client.encode([FRAME]).latents
