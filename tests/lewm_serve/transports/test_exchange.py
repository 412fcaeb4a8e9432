"""The bytes of all requests in progress."""

from contextlib import suppress

import pytest

from lewm_serve.errors import Overloaded
from lewm_serve.transports.exchange import RequestMemory


def test_bytes_beyond_the_limit_are_refused_until_others_are_released() -> None:
    memory = RequestMemory(100)
    with memory.reserve() as second:
        with memory.reserve() as first:
            first.add(60)
            second.add(40)
            with pytest.raises(Overloaded, match="requests in progress hold 100 bytes"):
                second.add(1)
        assert memory.total == 40
        second.add(60)
    assert memory.total == 0


def test_a_failing_request_releases_its_bytes() -> None:
    memory = RequestMemory(100)
    with memory.reserve() as reservation, suppress(Overloaded):
        reservation.add(60)
        reservation.add(60)
    assert memory.total == 0
