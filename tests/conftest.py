"""What has to be set before torch is imported, and for every property test."""

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings

from lewm_serve.backends.native.build import NativeUnavailable, build_library

# Threads that spin while they wait for each other starve whatever else runs beside the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The same examples everywhere, and no verdict on how long one takes or is in the making.
# `--hypothesis-profile default` looks further afield.
settings.register_profile(
    "lewm", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lewm")


def pytest_sessionstart() -> None:
    """Compile the native code of this checkout, so that no test misses it after a change of it."""
    with suppress(NativeUnavailable):
        build_library()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Torch's threads are one number of the whole process: leave it to the others as it was."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
