"""Fixtures of the client's tests."""

import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def silent_target() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
