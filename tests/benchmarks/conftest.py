"""A server whose plans take almost no time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.in_process import random_model_folder
from lewm_models import checkpoint
from lewm_models.card import SolverConfig, read_card
from lewm_serve.cli.local_server import LocalServer, local_server

SHORT_SEARCH = SolverConfig(samples=4, iterations=1, elites=2)


@pytest.fixture(scope="session")
def quick_folder() -> Iterator[Path]:
    """A model with random weights whose default search is short."""
    with random_model_folder("edge") as folder:
        card = read_card(folder / checkpoint.CARD_FILE)
        checkpoint.write_card(folder, replace(card, solver=SHORT_SEARCH))
        yield folder


@pytest.fixture(scope="session")
def quick_server(quick_folder: Path) -> Iterator[LocalServer]:
    """A server of this model, always on the same backend."""
    with local_server(quick_folder, backend="onnx", threads=1) as server:
        yield server
