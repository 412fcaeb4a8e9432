"""What the tests of the planner share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _torch_threads() -> Iterator[None]:
    """Restore torch's number of threads, which a planner sets for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
