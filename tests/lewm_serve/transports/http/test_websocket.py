"""WebSockets: what slow, large, many and hostile clients may take, and how connections end."""

import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.lewm_serve.support.certificates import Authority, CertificateFiles, client_context
from tests.lewm_serve.support.endless_plan import ENDLESS_SOLVER
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.openpi import OBSERVATION, OpenpiConnection, openpi, pack
from tests.lewm_serve.support.raw_http import RawConnection, get
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S, wait_until

MIB = 1 << 20
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
)


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[ServerProcess]:
    """A server that takes three connections, and waits one second for a message."""
    log = tmp_path_factory.mktemp("impatient") / "log.jsonl"
    limits = ["--receive-s", "1", "--max-connections", "3"]
    with ServerProcess(log, "--models", str(model_folder), *limits) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[ServerProcess]:
    """A server that holds two MiB of requests, of one MiB each."""
    log = tmp_path_factory.mktemp("small") / "log.jsonl"
    limits = ["--max-body-bytes", str(MIB), "--max-held-bytes", str(2 * MIB)]
    with ServerProcess(log, "--models", str(model_folder), *limits) as process:
        yield process.wait_ready()


def header(first: int, size: int) -> bytes:
    """The header of a masked frame, whose mask changes nothing."""
    if size < 126:
        return bytes([first, 0x80 | size, 0, 0, 0, 0])
    return struct.pack(">BBQI", first, 0x80 | 127, size, 0)


def raw_websocket(server: ServerProcess, receive_buffer: int | None = None) -> RawConnection:
    """A connection that speaks WebSocket, whose metadata has been read."""
    connection = RawConnection(server, receive_buffer)
    connection.send(HANDSHAKE % b"")
    assert connection.read_answer().status == 101
    assert read_frame(connection)[0] == 0x82
    return connection


def read_frame(connection: RawConnection) -> tuple[int, bytes]:
    """The next frame of the server: its first byte, and its content."""
    first, size = connection.read(2)
    if size == 126:
        (size,) = struct.unpack(">H", connection.read(2))
    elif size == 127:
        (size,) = struct.unpack(">Q", connection.read(8))
    return first, connection.read(size)


def read_close(connection: RawConnection) -> tuple[list[str], int, str]:
    """What the server says before it closes the connection: texts, the code and the reason."""
    texts = []
    while True:
        first, content = read_frame(connection)
        if first == 0x81:
            texts.append(content.decode())
        if first == 0x88:
            return texts, int.from_bytes(content[:2], "big"), content[2:].decode()


def assert_planning(connection: OpenpiConnection) -> None:
    """Check that a connection gets plans."""
    answer = connection.infer(OBSERVATION)
    assert answer["status"] == "completed", answer


def test_answers_come_in_turn_and_are_repeatable(server: ServerProcess) -> None:
    with openpi(server) as connection:
        first = connection.infer(OBSERVATION)
        assert set(first["server_timing"]) == {"infer_ms"}
        again = connection.infer(OBSERVATION)
        assert set(again["server_timing"]) == {"infer_ms", "prev_total_ms"}
        assert (first["actions"] == again["actions"]).all()


def test_messages_in_fragments(server: ServerProcess) -> None:
    data = pack(OBSERVATION)
    with openpi(server) as connection:
        connection.websocket.send(data[start : start + 1000] for start in range(0, len(data), 1000))
        assert connection.receive()["status"] == "completed"


def test_an_observation_in_small_packets(server: ServerProcess) -> None:
    data = pack(OBSERVATION | {"observation/image": picture(0, 8), "goal/image": picture(1, 8)})
    with raw_websocket(server) as connection:
        for byte in header(0x82, len(data)) + data:
            connection.send(bytes([byte]))
        assert read_frame(connection)[0] == 0x82


def test_an_observation_right_behind_the_handshake(server: ServerProcess) -> None:
    data = pack(OBSERVATION)
    with RawConnection(server) as connection:
        connection.send(HANDSHAKE % b"", header(0x82, len(data)) + data)
        assert connection.read_answer().status == 101
        assert [read_frame(connection)[0] for _ in range(2)] == [0x82, 0x82]


