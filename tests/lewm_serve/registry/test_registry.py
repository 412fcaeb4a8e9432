"""Models that are refused before the server is ready."""

import json
from pathlib import Path
from typing import Any

import pytest

from lewm_models.checkpoint import CARD_FILE
from lewm_serve.registry.registry import ModelLoadError, Registry
from lewm_serve.settings import Settings
from tests.lewm_serve.support.random_model import write_random_model


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"name": "oracle"}, "name: received 'oracle', expected one of cem"),
        ({"temperature": 0.0}, "temperature: received 0.0, expected more than 0"),
        ({"momentum": 1.0}, "momentum: received 1.0, expected less than 1"),
        ({"tolerance": -1.0}, "tolerance: received -1.0"),
        ({"samples": 5000}, "samples: received 5000, expected at most 4096, .* LEWM_MAX_SAMPLES"),
        ({"iterations": 201}, "iterations: received 201, .* LEWM_MAX_ITERATIONS"),
        ({"horizon": 51}, "horizon: received 51, expected at most 50, .* LEWM_MAX_HORIZON"),
        ({"samples": 10**9}, "samples: expected a number from 1 to 1e"),
    ],
)
def test_a_card_with_solver_settings_that_no_request_may_have_is_refused(
    tmp_path: Path, solver: dict[str, Any], message: str
) -> None:
    folder = write_random_model(tmp_path / "random")
    card = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(card | {"solver": solver}))
    with pytest.raises(ModelLoadError, match=rf"random/model\.json: solver\.{message}"):
        Registry.load(Settings(models=(folder,)))
