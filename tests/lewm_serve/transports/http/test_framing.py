"""How the bytes of a connection are split into pieces, and how many there may be."""

import itertools
import random

import httptools
import pytest

from lewm_serve.errors import MalformedHttp, ServiceError, TooManyHeaders
from lewm_serve.transports.http.framing import (
    MAX_CHUNK_FRAMING_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    RequestFraming,
)

CHUNKED = b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
REQUESTS = (
    b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /b HTTP/1.1\r\nContent-Length: 12\r\n\r\nGET / \r\n\r\n{}",
    CHUNKED + b"5\r\n\r\n\r\n1\r\n1;a=b\r\n0\r\n000c\r\nGET / \r\n\r\n{}\r\n0\r\n\r\n",
    CHUNKED + b"2\r\n{}\r\n0\r\nAbc: 5\r\nb: c\r\n\r\n",
    b"POST /c HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
)


class Reader:
    """Feeds a parser piece by piece, as the protocol does."""

    def __init__(self) -> None:
        self.framing = RequestFraming()
        self.parser = httptools.HttpRequestParser(self)
        self.bodies: list[bytearray] = []
        self.starts = 0

    def on_message_begin(self) -> None:
        self.starts += 1
        self.bodies.append(bytearray())

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.framing.in_head:
            self.framing.add_header(name, value)
        else:
            self.framing.add_trailer()

    def on_headers_complete(self) -> None:
        self.framing.end_head()

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.framing.start_head()

    def feed(self, data: bytes) -> None:
        """Feed bytes that arrive together."""
        start = 0
        while start < len(data):
            end = self.framing.next_piece(data, start)
            is_body, starts = not self.framing.in_head, self.starts
            size_before = len(self.bodies[-1]) if self.bodies else 0
            try:
                self.parser.feed_data(data[start:end])
            except httptools.HttpParserCallbackError as error:
                raise error.__context__ or error from None
            if is_body:
                assert self.starts == starts, "a piece ends one request and starts the next"
                self.framing.add_content(len(self.bodies[-1]) - size_before)
            start = end


def whole(data: bytes) -> list[bytearray]:
    """The bodies that a parser finds which gets all bytes at once."""
    reader = Reader()
    reader.parser.feed_data(data)
    return reader.bodies


@pytest.mark.parametrize("seed", range(20))
def test_no_piece_holds_parts_of_two_requests(seed: int) -> None:
    source = random.Random(seed)
    requests = source.choices(REQUESTS, k=6)
    data = b"".join(requests)
    cuts = sorted(source.sample(range(len(data)), source.randrange(0, 30)))
    reader = Reader()
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        reader.feed(data[start:end])
    assert reader.bodies == whole(data)
    assert len(reader.bodies) == len(requests)


def test_a_chunked_body_may_come_byte_by_byte() -> None:
    reader = Reader()
    for byte in CHUNKED + b"2000\r\n" + b"\r\n" * 0x1000 + b"\r\n0\r\n\r\n":
        reader.feed(bytes([byte]))
    assert reader.bodies == [b"\r\n" * 0x1000]
    assert reader.framing.in_head


def test_a_request_is_split_into_its_head_and_its_content() -> None:
    framing = RequestFraming()
    data = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\n\n\n\nGET"
    head_end = framing.next_piece(data, 0)
    assert data[:head_end].endswith(b"4\r\n\r\n")
    framing.add_header(b"Content-Length", b"4")
    framing.end_head()
    assert framing.next_piece(data, head_end) == head_end + 4


def refusal(*parts: bytes) -> ServiceError:
    """The error for bytes that arrive in parts."""
    reader = Reader()

    def feed_all() -> None:
        for part in parts:
            reader.feed(part)

    with pytest.raises(ServiceError) as caught:
        feed_all()
    return caught.value


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 200 + b"\r\n"], id="whole-head"),
        pytest.param([b"GET / HTTP/1.1\r\n", *[b"a:b\r\n"] * 200], id="line-by-line"),
        pytest.param([b"\r\n" * 200], id="blank-lines"),
        pytest.param([CHUNKED + b"2\r\n{}\r\n0\r\n" + b"a:b\r\n" * 200], id="trailers"),
    ],
)
def test_too_many_fields_are_refused(parts: list[bytes]) -> None:
    error = refusal(*parts)
    assert isinstance(error, TooManyHeaders)
    assert str(MAX_HEADERS) in error.detail


def test_as_many_headers_as_allowed_are_read() -> None:
    fields = b"".join(b"a%d: b\r\n" % number for number in range(MAX_HEADERS - 1))
    Reader().feed(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
    trailers = b"".join(b"a%d: b\r\n" % number for number in range(MAX_HEADERS))
    Reader().feed(CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers + b"\r\n")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"GET /" + b"a" * MAX_HEAD_BYTES], id="path"),
        pytest.param([b"GET / HTTP/1.1\r\nA: ", *[b"b" * 1000] * 70], id="field"),
        pytest.param([CHUNKED + b"1;", *[b"x" * 10_000] * 30], id="extension"),
        pytest.param([CHUNKED + b"0\r\na: ", *[b"x" * 10_000] * 30], id="trailer"),
        pytest.param([CHUNKED, *[b"1;" + b"x" * 10_000 + b"\r\n \r\n"] * 30], id="extensions"),
        pytest.param([CHUNKED + b"1\r\n \r\n" * MAX_CHUNK_FRAMING_BYTES], id="small-chunks"),
        pytest.param([CHUNKED, *[b"0" * 10_000] * 30], id="digits"),
        pytest.param([CHUNKED + b"10000\r\n" + b"\r\n" * 0x8000], id="empty-lines"),
    ],
)
def test_too_many_bytes_are_refused(parts: list[bytes]) -> None:
    error = refusal(*parts)
    assert isinstance(error, MalformedHttp)
    assert "received" in error.detail


def test_a_small_body_may_come_in_chunks_of_one_byte() -> None:
    reader = Reader()
    reader.feed(CHUNKED + b"1\r\n \r\n" * 50_000 + b"0\r\n\r\n")
    assert reader.bodies == [b" " * 50_000]


def test_a_large_body_may_have_many_chunks() -> None:
    reader = Reader()
    reader.feed(CHUNKED)
    for _ in range(200):
        reader.feed((b"8\r\n" + b" " * 8 + b"\r\n") * 1000)
    reader.feed(b"0\r\n\r\n")
    assert len(reader.bodies[0]) == 200 * 1000 * 8
