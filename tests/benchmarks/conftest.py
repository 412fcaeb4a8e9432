"""A server whose plans take no time, to put load on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lewm_models import checkpoint
from lewm_models.card import SolverDefaults, read_card
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.server_process import ServerProcess

QUICK = SolverDefaults(samples=4, iterations=1, elites=2)


@pytest.fixture(scope="session")
def quick_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that hardly searches."""
    folder = write_random_model(tmp_path_factory.mktemp("benchmarks") / "quick")
    card = read_card(folder / checkpoint.CARD)
    checkpoint.write_card(folder, replace(card, solver=QUICK))
    return folder


@pytest.fixture(scope="session")
def quick_server(
    tmp_path_factory: pytest.TempPathFactory, quick_folder: Path
) -> Iterator[ServerProcess]:
    """A ready server of it."""
    log = tmp_path_factory.mktemp("benchmarks") / "log.jsonl"
    with ServerProcess(log, "--models", str(quick_folder)) as process:
        yield process.wait_ready()
