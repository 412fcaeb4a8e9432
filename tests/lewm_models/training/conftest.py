"""A small recording of Two-Room, collected once."""

from pathlib import Path

import pytest

from lewm_models.training.recording import Recording, RecordingSpec, collect

SPEC = RecordingSpec("two-room", episodes=32, steps=150, image_size=32, seed=0)


@pytest.fixture(scope="session")
def recording_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    collect(folder, SPEC)
    return folder


@pytest.fixture(scope="session")
def recording(recording_folder: Path) -> Recording:
    return Recording.open(recording_folder)
