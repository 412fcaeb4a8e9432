"""A card is read back unchanged, and a wrong one is refused with the name of the field."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lewm_models.card import Calibration, CardError, ModelCard, SolverConfig, read_card
from lewm_models.config import IMAGENET_MEAN, IMAGENET_STD
from tests.lewm_models.examples import TINY


def full_card() -> ModelCard:
    """A card with a value in every field."""
    return ModelCard(
        name="two-room_0.1",
        config=TINY,
        action_mean=(0.1, -0.2),
        action_std=(0.5, 2.0),
        action_low=(-1.0, -3.0),
        action_high=(1.0, 4.0),
        action_neutral=(0.5, 0.0),
        controllers=("waypoint",),
        crop="center",
        solver=SolverConfig(samples=64, tolerance=0.1, momentum=0.2),
        calibration=Calibration(
            frames=10,
            norm_mean=2.0,
            norm_std=0.5,
            zscore_limit=4.0,
            norm_quantiles=(1.0, 2.0, 3.0),
            mahalanobis_limit=9.0,
            reference="5d41",
        ),
        provenance={"command": "lewm train"},
        figures={"paper": {"success": 0.95}},
        extra={"licence": "MIT"},
    )


def test_a_card_is_read_back_from_its_json() -> None:
    card = full_card()
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_reading_a_card_does_not_change_the_json() -> None:
    card = full_card().to_json()
    before = json.dumps(card)
    ModelCard.from_json(card)
    assert json.dumps(card) == before


def test_fields_that_clients_need_are_at_the_top_level() -> None:
    card = full_card().to_json()
    assert card["image_size"] == 16
    assert card["latent_dim"] == 8
    assert card["history"] == 3
    assert card["pixel_mean"] == list(IMAGENET_MEAN)
    assert card["action_dim"] == 2
    assert card["action_block"] == 5
    assert card["licence"] == "MIT"
    assert card["architecture"]["predictor_heads"] == 2
    assert not set(card) & set(card["architecture"])


def test_missing_pixel_statistics_are_those_of_imagenet() -> None:
    card = full_card().to_json()
    del card["pixel_mean"], card["pixel_std"]
    read = ModelCard.from_json(card)
    assert (read.config.pixel_mean, read.config.pixel_std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert read.to_json()["pixel_std"] == list(IMAGENET_STD)


def test_optional_fields_have_defaults() -> None:
    card = full_card().to_json()
    optional = ("action_neutral", "controllers", "crop", "solver", "calibration")
    for name in (*optional, "provenance", "figures", "licence"):
        del card[name]
    read = ModelCard.from_json(card)
    assert read.solver == SolverConfig()
    assert (read.action_neutral, read.controllers) == (None, ())
    assert (read.crop, read.calibration, read.provenance, read.figures) == (None, None, {}, {})


def test_solver_settings_that_are_none_are_not_written() -> None:
    solver = full_card().to_json()["solver"]
    assert solver["momentum"] == 0.2
    assert "temperature" not in solver
    card = full_card().to_json() | {"solver": {"momentum": None}}
    assert ModelCard.from_json(card).solver == SolverConfig()


def test_with_figures_adds_results() -> None:
    card = full_card().with_figures(cross_room={"success": 0.3})
    assert card.figures == {"paper": {"success": 0.95}, "cross_room": {"success": 0.3}}


@pytest.mark.parametrize(
    "name",
    ["name", "architecture", "action_block", "history", "action_mean", "action_std", "action_low"],
)
def test_a_missing_field_is_named(name: str) -> None:
    card = full_card().to_json()
    del card[name]
    with pytest.raises(CardError, match=f"{name}.*missing"):
        ModelCard.from_json(card)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "two room"),
        ("name", "a" * 65),
        ("name", "../x"),
        ("name", 3),
        ("action_mean", 0.5),
        ("action_mean", [0.5]),
        ("action_mean", [0.5, math.nan]),
        ("action_mean", [0.5, "0"]),
        ("action_mean", [0.5, None]),
        ("action_mean", [0.5, 10**400]),
        ("action_std", [1.0, 0.0]),
        ("action_std", [1.0, -1.0]),
        ("action_low", [0.0, 4.0]),
        ("action_high", [math.inf, 4.0]),
        ("action_dim", 0),
        ("action_block", 2.5),
        ("pixel_mean", [0.5]),
        ("pixel_std", [0.5, 0.5, "x"]),
        ("action_neutral", [0.5]),
        ("action_neutral", [0.5, math.nan]),
        ("action_neutral", [0.5, 4.5]),
        ("action_neutral", 0.5),
        ("controllers", "waypoint"),
        ("controllers", ["hold"]),
        ("controllers", ["way point"]),
        ("controllers", [3]),
        ("crop", "left"),
        ("architecture", []),
        ("solver", []),
        ("provenance", "me"),
        ("figures", 3),
        ("calibration", 3),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(CardError, match=f"^{field}: expected"):
        ModelCard.from_json({**full_card().to_json(), field: value})


@pytest.mark.parametrize(
    ("field", "entry", "value"),
    [
        ("solver", "samples", 0),
        ("solver", "samples", 1.5),
        ("solver", "name", 3),
        ("solver", "tolerance", math.nan),
        ("calibration", "norm_mean", "2"),
        ("calibration", "frames", True),
        ("solver", "momentum", "0.2"),
        ("solver", "speed", 1),
        ("calibration", "norm_max", 1.0),
        ("calibration", "norm_std", None),
        ("calibration", "steps", 0),
        ("calibration", "surprise_limit", "4"),
        ("calibration", "norm_quantiles", 3.0),
        ("calibration", "norm_quantiles", [1.0, math.inf]),
        ("calibration", "reference", 3),
        ("architecture", "norm", "rms"),
    ],
)
def test_a_wrong_entry_of_a_nested_field_is_named(field: str, entry: str, value: Any) -> None:
    card = full_card().to_json()
    card[field][entry] = value
    with pytest.raises(CardError, match=rf"^{field}[.:].*{entry}"):
        ModelCard.from_json(card)


def test_a_calibration_without_a_required_entry_is_refused() -> None:
    card = full_card().to_json()
    del card["calibration"]["norm_std"]
    with pytest.raises(CardError, match=r"^calibration: .*norm_std"):
        ModelCard.from_json(card)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[1]", "expected a JSON object, got list"),
    ],
    ids=["cut off", "deep", "not UTF-8", "a list"],
)
def test_a_file_without_a_json_object_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(CardError, match=rf"model\.json: {message}"):
        read_card(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"model\.json: cannot be read"):
        read_card(tmp_path / "model.json")
