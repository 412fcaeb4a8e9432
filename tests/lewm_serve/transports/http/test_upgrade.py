"""Offers to change the protocol are not taken, and are ignored (RFC 9110, section 7.8)."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.raw_http import RawConnection, chunked, get, post_head
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

BODY = json.dumps({"frames": [pixels()]}).encode()

OFFERS = {
    "java": (
        b"Connection: Upgrade, HTTP2-Settings",
        b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
        b"Upgrade: h2c",
    ),
    "curl": (
        b"Connection: Upgrade, HTTP2-Settings",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
    ),
    "websocket": (
        b"Upgrade: websocket",
        b"Connection: keep-alive, Upgrade",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    ),
    "upper-case": (b"UPGRADE: H2C", b"CONNECTION: UPGRADE"),
    "several": (b"Upgrade: h2c", b"Upgrade: websocket, TLS/1.0", b"Connection: upgrade"),
    "not-in-connection": (b"Upgrade: h2c",),
    "closing": (b"Upgrade: h2c", b"Connection: close, Upgrade"),
}

offers = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())


def assert_encoded(connection: RawConnection) -> None:
    """Check that the next answer is that to the body."""
    answer = connection.read_answer()
    assert (answer.status, len(answer.document["latents"])) == (200, 1), answer


@offers
def test_a_body_in_the_same_packet(server: ServerProcess, offer: tuple[bytes, ...]) -> None:
    head = post_head("/encode", len(BODY), *offer)
    with RawConnection(server) as connection:
        if offer is OFFERS["closing"]:
            connection.send(head, BODY)
            assert_encoded(connection)
            assert connection.is_closed()
        else:
            connection.send(head, BODY, head, BODY, get("/healthz"))
            assert_encoded(connection)
            assert_encoded(connection)
            assert connection.read_answer().document == {"status": "ready"}


@offers
def test_a_body_in_later_packets(server: ServerProcess, offer: tuple[bytes, ...]) -> None:
    head = post_head("/encode", len(BODY), *offer)
    with RawConnection(server) as connection:
        for part in (head[:70], head[70:-1], head[-1:], BODY[:1], BODY[1:]):
            connection.send(part)
        assert_encoded(connection)


@offers
def test_a_chunked_body(server: ServerProcess, offer: tuple[bytes, ...]) -> None:
    with RawConnection(server) as connection:
        connection.send(post_head("/encode", None, *offer))
        connection.send(chunked(BODY, 1000))
        assert_encoded(connection)


@offers
def test_a_body_after_100_continue(server: ServerProcess, offer: tuple[bytes, ...]) -> None:
    with RawConnection(server) as connection:
        connection.send(post_head("/encode", len(BODY), b"Expect: 100-continue", *offer))
        assert connection.read_answer().status == 100
        connection.send(BODY)
        assert_encoded(connection)


def test_a_body_that_looks_like_a_request_is_a_body(server: ServerProcess) -> None:
    hidden = b"GET /metrics HTTP/1.1\r\n\r\n"
    with RawConnection(server) as connection:
        connection.send(post_head("/encode", len(hidden), *OFFERS["java"]))
        connection.send(hidden, get("/healthz"))
        assert connection.read_answer().document["code"] == "malformed_json"
        assert connection.read_answer().document == {"status": "ready"}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param((b"Upgrade: h2c", b" folded"), id="folded"),
        pytest.param((b"Upgrade : h2c",), id="space"),
        pytest.param((b"Upgrade: h2c", b"Transfer-Encoding: chunked"), id="two-lengths"),
        pytest.param((b"Upgrade: h2c\rTransfer-Encoding: chunked",), id="carriage-return"),
    ],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(
    server: ServerProcess, fields: tuple[bytes, ...]
) -> None:
    with RawConnection(server) as connection:
        connection.send(post_head("/encode", len(BODY), b"Connection: Upgrade", *fields), BODY)
        answer = connection.read_answer()
        assert (answer.status, answer.document["code"]) == (400, "malformed_http")
        assert connection.is_closed()


def test_a_websocket_probe_gets_the_answer_of_its_path(server: ServerProcess) -> None:
    offer = b"\r\n".join([b"GET /ws HTTP/1.1", b"Host: x", *OFFERS["websocket"], b"", b""])
    with RawConnection(server) as connection:
        connection.send(offer)
        assert connection.read_answer().document["code"] == "unknown_route"
    assert "websocket" not in server.errors().lower()
    assert "Unsupported upgrade" not in server.errors()


def test_connect_is_refused(server: ServerProcess) -> None:
    with RawConnection(server) as connection:
        connection.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
        answer = connection.read_answer()
        assert (answer.status, answer.document["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"]
        assert connection.is_closed()
    (line,) = server.wait_logged(answer.headers["x-request-id"])
    assert line["status"] == 405


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_with_http2(server: ServerProcess, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_bytes(BODY)
    command = ["curl", "--silent", "--http2", "--header", "Content-Type: application/json"]
    command += ["--data-binary", f"@{body}", f"{server.url}/encode"]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE_S)
    assert len(json.loads(answer.stdout)["latents"]) == 1


JAVA_CLIENT = """
import java.net.URI;
import java.net.http.*;
import java.nio.file.*;

public class Post {
    public static void main(String[] arguments) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[1]))).build();
        HttpClient client = HttpClient.newHttpClient();
        System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"""


@pytest.mark.skipif(shutil.which("javac") is None, reason="needs a JDK")
def test_the_http_client_of_java(server: ServerProcess, tmp_path: Path) -> None:
    body, program = tmp_path / "body.json", tmp_path / "Post.java"
    body.write_bytes(BODY)
    program.write_text(JAVA_CLIENT)
    command = ["java", str(program), f"{server.url}/encode", str(body)]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE_S)
    assert len(json.loads(answer.stdout)["latents"]) == 1
