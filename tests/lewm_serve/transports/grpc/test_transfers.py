"""Messages that never arrive, answers that nobody reads, connections that do nothing."""

import gzip
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, frame
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.http2 import DATA, HEADERS, PING, PLAN, Http2Connection, message_head
from tests.lewm_serve.support.requests import SMALL_SOLVER
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

MIB = 1 << 20
MAX_BODY_BYTES = 4 * MIB
MAX_HELD_BYTES = 64 * MIB
MAX_CONNECTIONS = 40
METADATA = (("x-request-id", "hostile"),)
HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[ServerProcess]:
    """A server that waits two seconds for a message."""
    log = tmp_path_factory.mktemp("impatient") / "log.jsonl"
    limits = {
        "receive-s": 2,
        "max-body-bytes": MAX_BODY_BYTES,
        "max-held-bytes": MAX_HELD_BYTES,
        "max-connections": MAX_CONNECTIONS,
    }
    flags = [text for name, value in limits.items() for text in (f"--{name}", str(value))]
    with ServerProcess(log, "--models", str(model_folder), *flags).wait_ready() as server:
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.errors()


@pytest.fixture
def connection(impatient: ServerProcess) -> Iterator[Http2Connection]:
    with Http2Connection(impatient.grpc_port) as connection:
        yield connection


def make_plan(server: ServerProcess) -> None:
    """A plan of another client."""
    with PlannerClient(server.target) as robot:
        assert robot.plan([picture(0)], picture(1), solver=SMALL_SOLVER).status == "completed"


def plan_message() -> bytes:
    request = pb.PlanRequest(
        frames=[frame(picture(0))], goal=frame(picture(1)), solver=pb.SolverSettings(**SMALL_SOLVER)
    )
    return request.SerializeToString()


def wait_ended(connection: Http2Connection, stream: int) -> bytes:
    """Wait for the end of a stream, and return what the server has sent on it."""

    def is_ended() -> bool:
        connection.receive(0.02)
        return stream in connection.ended or connection.closed

    wait_until(is_ended)
    return connection.received[stream]


@pytest.mark.parametrize("connections", [1, 20])
def test_incomplete_messages_hold_bounded_memory(
    connections: int, impatient: ServerProcess
) -> None:
    """240 MiB are sent in messages that stay incomplete. The plans of a robot are not refused."""
    part, streams = 6 * MIB, 40
    answers: list[bytes] = []

    def attack() -> None:
        with ExitStack() as stack:
            clients = [
                stack.enter_context(Http2Connection(impatient.grpc_port))
                for _ in range(connections)
            ]
            for index in range(streams):
                client = clients[index % connections]
                stream = client.start_call(PLAN, METADATA)
                client.send_data(stream, message_head(part + MIB) + bytes(part))
                if index % 10 == 0:
                    make_plan(impatient)
            held = impatient.metric("lewm_held_bytes")
            assert held <= MAX_HELD_BYTES
            for client in clients:
                client.receive(0.1)
                answers.extend(client.received.values())

    make_plan(impatient)
    # Twice, because an allocator may keep what was free once.
    growth = [impatient.memory_growth_mib(attack) for _ in range(2)]
    assert min(growth) < 170, growth
    assert any(b"incomplete messages hold too many bytes" in answer for answer in answers)
    assert any(b"overloaded" in answer for answer in answers)
    wait_until(lambda: impatient.metric("lewm_held_bytes") == 0)


@pytest.mark.parametrize("method", [PLAN, HEALTH, WATCH, REFLECTION])
@pytest.mark.parametrize("data", [b"", message_head(MIB) + bytes(1000)], ids=["nothing", "part"])
def test_a_message_that_does_not_arrive_is_given_up(
    method: str, data: bytes, connection: Http2Connection
) -> None:
    stream = connection.start_call(method, METADATA)
    connection.send_data(stream, data)
    answer = wait_ended(connection, stream)
    assert b"message: not received within 2 s" in answer
    assert b"request_timeout" in answer
    assert not connection.closed


def test_a_message_that_does_not_arrive_is_logged(
    impatient: ServerProcess, connection: Http2Connection
) -> None:
    for request_id in ("late", "gone"):
        connection.start_call(PLAN, (("x-request-id", request_id),))
    (line,) = impatient.wait_logged("late")
    assert (line["code"], line["status"]) == ("request_timeout", "DEADLINE_EXCEEDED")
    with Http2Connection(impatient.grpc_port) as other:
        other.start_call(PLAN, (("x-request-id", "left"),))
        other.receive(0.2)
    (line,) = impatient.wait_logged("left")
    assert (line["code"], line["status"]) == ("cancelled", "CANCELLED")


