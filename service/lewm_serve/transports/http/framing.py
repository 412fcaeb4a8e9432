"""Where the parts of a request end among the bytes of a connection, and how large they may be.

The parser knows the ends too, but it does not stop there: it would go on with the next request.
"""

from lewm_serve.errors import MalformedHttp, TooManyHeaders

MAX_HEAD_BYTES = 64 * 1024

MAX_HEADERS = 128
"""The most fields of a head, and of the trailer section after a chunked body."""

MAX_HEAD_LINES = MAX_HEADERS + 2
"""The request line, the fields, and the empty line after them."""

MAX_CHUNK_FRAMING_BYTES = 256 * 1024
"""How many bytes of chunk sizes, chunk extensions and trailers a chunked body may have beyond the
number of its bytes of content."""

EMPTY_LINE = b"\r\n\r\n"
"""Every head and every chunked body ends with an empty line."""

EMPTY_LINE_COST = 64
"""An empty line in the content of a chunked body counts as this many bytes of framing, because the
parser is called once more for it."""


class RequestFraming:
    """Splits the bytes of a connection into pieces for the parser, and counts them.

    A piece ends where a request may end: after an empty line, or with the content if its length is
    known. So no piece holds parts of two requests, and the parser has never read on beyond the
    request that is being answered. The split does not change what the parser understands.

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
        self._head_lines = 0
        self._content_left = 0
        self._last_bytes = b""

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
        self._framing_bytes = 0
        self._trailers = 0
        self._last_bytes = b""

    def add_content(self, size: int) -> None:
        """Take note of how much content the parser has found in a piece of the body.

        Raises:
            MalformedHttp: there is too little content for the framing of the chunked body.
        """
        # It was counted as framing, and makes up for as much.
        self._framing_bytes = max(0, self._framing_bytes - 2 * size)
        if self._framing_bytes > MAX_CHUNK_FRAMING_BYTES:
            raise MalformedHttp(
                "body: received too many chunk sizes, chunk extensions and trailers for its "
                "content; expected larger chunks"
            )

    def add_trailer(self) -> None:
        """Take note of a field that the parser has found after a chunked body.

        Raises:
            TooManyHeaders: there are more than `MAX_HEADERS`.
        """
        self._trailers += 1
        if self._trailers > MAX_HEADERS:
            raise TooManyHeaders(f"trailers: received more than {MAX_HEADERS}, the maximum")

    def next_piece(self, data: bytes, start: int) -> int:
        """The end of the piece of the data that starts at ``start``.

        Raises:
            MalformedHttp: the head or the framing of the body is too long.
            TooManyHeaders: the head has too many lines.
        """
        if not self.in_head and self._content_left:
            end = min(len(data), start + self._content_left)
            self._content_left -= end - start
            return end
        end = self._end_of_empty_line(data, start)
        if self.in_head:
            self.head_bytes += end - start
            self._head_lines += data.count(b"\n", start, end)
            if self._head_lines > MAX_HEAD_LINES:
                raise TooManyHeaders(f"head: received more than {MAX_HEADERS} fields, the maximum")
            if self.head_bytes > MAX_HEAD_BYTES:
                raise MalformedHttp(f"head: received more than {MAX_HEAD_BYTES} bytes, the maximum")
        else:
            self._framing_bytes += end - start
            if end < len(data):
                self._framing_bytes += EMPTY_LINE_COST
        return end

    def _end_of_empty_line(self, data: bytes, start: int) -> int:
        """The end of the first empty line in the data from ``start`` on, or the end of the data."""
        seam = self._last_bytes + data[start : start + len(EMPTY_LINE) - 1]
        found = seam.find(EMPTY_LINE)
        if found >= 0:  # it started in an earlier piece
            end = start + found + len(EMPTY_LINE) - len(self._last_bytes)
        else:
            found = data.find(EMPTY_LINE, start)
            end = found + len(EMPTY_LINE) if found >= 0 else len(data)
        newest = data[max(start, end - len(EMPTY_LINE) + 1) : end]
        self._last_bytes = (self._last_bytes + newest)[1 - len(EMPTY_LINE) :]
        return end
