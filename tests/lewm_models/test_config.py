"""Impossible hyper-parameters are refused with their names."""

import math
from dataclasses import replace
from typing import Any

import pytest

from lewm_models.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRESETS,
    LeWMConfig,
    StateInput,
    is_finite,
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("history", 0),
        ("encoder_depth", 2.0),
        ("latent_dim", "192"),
        ("action_block", True),
        ("image_size", 13),
        ("encoder_heads", 5),
        ("dropout", 1.0),
        ("dropout", "0.1"),
        ("dropout", math.nan),
        ("pixel_mean", (0.5, 0.5)),
        ("pixel_mean", 0.5),
        ("pixel_mean", (0.5, 0.5, math.nan)),
        ("pixel_std", (0.5, 0.5, 0.0)),
        ("state_input", ("x", "y")),
    ],
)
def test_an_impossible_value_is_refused_with_its_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        replace(LeWMConfig(), **{field: value})


def test_the_defaults_are_those_of_the_paper() -> None:
    paper = PRESETS["paper"]
    assert paper == LeWMConfig()
    assert (paper.tokens, paper.block_width) == (257, 10)
    assert (paper.pixel_mean, paper.pixel_std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_only_numbers_that_a_float_can_hold_are_finite() -> None:
    assert is_finite(-3)
    assert is_finite(0.5)
    for value in (math.inf, math.nan, 10**400, True, "1", None):
        assert not is_finite(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("names", ()),
        ("names", ("x", "x")),
        ("names", ("x", "")),
        ("mean", (1.0,)),
        ("mean", (1.0, math.nan)),
        ("std", (1.0, 0.0)),
        ("std", (1.0, -1.0)),
        ("std", (1.0, 1.0, 1.0)),
    ],
)
def test_an_impossible_state_input_is_refused_with_its_name(field: str, value: Any) -> None:
    given = {"names": ("x", "y"), "mean": (0.0, 1.0), "std": (1.0, 2.0), field: value}
    with pytest.raises(ValueError, match=rf"^state_input\.{field}: expected"):
        StateInput(**given)
