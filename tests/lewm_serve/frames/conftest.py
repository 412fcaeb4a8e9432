"""Redis for the tests of the cache."""

from collections.abc import Iterator

import pytest

from tests.lewm_serve.support.redis_process import RedisProcess


@pytest.fixture
def redis() -> Iterator[RedisProcess]:
    """A Redis for one test."""
    with RedisProcess() as process:
        yield process