def test_a_slow_message_is_answered(connection: Http2Connection) -> None:
    data = plan_message()
    data = message_head(len(data)) + data
    stream = connection.start_call()
    for index in range(5):
        start, end = index * len(data) // 5, (index + 1) * len(data) // 5
        connection.send_data(stream, data[start:end])
        time.sleep(0.2)
    answer = wait_ended(connection, stream)
    assert b"completed" in answer


def test_a_call_without_a_message_is_refused(connection: Http2Connection) -> None:
    stream = connection.start_call()
    connection.send_frame(DATA, 1, stream, b"")
    assert b"malformed_message" in wait_ended(connection, stream)


@pytest.mark.parametrize(
    "head",
    [message_head((1 << 32) - 1), message_head(2 * MAX_BODY_BYTES + 1), b"\x07" + bytes(4)],
    ids=["huge", "large", "no-flag"],
)
def test_heads_of_impossible_messages_are_refused_at_once(
    head: bytes, impatient: ServerProcess, connection: Http2Connection
) -> None:
    stream = connection.start_call()
    connection.send_data(stream, head + bytes(1000))
    wait_ended(connection, stream)
    make_plan(impatient)


def test_a_compressed_message_is_not_expanded(
    impatient: ServerProcess, connection: Http2Connection
) -> None:
    bomb = gzip.compress(bytes(64 * MIB))

    def attack() -> None:
        stream = connection.start_call(PLAN, (("grpc-encoding", "gzip"),))
        connection.send_data(stream, message_head(len(bomb), compressed=True) + bomb)
        assert b"grpc-status" in wait_ended(connection, stream)

    assert impatient.memory_growth_mib(attack) < 32


@pytest.mark.parametrize("method", ["/lewm.v1.PlannerService/ListModels", REFLECTION])
def test_an_answer_that_is_not_read_ends_the_connection(
    method: str, impatient: ServerProcess
) -> None:
    with Http2Connection(impatient.grpc_port, initial_window=0) as client:
        message = b"\x3a\x00" if method == REFLECTION else b""  # list the services
        stream = client.start_call(method)
        client.send_data(stream, message_head(len(message)) + message)
        client.send_frame(DATA, 1, stream, b"")

        def is_closed() -> bool:
            client.receive(0.02)
            return client.closed

        wait_until(is_closed)
    wait_until(lambda: impatient.metric("lewm_held_bytes") == 0)
    make_plan(impatient)


def test_connections_that_do_nothing_make_room(impatient: ServerProcess) -> None:
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Http2Connection(impatient.grpc_port))
            for _ in range(MAX_CONNECTIONS + 10)
        ]

        def count_closed() -> int:
            for client in clients:
                client.receive()
            return sum(client.closed for client in clients)

        wait_until(lambda: count_closed() > 10)
        make_plan(impatient)
        assert impatient.get("/healthz").status_code == 200
    wait_until(lambda: "nearly too many gRPC connections" in impatient.errors())


def test_a_connection_that_says_nothing_is_closed(impatient: ServerProcess) -> None:
    address = ("127.0.0.1", impatient.grpc_port)
    with socket.create_connection(address, timeout=PATIENCE_S) as client:
        while client.recv(1 << 16):  # the server's settings, then the end
            pass


def test_endless_metadata_is_refused(impatient: ServerProcess) -> None:
    block = b"\x00\x01a\x7f" + b"\x80\x3e" + bytes(b"x" * (127 + 31 * 256))

    def attack() -> None:
        with Http2Connection(impatient.grpc_port) as client:
            client.send_frame(HEADERS, 0, 1, block[:8000])
            for _ in range(5000):
                client.send_frame(9, 0, 1, bytes(8000))  # continuations
                if client.closed:
                    break
                client.receive()
            client.receive(0.5)
            assert client.closed

    assert impatient.memory_growth_mib(attack) < 64
    make_plan(impatient)


def test_large_metadata_is_refused(impatient: ServerProcess, connection: Http2Connection) -> None:
    stream = connection.start_call(PLAN, [(f"name-{index}", "x" * 100) for index in range(140)])
    message = plan_message()
    connection.send_data(stream, message_head(len(message)) + message)
    wait_ended(connection, stream)
    make_plan(impatient)


def test_a_flood_of_pings_does_no_harm(
    impatient: ServerProcess, connection: Http2Connection
) -> None:
    def attack() -> None:
        for number in range(20_000):
            connection.send_frame(PING, 0, 0, struct.pack(">Q", number))
            connection.receive()

    assert impatient.memory_growth_mib(attack) < 32
    make_plan(impatient)
