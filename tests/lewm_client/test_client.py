"""The client with servers that refuse, never answer, die or come back."""

import asyncio
import inspect
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import numpy as np
import pytest

from lewm.v1 import planner_pb2 as pb
from lewm_client import AsyncPlannerClient, EncodeResponse, PlannerClient, PlannerError
from lewm_client.errors import PlanOverdue
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

FRAME = np.zeros((64, 64, 3), np.uint8)


class FakeRpcError(grpc.RpcError):
    """An error as gRPC raises it."""

    def __init__(self, status: grpc.StatusCode, detail: str = "", **trailing: str) -> None:
        self._status = status
        self._detail = detail
        self._trailing = trailing

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._detail

    def trailing_metadata(self) -> Any:
        return tuple(self._trailing.items())


RETRY_AFTER_MINUTE = {"retry-after-ms": "60000"}
UNAVAILABLE = FakeRpcError(grpc.StatusCode.UNAVAILABLE)


class FakeEncode:
    """The stub's `Encode`, which fails a number of times and then responds."""

    def __init__(self, failures: int, error: FakeRpcError) -> None:
        self._failures = failures
        self._error = error
        self.timeouts: list[float] = []

    def __call__(self, _request: Any, timeout: float, metadata: Any) -> pb.EncodeResponse:
        assert metadata == ()
        self.timeouts.append(timeout)
        if len(self.timeouts) <= self._failures:
            raise self._error
        return pb.EncodeResponse(model="fake")


def encode(method: FakeEncode, *, retries: int, timeout_s: float = PATIENCE_S) -> EncodeResponse:
    """Encode a frame with the blocking client."""
    with PlannerClient("127.0.0.1:1", retries=retries) as client:
        client.stub = cast(Any, SimpleNamespace(Encode=method))
        return client.encode([FRAME], timeout_s=timeout_s)


def encode_by_asyncio(
    method: FakeEncode, *, retries: int, timeout_s: float = PATIENCE_S
) -> EncodeResponse:
    """Encode a frame with the asyncio client."""

    async def awaitable(*args: Any, **kwargs: Any) -> pb.EncodeResponse:
        return method(*args, **kwargs)

    async def run() -> EncodeResponse:
        async with AsyncPlannerClient("127.0.0.1:1", retries=retries) as client:
            client.stub = cast(Any, SimpleNamespace(Encode=awaitable))
            return await client.encode([FRAME], timeout_s=timeout_s)

    return asyncio.run(run())


both_clients = pytest.mark.parametrize("run", [encode, encode_by_asyncio])


def attempts_until_error(run: Any, error: FakeRpcError, retries: int, **arguments: float) -> int:
    """How often a method that always fails is called."""
    method = FakeEncode(100, error)
    with pytest.raises(PlannerError):
        run(method, retries=retries, **arguments)
    return len(method.timeouts)


@both_clients
def test_unavailable_is_retried_within_one_timeout(run: Any) -> None:
    method = FakeEncode(2, UNAVAILABLE)
    assert run(method, retries=3).model == "fake"
    first, second, third = method.timeouts
    assert PATIENCE_S >= first > second > third


@both_clients
def test_number_of_attempts_is_limited(run: Any) -> None:
    assert attempts_until_error(run, UNAVAILABLE, retries=2) == 3
    assert attempts_until_error(run, UNAVAILABLE, retries=0) == 1


@both_clients
def test_no_retry_that_would_be_after_the_timeout(run: Any) -> None:
    error = FakeRpcError(grpc.StatusCode.UNAVAILABLE, **RETRY_AFTER_MINUTE)
    assert attempts_until_error(run, error, retries=5, timeout_s=30) == 1


@pytest.mark.parametrize(
    "status",
    [
        status
        for status in grpc.StatusCode
        if status not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    ],
    ids=lambda status: status.name,
)
def test_other_errors_are_not_retried(status: grpc.StatusCode) -> None:
    assert attempts_until_error(encode, FakeRpcError(status, code="any"), retries=5) == 1


@both_clients
def test_internal_of_a_proxy_is_retried(run: Any) -> None:
    method = FakeEncode(2, FakeRpcError(grpc.StatusCode.INTERNAL, "The actor died unexpectedly"))
    assert run(method, retries=2).model == "fake"


