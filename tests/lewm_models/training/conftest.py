"""Small data of Two-Room, recorded once."""

from pathlib import Path

import pytest

from lewm_models.training.prepared import PreparedData
from tests.lewm_models.training.sources import prepare, two_room


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(two_room(episodes=32, steps=150, image_size=32), folder)
    return folder


@pytest.fixture(scope="session")
def data(data_folder: Path) -> PreparedData:
    return PreparedData.open(data_folder)
