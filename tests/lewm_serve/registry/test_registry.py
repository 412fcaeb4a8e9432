"""Models that are refused before the server is ready."""

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lewm_models.checkpoint import CARD_FILE
from lewm_serve.registry.loading import load_registry
from lewm_serve.registry.registry import ModelLoadError
from lewm_serve.settings import Settings
from tests.lewm_serve.support.random_model import write_random_model


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"name": "oracle"}, "name: received 'oracle', expected one of cem"),
        ({"temperature": 0.0}, "temperature: received 0.0, expected more than 0"),
        ({"momentum": 1.0}, "momentum: received 1.0, expected less than 1"),
        ({"tolerance": -1.0}, "tolerance: received -1.0"),
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
        load_registry(Settings(models=(folder,)))


def test_a_default_search_beyond_the_limits_of_the_server_is_said(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "random")
    card = json.loads((folder / CARD_FILE).read_text())
    solver = {"samples": 900_000, "iterations": 201, "horizon": 5_000}
    (folder / CARD_FILE).write_text(json.dumps(card | {"solver": solver, "action_mean": [9, 0]}))
    limits = Settings(
        models=(folder,),
        backend="torch",
        threads=1,
        max_samples=8,
        max_iterations=2,
        max_horizon=2,
    )
    with capture_logs() as logs:
        load_registry(limits)
    warnings = [line["warning"] for line in logs if line["event"] == "model card"]
    assert [warning.partition(":")[0] for warning in warnings] == [
        "action_mean",
        "solver.samples",
        "solver.iterations",
        "solver.horizon",
    ]
    assert "is 900000, more than LEWM_MAX_SAMPLES, 8: requests that do not" in warnings[1]