def test_a_path_of_no_websocket_ignores_the_offer(server: ServerProcess) -> None:
    with (
        pytest.raises(InvalidStatus, match="404"),
        openpi(server, uri=f"ws://127.0.0.1:{server.http_port}/ws"),
    ):
        pass


@pytest.mark.parametrize(
    ("field", "status"),
    [
        (b"Sec-WebSocket-Version: 12", 404),
        (b"Content-Length: 3", 404),
        (b"Content-Length: 0", 101),
        (b"Connection: keep-alive", 101),
    ],
    ids=["two versions", "body", "no body", "two options"],
)
def test_a_head_that_does_not_offer_a_websocket_is_answered(
    server: ServerProcess, field: bytes, status: int
) -> None:
    with RawConnection(server) as connection:
        connection.send(HANDSHAKE % (field + b"\r\n"), b"abc")
        assert connection.read_answer().status == status


def test_a_slow_message_is_refused_and_recorded(impatient: ServerProcess) -> None:
    with raw_websocket(impatient) as connection:
        connection.send(header(0x82, 1000), b"x")
        (text,), code, reason = read_close(connection)
    assert text == reason == "request_timeout: message: not received within 1 s"
    assert code == 1008
    assert impatient.metric(
        'lewm_requests_total{code="request_timeout",endpoint="plan",protocol="openpi"}'
    )


def test_an_idle_connection_is_not_slow(impatient: ServerProcess) -> None:
    with openpi(impatient) as connection:
        with raw_websocket(impatient) as slow:  # closed after a time that is too short for it
            slow.send(header(0x82, 1000), b"x")
            read_close(slow)
        assert_planning(connection)


def test_a_large_message_is_refused_and_recorded(small: ServerProcess) -> None:
    with raw_websocket(small) as connection:
        connection.send(header(0x82, 2 * MIB))
        (text,), code, _ = read_close(connection)
        connection.send_in_vain([b"x" * MIB] * 20)
    assert text == f"body_too_large: message: received more than {MIB} bytes, the maximum"
    assert code == 1009
    series = 'lewm_requests_total{code="body_too_large",endpoint="plan",protocol="openpi"}'
    assert small.metric(series) == 1


def test_incomplete_messages_count_as_held(small: ServerProcess) -> None:
    part = header(0x82, MIB) + b"x" * (MIB - 1_000)
    with ExitStack() as stack:
        first, second = (stack.enter_context(raw_websocket(small)) for _ in range(2))
        first.send(part)
        second.send(part)
        wait_until(lambda: small.metric("lewm_held_bytes") > 1.9 * MIB)
        with openpi(small) as refused:
            answer = refused.infer(OBSERVATION)
            assert answer.startswith("overloaded: ")
            with pytest.raises(ConnectionClosed) as closed:
                refused.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
    wait_until(lambda: small.metric("lewm_held_bytes") == 0)
    with openpi(small) as connection:
        assert_planning(connection)
        assert small.metric("lewm_held_bytes") == 0


def test_many_goals_are_kept_within_a_bound() -> None:
    from lewm_serve.transports.openpi.session import Goals

    goals = Goals(max_bytes=100)
    first, second, third = (object() for _ in range(3))
    goals.keep(first, {"pixels": {"data": bytes(40)}})  # type: ignore[arg-type]
    goals.keep(second, {"image": bytes(40)})  # type: ignore[arg-type]
    assert goals.get(first) is not None  # type: ignore[arg-type]
    goals.keep(third, {"latent_id": "x" * 40})  # type: ignore[arg-type]
    assert goals.get(second) is None  # type: ignore[arg-type]
    assert goals.get(first) == {"pixels": {"data": bytes(40)}}  # type: ignore[arg-type]
    goals.forget(first)  # type: ignore[arg-type]
    goals.forget(third)  # type: ignore[arg-type]
    assert goals._bytes == 0


