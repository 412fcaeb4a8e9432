"""A model that plans badly, but quickly."""

from dataclasses import replace
from pathlib import Path

import pytest

from lewm_models import checkpoint
from lewm_models.card import SolverConfig, read_card
from tests.lewm_serve.support.random_model import write_random_model


@pytest.fixture
def quick_model(tmp_path: Path) -> Path:
    """A model folder of random weights whose solver scores few candidates."""
    folder = write_random_model(tmp_path / "quick")
    card = read_card(folder / checkpoint.CARD_FILE)
    quick_solver = SolverConfig(samples=4, iterations=1, elites=2)
    checkpoint.write_card(folder, replace(card, solver=quick_solver))
    return folder
