"""Fallback controllers are found by entry point, and cards that name them are checked."""

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from lewm_models.card import CardError, ModelCard
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card
from lewm_serve.registry import controllers
from lewm_serve.registry.controllers import load_controllers

EDGE = PRESETS["edge"]


@pytest.fixture
def _installed_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plugin-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0\n")
    waypoint = "lewm_models.environments.two_room_waypoint:WaypointController"
    (folder / "entry_points.txt").write_text(
        f"[lewm.controllers]\nours = {waypoint}\nbroken = nowhere:Nothing\n"
    )
    plugin = metadata.Distribution.at(folder)
    monkeypatch.setattr(
        controllers, "entry_points", lambda group: plugin.entry_points.select(group=group)
    )


@pytest.mark.usefixtures("_installed_plugin")
def test_controllers_are_found_by_entry_point() -> None:
    with capture_logs() as logged:
        found = load_controllers("model", ["ours", "absent"])
    assert found["ours"].actions(np.array([50, 50, 55, 50], np.float32), 1).tolist() == [[1.0, 0.0]]
    assert list(found) == ["ours"]
    assert (logged[0]["log_level"], logged[0]["controller"]) == ("warning", "absent")
    with pytest.raises(ModuleNotFoundError):
        load_controllers("model", ["broken"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_neutral": [0.0]}, "action_neutral: expected"),
        ({"action_neutral": [2.0] * EDGE.action_dim}, "within action_low and action_high"),
        ({"controllers": ["hold"]}, "controllers: expected names other than"),
        ({"controllers": "waypoint"}, "controllers: expected list"),
    ],
)
def test_a_card_with_impossible_fallbacks_is_refused(changes: dict[str, Any], message: str) -> None:
    card = random_card("model", EDGE, {}).to_json() | changes
    with pytest.raises(CardError, match=message):
        ModelCard.from_json(card)


def test_a_card_keeps_its_fallbacks() -> None:
    fallbacks = {"action_neutral": [0.5] * EDGE.action_dim, "controllers": ["waypoint"]}
    card = random_card("model", EDGE, {}).to_json() | fallbacks
    kept = ModelCard.from_json(card).to_json()
    assert {name: kept[name] for name in fallbacks} == fallbacks