def test_one_slow_client_harms_no_other(server: ServerProcess) -> None:
    """It neither reads nor finishes what it sends, and others get their plans."""
    data = pack(OBSERVATION)
    with raw_websocket(server, receive_buffer=1024) as slow, openpi(server) as connection:
        slow.send(header(0x82, len(data)) + data)
        slow.send(header(0x82, len(data)) + data[:100])
        for _ in range(3):
            assert_planning(connection)
        slow.send(data[100:])
        assert [read_frame(slow)[0] for _ in range(2)] == [0x82, 0x82]


@pytest.mark.parametrize(
    "flood",
    [header(0x89, 0) * 5000, header(0x02, 0) + header(0x00, 0) * 5000],
    ids=["pings", "fragments"],
)
def test_tiny_frames_are_limited(server: ServerProcess, flood: bytes) -> None:
    with raw_websocket(server) as connection, openpi(server) as other:
        connection.send_in_vain([flood])
        assert read_close(connection)[1:] == (1008, "too many small frames")
        assert_planning(other)


def test_messages_that_do_not_wait_for_answers_are_limited(server: ServerProcess) -> None:
    data = pack(OBSERVATION | {"solver": ENDLESS_SOLVER})
    with raw_websocket(server) as connection:
        connection.send_in_vain([header(0x82, len(data)) + data] * 5)
        assert read_close(connection)[1:] == (1008, "expected one message at a time")
    wait_until(lambda: server.metric("lewm_active_plans") == 0)
    wait_until(lambda: server.metric("lewm_held_bytes") == 0)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (header(0x81, 2) + b"{}", 1003),
        (header(0x83, 0), 1002),
        (b"\x82\x05hello", 1002),
        (header(0xC2, 0), 1002),
        (header(0x00, 0), 1002),
        (header(0x88, 0), 1005),
    ],
    ids=["text", "opcode", "no mask", "reserved bit", "continuation", "close"],
)
def test_the_end_of_a_connection(server: ServerProcess, sent: bytes, code: int) -> None:
    with raw_websocket(server) as connection:
        connection.send(sent)
        assert read_close(connection)[1] == (0 if code == 1005 else code)
        if code != 1003:
            assert connection.is_closed()


def test_a_ping_is_answered_while_a_plan_is_made(server: ServerProcess) -> None:
    data = pack(OBSERVATION | {"solver": ENDLESS_SOLVER})
    with raw_websocket(server) as connection:
        connection.send(header(0x82, len(data)) + data)
        wait_until(lambda: server.metric("lewm_active_plans") == 1)
        connection.send(header(0x89, 2) + b"hi")
        assert read_frame(connection) == (0x8A, b"hi")
    wait_until(lambda: server.metric("lewm_active_plans") == 0)


@pytest.mark.parametrize("how", ["close frame", "end", "reset"])
def test_a_plan_is_dropped_when_its_client_goes_away(server: ServerProcess, how: str) -> None:
    cancelled = 'lewm_requests_total{code="cancelled",endpoint="plan",protocol="openpi"}'
    before = server.metric(cancelled)
    data = pack(OBSERVATION | {"solver": ENDLESS_SOLVER})
    with raw_websocket(server) as connection:
        connection.send(header(0x82, len(data)) + data)
        wait_until(lambda: server.metric("lewm_active_plans") == 1)
        if how == "close frame":
            connection.send(header(0x88, 0))
        elif how == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if how != "close frame":
            connection.close()
        wait_until(lambda: server.metric("lewm_active_plans") == 0)
    wait_until(lambda: server.metric(cancelled) == before + 1)


def test_the_connection_that_has_waited_longest_makes_room(impatient: ServerProcess) -> None:
    wait_until(lambda: all_slots_are_free(impatient))
    with ExitStack() as stack:
        waiting = [stack.enter_context(openpi(impatient)) for _ in range(3)]
        time.sleep(1.1)  # `connections.MIN_WAITING_S`
        for connection in waiting[1:]:
            assert_planning(connection)
        with openpi(impatient) as new:
            assert_planning(new)
        with pytest.raises(ConnectionClosed):
            waiting[0].infer(OBSERVATION)
        for connection in waiting[1:]:
            assert_planning(connection)