def test_error_of_the_server() -> None:
    trailing = {"code": "overloaded", "request_id": "r-1", "retry-after-ms": "250"}
    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    error = PlannerError(FakeRpcError(status, "the queue is full", **trailing))  # type: ignore[arg-type]
    assert (error.status, error.code, error.request_id) == (status, "overloaded", "r-1")
    assert (error.detail, error.retry_after_s) == ("the queue is full", 0.25)
    assert str(error) == "overloaded: the queue is full"
    assert error.temporary


@pytest.mark.parametrize(
    "error",
    [
        PlannerError(
            FakeRpcError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "the queue is full",
                **{"code": "overloaded", "request_id": "abc", "retry-after-ms": "1500"},
            )  # type: ignore[arg-type]
        ),
        PlanOverdue(),
    ],
    ids=["of the server", "overdue"],
)
def test_an_error_of_another_process_is_the_same(error: PlannerError) -> None:
    restored = pickle.loads(pickle.dumps(error))
    assert type(restored) is type(error)
    assert str(restored) == str(error)
    assert vars(restored) == vars(error)
    assert restored.temporary == error.temporary


def test_error_without_the_servers_metadata() -> None:
    error = PlannerError(UNAVAILABLE)  # type: ignore[arg-type]
    assert (error.code, error.request_id, error.retry_after_s) == ("unavailable", "", None)
    assert error.temporary


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "shape_mismatch"),
        (grpc.StatusCode.NOT_FOUND, "unknown_model"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "body_too_large"),
    ],
)
def test_error_of_a_wrong_request_is_not_temporary(status: grpc.StatusCode, code: str) -> None:
    assert not PlannerError(FakeRpcError(status, code=code)).temporary  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, np.inf, np.nan])
def test_a_call_without_a_finite_timeout_is_refused(timeout_s: float, silent_target: str) -> None:
    with PlannerClient(silent_target) as client, pytest.raises(ValueError, match="timeout_s"):
        client.models(timeout_s)


def test_a_server_that_never_answers(silent_target: str) -> None:
    with PlannerClient(silent_target) as client, pytest.raises(PlannerError) as caught:
        client.encode([FRAME], timeout_s=0.5)
    assert caught.value.temporary
    assert caught.value.code in ("deadline_exceeded", "unavailable")


async def test_the_asyncio_client_is_cancelled_and_ends_in_time(silent_target: str) -> None:
    async with AsyncPlannerClient(silent_target) as client:
        with pytest.raises(PlannerError) as caught:
            await client.encode([FRAME], timeout_s=0.5)
        assert caught.value.temporary
        encoding = asyncio.create_task(client.encode([FRAME], timeout_s=PATIENCE_S))
        await asyncio.sleep(0.05)
        encoding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await encoding


def test_both_clients_have_the_same_signatures() -> None:
    for name in ("encode", "predict", "plan", "models"):
        methods = [getattr(kind, name) for kind in (PlannerClient, AsyncPlannerClient)]
        blocking, asynchronous = map(inspect.signature, methods)
        assert blocking == asynchronous
        assert "timeout_s" in blocking.parameters


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    flags = ("--models", str(folder))
    with (
        ServerProcess(tmp_path / "first.log", *flags).wait_ready() as first,
        PlannerClient(first.target) as client,
        PlannerClient(first.target, retries=1000) as patient_client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert client.encode([FRAME]).latents
        first.signal(signal.SIGKILL)
        first.wait_stopped()
        with pytest.raises(PlannerError) as caught:
            client.encode([FRAME], timeout_s=5)
        assert caught.value.status is grpc.StatusCode.UNAVAILABLE

        encoding = pool.submit(patient_client.encode, [FRAME], timeout_s=PATIENCE_S)
        port = first.target.rpartition(":")[2]
        with ServerProcess(tmp_path / "second.log", *flags, "--grpc-port", port).wait_ready():
            # This call began while there was no server, and went on while the model was loading.
            assert encoding.result(PATIENCE_S).latents
            assert client.encode([FRAME]).latents
