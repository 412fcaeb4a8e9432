"""A public checkpoint on disk."""

from pathlib import Path

import pytest

from tests.lewm_models.examples import public_config, tiny_model, write_public_checkpoint
from tests.lewm_models.importing.public_checkpoints import copy_state


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a public checkpoint of `TINY`."""
    return write_public_checkpoint(tmp_path / "public", copy_state(tiny_model()), public_config())
