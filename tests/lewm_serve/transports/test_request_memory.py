"""The bytes that requests hold at once."""

from contextlib import suppress

import pytest

from lewm_serve.errors import Overloaded
from lewm_serve.transports.exchange import RequestMemory


def test_more_than_the_limit_is_refused_until_something_is_answered() -> None:
    held = RequestMemory(100)
    with held.request() as second:
        with held.request() as first:
            first.add(60)
            second.add(40)
            with pytest.raises(Overloaded, match="100 bytes are being held"):
                second.add(1)
        assert held.total == 40
        second.add(60)
    assert held.total == 0


def test_a_failing_request_holds_nothing_afterwards() -> None:
    held = RequestMemory(100)
    with held.request() as request, suppress(Overloaded):
        request.add(60)
        request.add(60)
    assert held.total == 0
