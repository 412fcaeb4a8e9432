"""What the tests of fallbacks share; a module makes the planner and its metrics: `started`."""

from collections.abc import Iterator

import pytest
import torch

from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner


@pytest.fixture(autouse=True, scope="module")
def _threads_of_the_others() -> Iterator[None]:
    """A planner sets torch's threads, of which there is one number in a process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def planner(started: tuple[Planner, Metrics]) -> Planner:
    return started[0]


@pytest.fixture
def metrics(started: tuple[Planner, Metrics]) -> Metrics:
    return started[1]
