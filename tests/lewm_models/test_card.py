"""A card is read back unchanged, and a wrong one is refused with the name of the field."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lewm_models.card import (
    Calibration,
    CardError,
    LearnedDistance,
    ModelCard,
    SolverConfig,
    StateProbeCard,
    read_card,
)
from lewm_models.config import IMAGENET_MEAN, IMAGENET_STD
from tests.lewm_models.examples import STATE_INPUT, TINY


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
        action_rate_limit=(0.5, 3.0),
        controllers=("waypoint",),
        crop="pad",
        solver=SolverConfig(samples=64, tolerance=0.1, momentum=0.2),
        calibration=Calibration(
            frames=10,
            norm_mean=2.0,
            norm_std=0.5,
            zscore_limit=4.0,
            norm_quantiles=tuple(map(float, range(11))),
            mahalanobis_limit=9.0,
            reference="5d41" * 16,
        ),
        provenance={"command": "lewm train"},
        figures={"paper": {"success": 0.95}},
        extra={"licence": "MIT"},
    )


def test_a_card_is_read_back_from_its_json() -> None:
    card = full_card()
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_a_card_names_the_states_that_its_model_takes() -> None:
    card = replace(full_card(), config=replace(TINY, state_input=STATE_INPUT))
    written = card.to_json()
    assert written["state_input"] == {
        "names": ["x", "y"],
        "mean": [100.0, -3.0],
        "std": [50.0, 0.25],
    }
    assert ModelCard.from_json(written) == card
    # A model of pixels has the card that it always had.
    without = full_card().to_json()
    assert "state_input" not in {**without, **without["architecture"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": ["x"], "mean": [0]}, "state_input: .*std"),
        ({"names": ["x", "x"], "mean": [0, 0], "std": [1, 1]}, r"state_input\.names: expected"),
        ({"names": ["x"], "mean": ["0"], "std": [1]}, r"state_input\.mean: expected a list of"),
        ({"names": ["x"], "mean": [0], "std": [0]}, r"state_input\.std: expected numbers from"),
        ({"names": ["x"], "mean": [0], "std": [1], "unit": "m"}, "state_input: unknown fields"),
        (["x"], "state_input: expected an object"),
    ],
)
def test_a_wrong_state_input_is_refused_with_its_name(given: Any, message: str) -> None:
    with pytest.raises(CardError, match=f"^{message}"):
        ModelCard.from_json(full_card().to_json() | {"state_input": given})


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
    optional = (
        "action_neutral",
        "action_rate_limit",
        "controllers",
        "crop",
        "solver",
        "calibration",
    )
    for name in (*optional, "provenance", "figures", "licence"):
        del card[name]
    read = ModelCard.from_json(card)
    assert read.solver == SolverConfig()
    assert (read.action_neutral, read.action_rate_limit, read.controllers) == (None, None, ())
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
        ("name", "."),
        ("name", ".."),
        ("name", "x" * 10**6),
        ("action_mean", 0.5),
        ("action_mean", [0.5]),
        ("action_mean", [0.5, math.nan]),
        ("action_mean", [0.5, "0"]),
        ("action_mean", [0.5, None]),
        ("action_mean", [0.5, 10**400]),
        ("action_std", [1.0, 0.0]),
        ("action_std", [1.0, -1.0]),
        ("action_std", [1.0, 1e-300]),
        ("action_std", [1.0, 5e-324]),
        ("action_std", [1.0, 1e300]),
        ("action_std", [1.0, 1e-8]),
        ("action_mean", [1e300, 0.0]),
        ("action_std", [True, 1.0]),
        ("action_high", [1.7e308, 4.0]),
        ("action_low", [-1.0, 3.99999999]),
        ("action_low", [0.0, 4.0]),
        ("action_high", [math.inf, 4.0]),
        ("action_dim", 0),
        ("action_block", 2.5),
        ("action_block", 10**30),
        ("image_size", 10**9),
        ("history", -1),
        ("latent_dim", True),
        ("pixel_mean", [0.5, 0.5, 1e300]),
        ("pixel_std", [0.5, 0.5, 0.0]),
        ("pixel_std", [0.5, 0.5, 1e-300]),
        ("pixel_std", [0.5, 0.5, -0.5]),
        ("pixel_mean", [0.5]),
        ("pixel_std", [0.5, 0.5, "x"]),
        ("action_neutral", [0.5]),
        ("action_neutral", [0.5, math.nan]),
        ("action_neutral", [0.5, 4.5]),
        ("action_neutral", 0.5),
        ("action_rate_limit", [0.5]),
        ("action_rate_limit", [0.5, 0.0]),
        ("action_rate_limit", [0.5, -1.0]),
        ("action_rate_limit", [0.5, math.inf]),
        ("action_rate_limit", 0.5),
        ("controllers", "waypoint"),
        ("controllers", ["hold"]),
        ("controllers", ["way point"]),
        ("controllers", [3]),
        ("crop", "left"),
        ("crop", ["center"]),
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
        ("calibration", "frames", 2**63),
        ("calibration", "norm_std", 0.0),
        ("calibration", "norm_std", -1.0),
        ("calibration", "norm_std", 1e-300),
        ("calibration", "norm_mean", -1.0),
        ("calibration", "zscore_limit", 0.0),
        ("calibration", "zscore_limit", 1e300),
        ("calibration", "mahalanobis_limit", -1.0),
        ("calibration", "false_alarm_rate", 1.5),
        ("calibration", "sigreg_window", 10**9),
        ("calibration", "norm_quantiles", [1.0, 2.0]),
        ("calibration", "norm_quantiles", [float(11 - i) for i in range(11)]),
        ("calibration", "norm_quantiles", [1e300] * 11),
        ("calibration", "norm_quantiles", [[1.0]] * 11),
        ("calibration", "reference", "../../etc"),
        ("solver", "samples", 10**9),
        ("solver", "horizon", 2**70),
        ("solver", "tolerance", 10**30),
        ("solver", "temperature", 2**63),
        ("architecture", "encoder_depth", 10**6),
        ("architecture", "encoder_depth", 0),
        ("architecture", "dropout", 1.0),
        ("architecture", "dropout", "0.1"),
        ("architecture", "image_size", 16),
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
    with pytest.raises(CardError, match=rf"^({field}[.:].*)?{entry}"):
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


def deep(levels: int) -> Any:
    """Lists in lists."""
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("field", ["extra_field", "provenance", "figures"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (10**30, "expected an integer of at most 64 bits, got 1000"),
        (-(2**63) - 1, "expected an integer of at most 64 bits"),
        (math.nan, "expected a finite number, got nan"),
        (math.inf, "expected a finite number, got inf"),
        ("\ud800", "expected a string of Unicode characters without lone surrogates"),
        (deep(40), "expected at most 32 levels"),
        (deep(900), "expected at most 32 levels"),
        ({"\udfff": 1}, "a field's name: expected a string of Unicode"),
    ],
    ids=["bits", "negative", "NaN", "inf", "surrogate", "deep", "deeper", "name"],
)
def test_a_value_that_clients_could_not_read_is_refused(
    field: str, value: Any, message: str
) -> None:
    card = {**full_card().to_json(), field: {"a": [1, value]}}
    with pytest.raises(CardError, match=rf"^{field}\.a\[1\].*: {message}"):
        ModelCard.from_json(card)


def test_unknown_fields_with_ordinary_values_are_kept() -> None:
    unknown = {"deep": deep(30), "large": 2**63 - 1, "text": "Grüße 🤖", "none": None, "empty": {}}
    card = full_card().to_json() | {"unknown": unknown}
    assert ModelCard.from_json(card).to_json()["unknown"] == unknown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_mean": [9.0, 0.0]}, "action_mean: .* outside of action_low and action_high"),
        ({"action_mean": [-1.1, 0.0]}, "action_mean: .* outside of action_low and action_high"),
        ({"action_std": [1e-3, 1.0]}, "action_std: .* less than a hundredth"),
        ({"action_std": [1e3, 1.0]}, "action_std: .* more than a hundred times"),
    ],
)
def test_unusual_statistics_of_actions_are_warned_about(
    changes: dict[str, Any], message: str
) -> None:
    assert full_card().warnings == ()
    (warning,) = ModelCard.from_json({**full_card().to_json(), **changes}).warnings
    assert re.match(message, warning)


def test_a_calibration_of_latents_that_are_no_gaussian_is_warned_about() -> None:
    card = full_card()
    assert card.calibration is not None
    for sigreg, expected in ((5.0, 0), (74.0, 1)):
        calibration = replace(card.calibration, sigreg_quantiles=(sigreg,) * 11)
        warnings = replace(card, calibration=calibration).warnings
        assert len(warnings) == expected
        assert all("median SIGReg of 74" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "name": "x", "name": "y"}', "the name 'name' is there twice"),
        (b'{"figures": {"a": 1, "a": 1}}', "the name 'a' is there twice"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number of JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b'"' + b"x" * (4 << 20), "expected at most 4194304 bytes"),
        (b"", "is not valid JSON"),
    ],
    ids=["twice", "twice inside", "NaN", "infinity", "5000 digits", "large", "empty"],
)
def test_json_that_readers_take_differently_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(CardError, match=rf"model\.json: .*{message}"):
        read_card(path)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(full_card().to_json()).encode())
    assert read_card(path) == full_card()


def test_a_file_of_a_gigabyte_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CardError, match="expected at most"):
        read_card(path)


def test_a_wrong_field_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(full_card().to_json() | {"crop": "left"}))
    with pytest.raises(CardError, match=r"model\.json: crop: expected null or .* got 'left'"):
        read_card(path)


def test_a_card_without_a_distance_is_as_in_earlier_versions() -> None:
    card = full_card().to_json()
    assert "distance" not in card
    assert "objective" not in card["solver"]


DISTANCE = LearnedDistance(
    network="5d41" * 16,
    training_frames=1000,
    held_out_frames=100,
    rank_correlation=0.8,
    mean_error=4.5,
    next_frame=0.9,
    same_frame=0.01,
    proposal_cost=1.2,
    mean_action_cost=4.4,
)


def test_a_distance_may_be_the_objective() -> None:
    solver = SolverConfig(objective="distance")
    card = replace(full_card(), distance=DISTANCE, solver=solver)
    assert ModelCard.from_json(card.to_json()) == card
    with pytest.raises(CardError, match=r'solver\.objective: expected "latent", since the card'):
        replace(card, distance=None)
    with pytest.raises(CardError, match=r'solver\.objective: .*"latent", "distance", got .goal'):
        replace(card, solver=SolverConfig(objective="goal"))
    with pytest.raises(CardError, match=r"distance\.network: expected the SHA-256 of distance"):
        replace(DISTANCE, network="5d41")


PROBE = StateProbeCard(
    network="5d41" * 16,
    states=("x", "angle"),
    periods=(0.0, 360.0),
    training_frames=1000,
    held_out_frames=100,
    r2=(0.99, -0.1),
    error=(2.0, 40.0),
    ridge_r2=(0.9, 0.0),
    ridge_error=(5.0, 41.0),
)


def test_a_probe_is_kept_and_its_fields_are_checked() -> None:
    card = replace(full_card(), probe=PROBE)
    assert ModelCard.from_json(card.to_json()) == card
    assert "probe" not in full_card().to_json()
    for change, message in (
        ({"network": "5d41"}, r"probe\.network: expected the SHA-256 of probe\.safetensors"),
        ({"states": ["x", "x"]}, r"probe\.states: expected names that all differ"),
        ({"states": ["x", ""]}, r"probe\.states: expected names that all differ"),
        ({"states": ["x", 3]}, r"probe\.states: expected a list of texts, got \['x', 3\]"),
        ({"states": ["x"]}, r"probe\.periods: expected 1 numbers, one for each state"),
        ({"error": [2.0]}, r"probe\.error: expected 2 numbers, one for each state, got \[2\.0\]"),
        ({"periods": [0.0, -1.0]}, r"probe\.periods: expected numbers from 0 on"),
        ({"units": ["px"]}, r"probe: unknown fields \['units'\]"),
    ):
        body = card.to_json()
        with pytest.raises(CardError, match=message):
            ModelCard.from_json(body | {"probe": body["probe"] | change})