def all_slots_are_free(server: ServerProcess) -> bool:
    """Whether three connections can be opened for more than probes."""
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=server.url)) for _ in range(3)]
        return all(client.get("/models").status_code == 200 for client in clients)


def test_web_pages_of_other_origins_are_refused(server: ServerProcess) -> None:
    with pytest.raises(InvalidStatus, match="403"), openpi(server, origin="http://evil.example"):
        pass
    own = f"http://127.0.0.1:{server.http_port}"
    with openpi(server, origin=own) as connection:
        assert_planning(connection)


def test_over_tls_and_below_a_prefix(tmp_path: Path, model_folder: Path) -> None:
    files, authority = CertificateFiles.in_folder(tmp_path), Authority()
    files.write(authority.issue())
    flags = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--models"]
    flags += [str(model_folder), "--root-path", "/lewm"]
    with ServerProcess(tmp_path / "log", *flags).wait_ready() as server:
        context = client_context(tmp_path, authority)
        for path in ("", "/lewm/"):
            uri = f"wss://127.0.0.1:{server.http_port}{path}"
            with openpi(server, ssl=context, uri=uri) as connection:
                assert_planning(connection)


def test_a_server_that_loads_refuses_connections(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log").wait_listening() as server:
        with pytest.raises(InvalidStatus) as refused, openpi(server):
            pytest.skip("the model was loaded before the client connected")
        response = refused.value.response
        assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
        assert b'"loading"' in (response.body or b"")


def test_draining_finishes_plans_and_closes_connections(tmp_path: Path, model_folder: Path) -> None:
    with ServerProcess(tmp_path / "log", "--models", str(model_folder)).wait_ready() as server:
        with openpi(server) as idle, openpi(server) as busy:
            busy.websocket.send(pack(OBSERVATION | {"solver": {"samples": 300, "iterations": 30}}))
            wait_until(lambda: server.metric("lewm_active_plans") == 1)
            server.signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                idle.receive()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
                1001,
                "the server is shutting down",
            )
            assert busy.receive()["status"] == "completed"
            with pytest.raises(ConnectionClosed, match="1001"):
                busy.receive()
        assert server.wait_stopped() == 0, server.errors()
        assert "error" not in {line["level"] for line in server.log_lines()}


def test_a_server_that_leaves_answers_once_more(tmp_path: Path, model_folder: Path) -> None:
    flags = ["--models", str(model_folder), "--drain-lag-s", "60"]
    with ServerProcess(tmp_path / "log", *flags).wait_ready() as server, openpi(server) as client:
        server.signal(signal.SIGTERM)
        wait_until(lambda: server.get("/readyz").status_code == 503)
        assert_planning(client)
        with pytest.raises(ConnectionClosed, match="1001"):
            client.receive()
        server.process.kill()


def test_many_connections_plan_at_the_same_time(server: ServerProcess) -> None:
    answers: list[Any] = []

    def drive() -> None:
        with openpi(server) as connection:
            answers.extend(connection.infer(OBSERVATION)["actions"].tolist() for _ in range(3))

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(answers) == 24
    assert all(answer == answers[0] for answer in answers)


def test_other_requests_on_the_port_go_on(server: ServerProcess) -> None:
    with openpi(server), RawConnection(server) as connection:
        connection.send(get("/healthz"), get("/readyz"))
        assert [connection.read_answer().status for _ in range(2)] == [200, 200]
        assert httpx.post(f"{server.url}/plan", json=plan()).status_code == 200


def test_the_reader_of_the_library_is_the_one_that_is_known() -> None:
    """`WebSocketConnection` asks it how many bytes of a message it holds."""
    from websockets.protocol import OPEN as STATE_OPEN
    from websockets.server import ServerProtocol

    protocol = ServerProtocol(state=STATE_OPEN)
    protocol.receive_data(header(0x82, 100) + b"x" * 40)
    assert (len(protocol.reader.buffer), protocol.events_received()) == (40, [])
    protocol.receive_data(b"x" * 60)
    assert not protocol.reader.buffer
    assert len(protocol.events_received()) == 1
