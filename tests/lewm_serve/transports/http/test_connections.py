"""What one connection may hold, how long, and what becomes of it when its client goes away."""

import itertools
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lewm_serve.transports.http.connections import PROBE_CONNECTIONS, ConnectionSlots
from lewm_serve.transports.http.protocol import MAX_PIPELINED_BYTES
from tests.lewm_serve.support.endless_plan import ENDLESS_SOLVER
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.raw_http import RawConnection, chunked, get, post, post_head
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import wait_until

MAX_CONNECTIONS = 3
MIB = 1 << 20


@pytest.fixture(scope="module")
def crowded(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[ServerProcess]:
    """A server with few connections."""
    log = tmp_path_factory.mktemp("crowded") / "log.jsonl"
    flags = ["--max-connections", str(MAX_CONNECTIONS)]
    with ServerProcess(log, "--models", str(model_folder), *flags) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[ServerProcess]:
    """A server that waits one second for what a client should do."""
    log = tmp_path_factory.mktemp("impatient") / "log.jsonl"
    with ServerProcess(log, "--models", str(model_folder), "--receive-s", "1") as process:
        yield process.wait_ready()


def close(connection: RawConnection) -> None:
    """Close a connection as programs do when they end."""
    connection.close()


def reset(connection: RawConnection) -> None:
    """Close a connection with a reset."""
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def shut_down(connection: RawConnection) -> None:
    """Say that nothing more will be sent."""
    connection.socket.shutdown(socket.SHUT_WR)


PIPELINED = {
    "nothing": b"",
    "one": get("/healthz"),
    "part-of-a-head": b"GET /healthz HT",
    "a-body": post_head("/plan", 1_000_000) + b" " * 100_000,
    "thousands": get("/healthz") * 10_000,
}


@pytest.mark.parametrize("leave", [close, reset, shut_down])
@pytest.mark.parametrize("pipelined", PIPELINED.values(), ids=PIPELINED.keys())
def test_a_plan_is_dropped_whatever_follows_it_on_the_connection(
    server: ServerProcess, pipelined: bytes, leave: Callable[[RawConnection], None]
) -> None:
    wait_until(lambda: server.metric("lewm_active_plans") == 0)
    with RawConnection(server) as connection:
        connection.send(post("/plan", plan(solver=ENDLESS_SOLVER)))
        wait_until(lambda: server.metric("lewm_active_plans") == 1)
        connection.send(pipelined)
        leave(connection)
        wait_until(lambda: server.metric("lewm_active_plans") == 0)


def test_an_upload_is_dropped_when_its_client_goes_away(server: ServerProcess) -> None:
    wait_until(lambda: server.metric("lewm_held_bytes") == 0)
    with RawConnection(server) as connection:
        connection.send(post_head("/plan", MIB), b" " * 1000)
        wait_until(lambda: server.metric("lewm_held_bytes") == 1000)
    wait_until(lambda: server.metric("lewm_held_bytes") == 0)


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    request = post("/encode", {"frames": [pixels()]})
    _, _, body = request.partition(b"\r\n\r\n")
    in_chunks = post_head("/encode", None) + chunked(body, 100)
    paths = ["/healthz", "/nowhere", "/models", "/healthz"]
    with RawConnection(server) as connection:
        connection.send(request, *map(get, paths), in_chunks, request, get("/healthz") * 500)
        assert connection.read_answer().status == 200
        assert [connection.read_answer().status for _ in paths] == [200, 404, 200, 200]
        assert len(connection.read_answer().document["latents"]) == 1
        assert len(connection.read_answer().document["latents"]) == 1
        for _ in range(500):
            assert connection.read_answer().document == {"status": "ready"}


def test_thousands_of_pipelined_requests_take_no_memory(server: ServerProcess) -> None:
    """Their connection is closed after the answer that is due."""
    with ExitStack() as stack, server.paused_engine() as resume:
        connections = [stack.enter_context(RawConnection(server)) for _ in range(8)]

        def pipeline() -> None:
            for connection in connections:
                connection.send(post("/plan", plan()), get("/healthz") * 10_000)
            queued = 'lewm_queued_requests{endpoint="plan"}'
            wait_until(lambda: server.metric(queued) == len(connections))

        assert server.memory_growth_mib(pipeline) < 8
        resume()
        for connection in connections:
            answer = connection.read_answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert connection.is_closed()


def test_requests_that_wait_are_answered_up_to_a_limit(server: ServerProcess) -> None:
    count = MAX_PIPELINED_BYTES // len(get("/healthz")) - 10
    with RawConnection(server) as connection, server.paused_engine() as resume:
        connection.send(post("/plan", plan()), get("/healthz") * count)
        wait_until(lambda: server.metric('lewm_queued_requests{endpoint="plan"}') == 1)
        resume()
        answers = [connection.read_answer().status for _ in range(1 + count)]
    assert answers == [200] * (1 + count)


ENDLESS = {
    "trailers": (post_head("/plan", None) + b"2\r\n{}\r\n0\r\n", b"a:b\r\n" * 10_000, 431),
    "long-trailer": (post_head("/plan", None) + b"2\r\n{}\r\n0\r\na: ", b"b" * 50_000, 400),
    "extension": (post_head("/plan", None) + b"2;", b"x" * 50_000, 400),
    "chunk-size": (post_head("/plan", None), b"0" * 50_000, 400),
    "small-chunks": (post_head("/plan", None), b"1;x=y\r\n \r\n" * 10_000, 400),
    "headers": (b"GET /healthz HTTP/1.1\r\n", b"a:b\r\n" * 10_000, 431),
    "long-header": (b"GET /healthz HTTP/1.1\r\na: ", b"b" * 50_000, 400),
    "path": (b"GET /", b"a" * 50_000, 400),
    "blank-lines": (b"", b"\r\n" * 10_000, 431),
    "white-space": (b"GET ", b" " * 50_000, 400),
}


@pytest.mark.parametrize(("start", "more", "status"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_surrounds_content_is_limited(
    server: ServerProcess, start: bytes, more: bytes, status: int
) -> None:
    def send() -> None:
        with RawConnection(server) as connection:
            connection.send(start)
            # What is sent after the refusal is dropped, so that the client can read it.
            connection.send_in_vain(itertools.repeat(more, 400))
            shut_down(connection)
            answer = connection.read_answer()
            code = "too_many_headers" if status == 431 else "malformed_http"
            assert (answer.status, answer.document["code"]) == (status, code)
            assert answer.headers["connection"] == "close"
            assert connection.is_closed()

    assert server.memory_growth_mib(send) < 8


UNFINISHED = (
    post_head("/nowhere", 10) + b"{",
    post_head("/nowhere", None) + b"5\r\n{",
    b"GET /healthz HTTP/1.1\r\nContent-Length: 10\r\n\r\n",
    post_head("/nowhere", 10, b"Expect: 100-continue"),
)


def test_a_body_that_never_ends_does_not_keep_its_connection(server: ServerProcess) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(server)) for _ in UNFINISHED]
        for connection, request in zip(connections, UNFINISHED, strict=True):
            connection.send(request)
            assert connection.read_answer().status in (200, 404)
        assert all(connection.is_closed() for connection in connections)


def test_a_body_that_comes_after_its_answer_keeps_its_connection(server: ServerProcess) -> None:
    with RawConnection(server) as connection:
        for _ in range(3):
            connection.send(post_head("/nowhere", 10))
            assert connection.read_answer().status == 404
            connection.send(b"GET / HTTP")
        connection.send(get("/healthz"))
        assert connection.read_answer().document == {"status": "ready"}


def test_a_client_that_does_not_read_is_disconnected(impatient: ServerProcess) -> None:
    with RawConnection(impatient, receive_buffer=4096) as connection:
        connection.send(get("/openapi.json") * 200)
        assert open_connections(impatient) == 1
        wait_until(lambda: open_connections(impatient) == 0)


def open_connections(server: ServerProcess) -> int:
    """How many connections to its HTTP port the server has, without those that it accepts now."""
    local = f"0100007F:{server.http_port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    established = "01"
    return sum(line.split()[1:4:2] == [local, established] for line in lines)


def test_probes_are_answered_when_all_connections_are_in_use(crowded: ServerProcess) -> None:
    with ExitStack() as stack:
        uploads = [stack.enter_context(RawConnection(crowded)) for _ in range(MAX_CONNECTIONS)]
        for upload in uploads:
            upload.send(post_head("/encode", 100), b"{")
        wait_until(lambda: crowded.metric("lewm_held_bytes") == len(uploads))
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"):
            with RawConnection(crowded) as probe:
                probe.send(get(path))
                answer = probe.read_answer()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert probe.is_closed()
        for request in (b"", get("/models"), post("/encode", {"frames": [pixels()]})):
            with RawConnection(crowded) as other:
                other.send(request)
                answer = other.read_answer()
                assert (answer.status, answer.document["code"]) == (429, "overloaded")
                assert answer.headers["retry-after"]
                assert other.is_closed()
        silent = [stack.enter_context(RawConnection(crowded)) for _ in range(2 * PROBE_CONNECTIONS)]
        assert crowded.get("/healthz").status_code == 200
        assert len(silent) > PROBE_CONNECTIONS


def test_a_connection_that_waits_makes_room_for_a_new_one(crowded: ServerProcess) -> None:
    def is_encoded() -> bool:
        with RawConnection(crowded) as connection:
            connection.send(post("/encode", {"frames": [pixels()]}))
            return connection.read_answer().status == 200

    wait_until(is_encoded)
    with ExitStack() as stack:
        idle, unfinished, slow = (
            stack.enter_context(RawConnection(crowded)) for _ in range(MAX_CONNECTIONS)
        )
        idle.send(get("/healthz"))
        assert idle.read_answer().status == 200
        unfinished.send(post_head("/nowhere", 10))
        assert unfinished.read_answer().status == 404
        slow.send(b"GET /hea")
        wait_until(is_encoded)
        wait_until(is_encoded)


def test_a_server_that_drains_closes_its_connections(tmp_path: Path, model_folder: Path) -> None:
    flags = ("--models", str(model_folder), "--grace-s", "600")
    with (
        ServerProcess(tmp_path / "log", *flags).wait_ready() as server,
        ExitStack() as stack,
        server.paused_engine() as resume,
    ):
        idle, admitted, uploading, late, chunks = (
            stack.enter_context(RawConnection(server)) for _ in range(5)
        )
        idle.send(get("/healthz"))
        assert idle.read_answer().status == 200
        body = post("/plan", plan())
        admitted.send(body)
        wait_until(lambda: server.metric('lewm_queued_requests{endpoint="plan"}') == 1)
        uploading.send(body[:-1])
        wait_until(lambda: server.metric("lewm_held_bytes") > len(body))
        server.signal(signal.SIGTERM)
        server.wait_draining()
        assert idle.is_closed()
        uploading.send(body[-1:])
        late.send(post_head("/plan", 1000))  # refused before the body is sent
        chunks.send(post_head("/plan", None, b"Expect: 100-continue"))
        for connection in (uploading, late, chunks):
            answer = connection.read_answer()
            assert (answer.status, answer.document["code"]) == (503, "draining")
            assert answer.headers["connection"] == "close"
            assert answer.headers["retry-after"]
            assert connection.is_closed()
        resume()
        answer = admitted.read_answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert admitted.is_closed()
        assert server.wait_stopped() == 0


class StandIn:
    """A connection without a network."""

    evicted = False

    def evict(self) -> None:
        """Take note."""
        self.evicted = True


def test_the_connection_that_has_waited_longest_makes_room() -> None:
    slots = ConnectionSlots(limit=3, min_waiting_s=0.0)
    first, second, third, fourth, fifth, sixth = connections = [StandIn() for _ in range(6)]
    assert all(map(slots.take, (first, second, third)))
    slots.set_busy(first)
    slots.set_busy(second)
    slots.set_waiting(second)  # after the third
    assert slots.take(fourth)
    assert slots.take(fifth)
    slots.set_waiting(third)  # has no slot any more
    assert [connection.evicted for connection in connections] == [False, True, True] + [False] * 3
    slots.set_busy(fourth)
    slots.set_busy(fifth)
    assert not slots.take(sixth)
    slots.release(first)
    assert slots.take(sixth)


def test_a_connection_that_has_not_waited_long_keeps_its_slot() -> None:
    slots = ConnectionSlots(limit=1, min_waiting_s=1000.0)
    waiting = StandIn()
    assert slots.take(waiting)
    assert not slots.take(StandIn())
    assert not waiting.evicted
