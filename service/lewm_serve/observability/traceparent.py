"""The header `traceparent`, with which a client makes a request part of its trace."""

import re
from typing import NamedTuple

TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace_id>[0-9a-f]{32})"
    r"-(?!0{16})(?P<span_id>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?"
)
"""https://www.w3.org/TR/trace-context, section 3.2. Versions after 00 may have more fields."""


class TraceParent(NamedTuple):
    """The client's trace, and its span that sent the request: lower-case hexadecimal digits."""

    trace_id: str
    span_id: str
    flags: int


def parse_traceparent(header: str | None) -> TraceParent | None:
    """The content of the header. None if there is none that can be used."""
    match = None if header is None else TRACEPARENT.fullmatch(header)
    if match is None or (match["version"] == "00" and match["rest"]):
        return None
    return TraceParent(match["trace_id"], match["span_id"], int(match["flags"], 16))
