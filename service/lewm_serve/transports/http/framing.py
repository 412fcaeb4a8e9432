"""Where the parts of a request end among the bytes of a connection, and how large they may be.

The parser knows the ends too, but it does not stop there: it would go on with the next request.
"""

import re

from lewm_serve.errors import MalformedHttp, TooManyHeaders

MAX_HEAD_BYTES = 64 * 1024

MAX_HEADERS = 128
"""The most fields of a head, and of the trailer section after a chunked body."""

MAX_LINES = MAX_HEADERS + 3
"""The most lines without content between them: the fields, an empty line after them, and up to two
lines before them, which are the request line or the end of a chunked body."""

MAX_CHUNK_FRAMING_BYTES = 256 * 1024
"""How many bytes of chunk sizes, chunk extensions and trailers a chunked body may have beyond the
number of bytes that it carries. A body in chunks of a few bytes stays below it, if it is small."""

MAX_CHUNK_SIZE_DIGITS = 16

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]+)[;\r\n]")


class RequestFraming:
    """Splits the bytes of a connection into pieces for the parser, and counts them.

    A piece is a head, a line of a head or of a chunked body, or as much of the content as there is.
    So no piece holds parts of two requests, and the parser has never read on beyond the request
    that is being answered. The split does not change what the parser understands.

    Attributes:
        in_head: whether the next bytes belong to a head.
        head_bytes: how many bytes of this head have been received.
    """

    def __init__(self) -> None:
        self.start_head()

    def start_head(self) -> None:
        """Expect a head: at the start, and after the end of each request."""
        self.in_head = True
        self.head_bytes = 0
        self._lines = 0
        self._content_left = 0

    def add_header(self, name: bytes, value: bytes) -> None:
        """Take note of a field that the parser has found in the head."""
        name = name.lower()
        if name == b"content-length" and value.strip().isdigit():
            self._content_left = int(value)
        elif name == b"transfer-encoding":
            self._content_left = 0

    def end_head(self) -> None:
        """Expect the content that the fields of the head announce."""
        self.in_head = False
        self._lines = 0
        self._framing_bytes = 0
        self._line_start = b""

    def next_piece(self, data: bytes, start: int) -> int:
        """The end of the piece of the data that starts at ``start``.

        Raises:
            MalformedHttp: the head or the framing of the body is too long.
            TooManyHeaders: the head or the trailer section has too many lines.
        """
        if not self.in_head and self._content_left:
            end = min(len(data), start + self._content_left)
            self._content_left -= end - start
            self._framing_bytes = max(0, self._framing_bytes - (end - start))
            self._lines = 0
            return end
        is_new_head = self.in_head and not self.head_bytes
        whole_head = data.find(b"\r\n\r\n", start) if is_new_head else -1
        end = whole_head + 4 if whole_head >= 0 else data.find(b"\n", start) + 1 or len(data)
        self._lines += data.count(b"\n", start, end)
        if self._lines > MAX_LINES:
            raise TooManyHeaders(f"received more than {MAX_HEADERS} header fields, the maximum")
        if self.in_head:
            self.head_bytes += end - start
            if self.head_bytes > MAX_HEAD_BYTES:
                raise MalformedHttp(
                    f"head: received more than {MAX_HEAD_BYTES} bytes, expected at most that many"
                )
        else:
            self._framing_bytes += end - start
            if self._framing_bytes > MAX_CHUNK_FRAMING_BYTES:
                raise MalformedHttp(
                    "body: received more chunk sizes, chunk extensions and trailers than content, "
                    f"expected at most {MAX_CHUNK_FRAMING_BYTES} bytes more"
                )
            self._read_chunk_size(data[start:end])
        return end

    def _read_chunk_size(self, piece: bytes) -> None:
        """Expect the content of the chunk, if a line that ends with this piece is a chunk size.

        The parser checks the line.
        """
        line = (self._line_start + piece)[: MAX_CHUNK_SIZE_DIGITS + 2]
        if not piece.endswith(b"\n"):
            self._line_start = line
            return
        self._line_start = b""
        size = _CHUNK_SIZE.match(line)
        if size is not None:
            self._content_left = int(size[1], 16)
        elif len(line) > MAX_CHUNK_SIZE_DIGITS and re.fullmatch(rb"[0-9A-Fa-f]+", line):
            raise MalformedHttp(
                f"body: received a chunk size of more than {MAX_CHUNK_SIZE_DIGITS} digits"
            )
