"""What the tests of fallbacks share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _threads_of_the_others() -> Iterator[None]:
    """A planner sets torch's threads, of which there is one number in a process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
