"""What each controller does, and what a request for it must hold."""

import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from lewm_serve.fallbacks import controller
from structlog.testing import capture_logs

from lewm_models.card import CardError, ModelCard
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card
from lewm_serve.api.requests import Fallback
from lewm_serve.errors import InvalidRequest
from lewm_serve.planner.fallback import prepare_fallback
from lewm_serve.registry.controllers import load_controllers
from lewm_serve.registry.registry import LoadedModel

ROWS = 4
EDGE = PRESETS["edge"]


class Diagonal:
    """Moves too far; breaks on a state of 7 or 8."""

    state: tuple[str, ...] = ("x", "y")

    def actions(self, state: Any, rows: int) -> Any:
        if state[0] < 0:
            raise ValueError("x above 0")
        if state[0] == 7:
            raise KeyError("no such room")
        if state[0] == 8:
            rows += 1
        return np.tile(state, (rows, 1))


def model(**card: Any) -> LoadedModel:
    """A model of which only the actions matter: two numbers, within [-1, 1] and [0.5, 2]."""
    described: Any = SimpleNamespace(
        action_low=(-1.0, 0.5), action_high=(1.0, 2.0), config=SimpleNamespace(action_dim=2)
    )
    described.action_neutral = card.get("action_neutral")
    nothing: Any = None
    return LoadedModel(
        *(described, "", nothing, nothing, nothing, nothing, nothing, nothing, None),
        {"diagonal": Diagonal()},
    )


def acts(name: str, state: Any = None, warm_start: Any = None, **card: Any) -> list[list[float]]:
    """What the controller does."""
    wanted = Fallback(controller=name, state=state)
    warm = None if warm_start is None else np.array(warm_start, np.float32)
    prepared = prepare_fallback(model(**card), wanted, warm, ROWS)
    assert prepared is not None
    assert prepared.controller == name
    return cast(list[list[float]], prepared.actions.tolist())


def test_none_is_none() -> None:
    assert prepare_fallback(model(), Fallback(), None, ROWS) is None


def test_hold_is_what_is_nearest_to_zero_or_what_the_card_says() -> None:
    assert acts("hold") == [[0.0, 0.5]] * ROWS
    assert acts("hold", action_neutral=(0.25, 1.0)) == [[0.25, 1.0]] * ROWS


def test_tail_runs_out_into_holding() -> None:
    warm = [[1.0, 1.0], [0.5, 1.5]]
    assert acts("tail", warm_start=warm) == [*warm, [0.0, 0.5], [0.0, 0.5]]
    assert acts("tail", warm_start=warm * 2) == warm * 2


def test_a_models_own_controller_stays_within_the_bounds() -> None:
    assert acts("diagonal", [0.5, 3.0]) == [[0.5, 2.0]] * ROWS


@pytest.mark.parametrize(
    ("wanted", "code", "said"),
    [
        ({"controller": "who"}, "invalid_choice", "one of none, hold, tail, diagonal"),
        ({"controller": "tail"}, "missing_field", "warm_start: received nothing"),
        ({"controller": "diagonal"}, "missing_field", "2 numbers for diagonal: x, y"),
        ({"controller": "diagonal", "state": [1.0]}, "shape_mismatch", "received 1 numbers"),
        ({"controller": "diagonal", "state": [-1.0, 0.0]}, "out_of_range", "expected x above 0"),
    ],
)
def test_what_is_lacking_is_named(wanted: Any, code: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prepare_fallback(model(), Fallback(**wanted), None, ROWS)
    assert refused.value.code == code
    assert said in refused.value.detail


@pytest.mark.parametrize(("x", "why"), [(7.0, "no such room"), (8.0, r"gave \(5, 2\)")])
def test_a_controller_that_is_broken_matters_once_it_is_needed(x: float, why: str) -> None:
    wanted = Fallback(controller="diagonal", state=np.array([x, 0.0], np.float32))
    prepared = prepare_fallback(model(), wanted, None, ROWS)
    assert prepared is not None
    with pytest.raises(RuntimeError, match="controller diagonal failed") as failed:
        _ = prepared.actions
    assert failed.value.__cause__ is not None
    assert re.search(why, str(failed.value.__cause__))


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "plugin-0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0\n")
    where = "lewm_models.environments.two_room_waypoint:WaypointController"
    (folder / "entry_points.txt").write_text(
        f"[lewm.controllers]\nours = {where}\nbroken = nowhere:Nothing\n"
    )
    plugin = metadata.Distribution.at(folder)
    monkeypatch.setattr(
        controller, "entry_points", lambda group: plugin.entry_points.select(group=group)
    )


@pytest.mark.usefixtures("_installed")
def test_controllers_are_found_by_entry_point() -> None:
    with capture_logs() as logged:
        found = load_controllers("model", ["ours", "absent"])
    assert found["ours"].actions(np.array([50, 50, 55, 50], np.float32), 1).tolist() == [[1.0, 0.0]]
    assert list(found) == ["ours"]
    assert (logged[0]["log_level"], logged[0]["controller"]) == ("warning", "absent")
    with pytest.raises(ModuleNotFoundError):
        load_controllers("model", ["broken"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"action_neutral": [0.0]}, "action_neutral: expected"),
        ({"action_neutral": [2.0] * EDGE.action_dim}, "within action_low and action_high"),
        ({"controllers": ["hold"]}, "controllers: expected names other than"),
        ({"controllers": "waypoint"}, "controllers: expected list"),
    ],
)
def test_a_card_that_asks_for_the_impossible_is_refused(changed: Any, said: str) -> None:
    card = random_card("model", EDGE, {}).to_json() | changed
    with pytest.raises(CardError, match=said):
        ModelCard.from_json(card)


def test_a_card_keeps_what_it_says_of_fallbacks() -> None:
    said = {"action_neutral": [0.5] * EDGE.action_dim, "controllers": ["waypoint"]}
    card = random_card("model", EDGE, {}).to_json() | said
    kept = ModelCard.from_json(card).to_json()
    assert {name: kept[name] for name in said} == said
