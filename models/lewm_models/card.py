"""The model card, `model.json`: everything about a model that its tensors do not show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lewm_models import strict_json
from lewm_models.calibration.limits import QUANTILE_LEVELS
from lewm_models.config import FORM_FIELDS, LeWMConfig, StateInput, is_finite
from lewm_models.file_kinds import JSON_DOCUMENT, kind_of_file
from lewm_models.preprocessing import CROPS, Crop

TOP_LEVEL_FIELDS = (
    "image_size",
    "latent_dim",
    "history",
    "pixel_mean",
    "pixel_std",
    "action_dim",
    "action_block",
    "state_input",
)
"""Hyper-parameters that clients need. In a card they stand beside ``architecture``, not in it."""

ACTION_FIELDS = ("action_mean", "action_std", "action_low", "action_high")

RESERVED_CONTROLLERS = ("none", "hold", "tail")
"""Fallbacks that exist for every model, so that no model's controller may have their names."""

MAX_NAME_LENGTH = 64

MAX_JSON_BYTES = 4 << 20
"""The largest `model.json` or `config.json` that is read. They usually have a few kilobytes."""

MAX_ACTION_VALUE, MIN_ACTION_STD = 1e9, 1e-9
"""The largest number in the statistics and bounds of actions, and the least deviation."""

MAX_ZSCORED_BOUND = 1e6
"""The most deviations that a bound of actions may lie from their mean. Far beyond this, roll-outs
overflow."""

UNUSUAL_ZSCORED_BOUND = 100.0
"""More deviations than this between a bound and the mean are possible, but probably a mistake."""

MIN_SCORE, MAX_SCORE = 1e-9, 1e9
"""The range of norms, distances and limits in a calibration."""

MAX_SIGREG_WINDOW = 1 << 16

ObjectiveName = Literal["latent", "distance"]
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
"""What a search minimises: the squared distance between latents, or the learned distance."""

MAX_SOLVER_COUNTS = {"samples": 1_000_000, "iterations": 1_000_000, "horizon": 10_000}
"""The largest numbers of a solver's defaults. A server has lower limits of its own."""

UNTRAINED_SIGREG = 50.0
"""Ordinary frames of a trained model have a median SIGReg of about 5. If their latents were all the
same, it would be 51 (0.4 times the window of 128), so this model tells frames apart badly."""


FloatArray = NDArray[np.float64]


class CardError(ValueError):
    """A card that cannot be used; the message names the field."""


@dataclass(frozen=True)
class SolverConfig:
    """The settings of a search. A card holds the defaults, and a request may replace some of them.

    A setting that is None has the solver's own default. A solver ignores settings that it does not
    have. An ``objective`` of None is "latent"; cards of earlier versions do not have it.
    """

    name: str = "cem"
    samples: int = 300
    iterations: int = 30
    elites: int = 30
    horizon: int = 5
    tolerance: float = 0.0
    momentum: float | None = None
    deviation: float | None = None
    noise_exponent: float | None = None
    temperature: float | None = None
    learning_rate: float | None = None
    objective: str | None = None


@dataclass(frozen=True)
class LearnedDistance:
    """The learned distance of a model, and how good it is.

    Attributes:
        network: the SHA-256 of `distance.safetensors`.
        training_frames: the recorded frames it was trained on.
        held_out_frames: those that the other values were measured on, see
            `lewm_models.distance.quality.DistanceQuality`.
        proposal_cost: the mean distance on the way of proposed actions, in blocks.
        mean_action_cost: the same of the mean action.
    """

    network: str
    training_frames: int
    held_out_frames: int
    rank_correlation: float
    mean_error: float
    next_frame: float
    same_frame: float
    proposal_cost: float | None = None
    mean_action_cost: float | None = None

    def __post_init__(self) -> None:
        _check_sha256("distance.network", self.network, "distance.safetensors")


@dataclass(frozen=True)
class StateProbeCard:
    """The probe of a model: which states it reads from a latent, and how well.

    The lists have one entry for each state. Errors are in the state's unit.

    Attributes:
        network: the SHA-256 of `probe.safetensors`.
        states: the names of the states.
        periods: the period of each state, such as an angle; 0: it has none.
        training_frames: the recorded frames that it was fitted to.
        held_out_frames: those that the other values were measured on.
        r2: the share of a state's variance that the MLP reads.
        error: the mean absolute error of the MLP.
        ridge_r2: as ``r2``, of the linear map.
        ridge_error: as ``error``, of the linear map.
        low: the least value of each state that it was fitted to; None in cards of earlier versions.
        high: the greatest one.
    """

    network: str
    states: tuple[str, ...]
    periods: tuple[float, ...]
    training_frames: int
    held_out_frames: int
    r2: tuple[float, ...]
    error: tuple[float, ...]
    ridge_r2: tuple[float, ...]
    ridge_error: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_sha256("probe.network", self.network, "probe.safetensors")
        if not self.states or len(set(self.states)) < len(self.states) or "" in self.states:
            raise CardError(
                f"probe.states: expected names that all differ, got {_shown(self.states)}"
            )
        for name in ("periods", "r2", "error", "ridge_r2", "ridge_error", "low", "high"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.states):
                raise CardError(
                    f"probe.{name}: expected {len(self.states)} numbers, one for each state, got "
                    f"{_shown(values)}"
                )
        if min(self.periods) < 0:
            raise CardError(
                f"probe.periods: expected numbers from 0 on, got {_shown(self.periods)}"
            )


@dataclass(frozen=True)
class FrameDecoderCard:
    """The decoder of a model, and how good its pictures are.

    Attributes:
        network: the SHA-256 of `decoder.safetensors`.
        training_frames: the recorded frames that it was trained on.
        held_out_frames: those that the other values were measured on.
        error: the mean absolute error of a pixel's value, 0 to 1.
        mean_frame_error: the same of the mean frame.
    """

    network: str
    training_frames: int
    held_out_frames: int
    error: float
    mean_frame_error: float

    def __post_init__(self) -> None:
        _check_sha256("decoder.network", self.network, "decoder.safetensors")


@dataclass(frozen=True)
class Calibration:
    """The distributions of ordinary scores, and the limits above which a score is anomalous.

    Norms and distances were measured on ``frames`` frames, surprise on ``steps`` predictions, and
    SIGReg on ``windows`` windows. ``zscore_limit`` applies to the absolute z-score of a latent's
    norm. The ``…_quantiles`` are taken at `lewm_models.calibration.limits.QUANTILE_LEVELS`.
    ``reference`` is the SHA-256 of `calibration.safetensors`, which the Mahalanobis distance needs.
    A score that was not calibrated is None: older cards have the norm only, and frames without
    actions give no surprise.
    """

    frames: int
    norm_mean: float
    norm_std: float
    zscore_limit: float
    norm_quantiles: tuple[float, ...] | None = None
    false_alarm_rate: float | None = None
    mahalanobis_limit: float | None = None
    mahalanobis_quantiles: tuple[float, ...] | None = None
    reference: str | None = None
    steps: int | None = None
    surprise_limit: float | None = None
    surprise_quantiles: tuple[float, ...] | None = None
    windows: int | None = None
    sigreg_window: int | None = None
    sigreg_limit: float | None = None
    sigreg_quantiles: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            CardError: a value is impossible; the message starts with its path in the card.
        """
        for name, value in asdict(self).items():
            if value is None:
                continue
            if name.endswith("_quantiles"):
                self._check_quantiles(name, value)
            elif name == "norm_std" or name.endswith("_limit"):
                _check_range(f"calibration.{name}", value, MIN_SCORE, MAX_SCORE)
        _check_range("calibration.norm_mean", self.norm_mean, 0, MAX_SCORE)
        if self.false_alarm_rate is not None:
            _check_range("calibration.false_alarm_rate", self.false_alarm_rate, MIN_SCORE, 1)
        if self.sigreg_window is not None:
            _check_range("calibration.sigreg_window", self.sigreg_window, 1, MAX_SIGREG_WINDOW)
        if self.reference is not None:
            _check_sha256("calibration.reference", self.reference, "calibration.safetensors")

    def _check_quantiles(self, name: str, values: tuple[float, ...]) -> None:
        ascending = list(values) == sorted(values)
        within = all(0 <= value <= MAX_SCORE for value in values)
        if len(values) != len(QUANTILE_LEVELS) or not ascending or not within:
            raise CardError(
                f"calibration.{name}: expected {len(QUANTILE_LEVELS)} numbers from 0 to "
                f"{MAX_SCORE:g} in ascending order, got {_shown(list(values))}"
            )


@dataclass(frozen=True)
class ModelCard:
    """Name, statistics and provenance of one model.

    Args:
        name: 1 to 64 letters, digits, dots, dashes or underscores.
        config: the hyper-parameters.
        action_mean: one number per action dimension, in the environment's units, as in all fields
            ``action_…``. The z-score of an action subtracts it.
        action_std: the divisor of the z-score.
        action_low: the lower bounds of every planned action.
        action_high: the upper bounds of every planned action.
        action_neutral: the action of a robot without a plan; None means the action nearest to zero
            within the bounds.
        action_rate_limit: the largest change of each action from one step to the next in plans;
            None: any.
        controllers: entry-point names of the fallback controllers for this model.
        crop: how frames that are not square become square; None refuses them.
        solver: the defaults of plan requests.
        calibration: None if the model is not calibrated.
        distance: None if the model has no learned distance.
        probe: None if the model has no probe.
        decoder: None if the model has no decoder.
        provenance: where the model comes from and how to make it again.
        figures: measured results, by protocol; "figures" is their name in the file.
        extra: fields that this version does not know, unchanged.

    Raises:
        CardError: a value is impossible; the message starts with the field's name.
    """

    name: str
    config: LeWMConfig
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_neutral: tuple[float, ...] | None = None
    action_rate_limit: tuple[float, ...] | None = None
    controllers: tuple[str, ...] = ()
    crop: Crop | None = None
    solver: SolverConfig = SolverConfig()
    calibration: Calibration | None = None
    distance: LearnedDistance | None = None
    probe: StateProbeCard | None = None
    decoder: FrameDecoderCard | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        self._check_actions()
        for name in self.controllers:
            if not isinstance(name, str) or not _is_name(name) or name in RESERVED_CONTROLLERS:
                raise CardError(
                    "controllers: expected names other than "
                    f"{', '.join(RESERVED_CONTROLLERS)}, got {_shown(name)}"
                )
        if self.crop is not None and self.crop not in CROPS:
            known = ", ".join(f'"{crop}"' for crop in CROPS)
            raise CardError(f"crop: expected null or one of {known}, got {_shown(self.crop)}")
        try:
            strict_json.check_values(
                {"provenance": self.provenance, "figures": self.figures, **self.extra}
            )
        except ValueError as error:
            raise CardError(str(error)) from error
        for name, most in MAX_SOLVER_COUNTS.items():
            _check_range(f"solver.{name}", getattr(self.solver, name), 1, most)
        self._check_objective()

    def _check_objective(self) -> None:
        objective = self.solver.objective
        if objective is not None and objective not in OBJECTIVES:
            known = ", ".join(f'"{name}"' for name in OBJECTIVES)
            raise CardError(f"solver.objective: expected one of {known}, got {_shown(objective)}")
        if objective == "distance" and self.distance is None:
            raise CardError(
                'solver.objective: expected "latent", since the card has no distance '
                '(`lewm models distance` trains one), got "distance"'
            )

    def _check_actions(self) -> None:
        for name in ACTION_FIELDS:
            self._check_action_numbers(name, getattr(self, name))
        if min(self.action_std) < MIN_ACTION_STD:
            raise CardError(
                f"action_std: expected numbers from {MIN_ACTION_STD:g} on, "
                f"got {_shown(self.action_std)}"
            )
        # A server computes in float32, in which different numbers may become equal.
        low, high = np.array(self.action_low, np.float32), np.array(self.action_high, np.float32)
        if not (low < high).all():
            raise CardError(
                f"action_low: expected numbers below action_high {_shown(self.action_high)} as "
                f"float32, got {_shown(self.action_low)}"
            )
        zscored_low, zscored_high = self.zscored_bounds
        if np.abs([zscored_low, zscored_high]).max() > MAX_ZSCORED_BOUND:
            raise CardError(
                "action_std: expected deviations of which action_low and action_high are at most "
                f"{MAX_ZSCORED_BOUND:g} away from action_mean, got {_shown(self.action_std)}"
            )
        if not (zscored_low.astype(np.float32) < zscored_high.astype(np.float32)).all():
            raise CardError(
                "action_std: expected deviations that tell action_low from action_high in "
                f"float32, got {_shown(self.action_std)}"
            )
        if self.action_neutral is not None:
            self._check_action_numbers("action_neutral", self.action_neutral)
            bounded = zip(self.action_low, self.action_neutral, self.action_high, strict=True)
            if not all(low <= value <= high for low, value, high in bounded):
                raise CardError(
                    "action_neutral: expected numbers within action_low and action_high, "
                    f"got {_shown(self.action_neutral)}"
                )
        if self.action_rate_limit is not None:
            self._check_action_numbers("action_rate_limit", self.action_rate_limit)
            if min(self.action_rate_limit) <= 0:
                raise CardError(
                    "action_rate_limit: expected numbers above 0, "
                    f"got {_shown(self.action_rate_limit)}"
                )

    def _check_action_numbers(self, name: str, values: tuple[float, ...]) -> None:
        if len(values) != self.config.action_dim or not all(
            is_finite(value) and abs(value) <= MAX_ACTION_VALUE for value in values
        ):
            raise CardError(
                f"{name}: expected {self.config.action_dim} finite numbers (action_dim) within "
                f"±{MAX_ACTION_VALUE:g}, got {_shown(values)}"
            )

    @property
    def zscored_bounds(self) -> tuple[FloatArray, FloatArray]:
        """The bounds (action_dim,) of an action in deviations from the mean."""
        mean, std, low, high = (np.array(getattr(self, name)) for name in ACTION_FIELDS)
        return (low - mean) / std, (high - mean) / std

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is possible in this card, but probably a mistake: one sentence each."""
        low, high = self.zscored_bounds
        found = []
        if (low > 0).any() or (high < 0).any():
            found.append(
                f"action_mean: {_shown(self.action_mean)} is outside of action_low and action_high"
            )
        if max(-low.min(), high.max()) > UNUSUAL_ZSCORED_BOUND:
            found.append(
                f"action_std: {_shown(self.action_std)} is less than a hundredth of the distance "
                "from action_mean to a bound"
            )
        if (high - low).min() < 1 / UNUSUAL_ZSCORED_BOUND:
            found.append(
                f"action_std: {_shown(self.action_std)} is more than a hundred times the distance "
                "between action_low and action_high"
            )
        quantiles = None if self.calibration is None else self.calibration.sigreg_quantiles
        if quantiles is not None and quantiles[QUANTILE_LEVELS.index(0.5)] > UNTRAINED_SIGREG:
            found.append(
                f"calibration: the latents of ordinary frames have a median SIGReg of "
                f"{quantiles[QUANTILE_LEVELS.index(0.5)]:.0f}, that of a trained model is about 5; "
                "is the model trained, and are these the frames that it was trained for?"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The card as `model.json` holds it and as clients see it."""
        architecture = asdict(self.config)
        for name in FORM_FIELDS:
            if architecture[name] == getattr(LeWMConfig, name):
                del architecture[name]
        if architecture["state_input"] is None:
            del architecture["state_input"]
        top_level = {
            name: architecture.pop(name) for name in TOP_LEVEL_FIELDS if name in architecture
        }
        body = asdict(self)
        for name in ("name", "config", "extra"):
            del body[name]
        for name in ("action_rate_limit", "distance", "probe", "decoder"):
            if body[name] is None:  # cards of earlier versions do not have it
                del body[name]
        body["solver"] = {
            name: value for name, value in body["solver"].items() if value is not None
        }
        if self.probe is not None and self.probe.low is None:
            del body["probe"]["low"], body["probe"]["high"]
        card = {"name": self.name, **top_level, **body, "architecture": architecture, **self.extra}
        # JSON has lists where dataclasses have tuples.
        return json.loads(json.dumps(card))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> ModelCard:
        """Read a card.

        Raises:
            CardError: a field is missing or wrong; the message names it.
        """
        rest = dict(card)
        architecture = _pop(rest, "architecture", dict)
        state_input = _pop_nested(rest, "state_input", StateInput)
        top_level = {name: rest.pop(name) for name in TOP_LEVEL_FIELDS if name in rest}
        if state_input is not None:
            top_level["state_input"] = state_input
        if repeated := sorted(set(architecture) & set(top_level)):
            raise CardError(f"architecture: repeats fields of the card, {repeated}")
        architecture = {**architecture, **top_level}
        return cls(
            config=config_from_json(architecture),
            **{name: tuple(_pop(rest, name, list)) for name in ACTION_FIELDS},
            name=_pop(rest, "name", str),
            action_neutral=_pop_numbers(rest, "action_neutral"),
            action_rate_limit=_pop_numbers(rest, "action_rate_limit"),
            controllers=tuple(_pop(rest, "controllers", list)) if "controllers" in rest else (),
            crop=rest.pop("crop", None),
            solver=_pop_nested(rest, "solver", SolverConfig) or SolverConfig(),
            calibration=_pop_nested(rest, "calibration", Calibration),
            distance=_pop_nested(rest, "distance", LearnedDistance),
            probe=_pop_nested(rest, "probe", StateProbeCard),
            decoder=_pop_nested(rest, "decoder", FrameDecoderCard),
            provenance=_pop(rest, "provenance", dict) if "provenance" in rest else {},
            figures=_pop(rest, "figures", dict) if "figures" in rest else {},
            extra=rest,
        )

    def with_figures(self, **figures: Any) -> ModelCard:
        """The same card with these measured results added."""
        return replace(self, figures={**self.figures, **figures})


def config_from_json(architecture: Mapping[str, Any]) -> LeWMConfig:
    """Hyper-parameters from JSON values.

    Pixel statistics that are missing are ImageNet's; norms and activations are the paper's. A state
    input is a `StateInput`; if it is missing, the model sees pixels only.

    Raises:
        CardError: a field is missing, unknown or wrong.
    """
    names = {field.name for field in fields(LeWMConfig)}
    if unknown := sorted(set(architecture) - names):
        raise CardError(f"architecture: unknown fields {unknown}")
    # With a wrong guess of another field, such as the number of heads, the tensors might still fit
    # and the model would be another one.
    with_defaults = {"pixel_mean", "pixel_std", "state_input", *FORM_FIELDS}
    if missing := sorted(names - set(architecture) - with_defaults):
        raise CardError(f"{', '.join(missing)}: missing")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in architecture.items()
    }
    try:
        return LeWMConfig(**values)
    except (TypeError, ValueError) as error:
        raise CardError(str(error)) from error


def read_card(path: Path) -> ModelCard:
    """Read `model.json`.

    Raises:
        CardError: the file is missing or is not JSON, or a field is wrong.
    """
    content = read_json(path)
    try:
        return ModelCard.from_json(content)
    except CardError as error:
        raise CardError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CardError: the file is missing or holds something else.
    """
    try:
        with path.open("rb") as file:
            encoded = file.read(MAX_JSON_BYTES + 1)
        if len(encoded) > MAX_JSON_BYTES:
            raise CardError(f"{path}: expected at most {MAX_JSON_BYTES} bytes, got more")
        content = strict_json.parse(encoded)
    except OSError as error:
        raise CardError(f"{path}: cannot be read: {error.strerror}") from error
    except CardError:
        raise
    except (ValueError, RecursionError) as error:
        kind = kind_of_file(path)
        reason = f"{error}" if kind in (None, JSON_DOCUMENT) else f"it is {kind}"
        raise CardError(f"{path}: is not valid JSON: {reason}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def check_name(name: object) -> None:
    """Refuse what cannot be a model's name.

    Raises:
        CardError: the message says what a name may be.
    """
    if not isinstance(name, str) or not _is_name(name):
        raise CardError(
            f"name: expected 1 to {MAX_NAME_LENGTH} letters, digits, dots, dashes or "
            f"underscores, not only dots, got {_shown(name)}"
        )


def _is_name(name: str) -> bool:
    allowed = all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    # As part of a path, "." and ".." would name another place.
    return 0 < len(name) <= MAX_NAME_LENGTH and allowed and name.strip(".") != ""


def _shown(value: object) -> str:
    """A value as error messages show it, shortened."""
    text = ascii(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:79] + "…"


def _check_sha256(field: str, value: str, file: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise CardError(
            f"{field}: expected the SHA-256 of {file}, 64 hexadecimal digits, got {_shown(value)}"
        )


def _check_range(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise CardError(f"{field}: expected a number from {least:g} to {most:g}, got {value!r}")


def _pop(card: dict[str, Any], name: str, kind: type) -> Any:
    """Remove a required field from the card and return it."""
    if name not in card:
        raise CardError(f"{name}: is missing")
    value = card.pop(name)
    if not isinstance(value, kind):
        raise CardError(f"{name}: expected {kind.__name__}, got {_shown(value)}")
    return value


def _pop_numbers(card: dict[str, Any], name: str) -> tuple[float, ...] | None:
    """Remove an optional list of numbers from the card and return it, None if it is absent."""
    if card.get(name) is None:
        card.pop(name, None)
        return None
    return tuple(_pop(card, name, list))


def _pop_nested(card: dict[str, Any], name: str, kind: type) -> Any:
    """Remove a nested object from the card and return it as a dataclass, None if it is absent."""
    value = card.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CardError(f"{name}: expected an object, got {_shown(value)}")
    types = {field.name: str(field.type) for field in fields(kind)}
    if unknown := sorted(set(value) - set(types)):
        raise CardError(f"{name}: unknown fields {unknown}, known are {sorted(types)}")
    for key, entry in value.items():
        if not _has_type(entry, types[key]):
            expected = _describe_type(types[key])
            raise CardError(f"{name}.{key}: expected {expected}, got {_shown(entry)}")
    values = {key: tuple(entry) if type(entry) is list else entry for key, entry in value.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise CardError(f"{name}: {error}") from error
    except ValueError as error:
        raise CardError(str(error)) from error


def _describe_type(annotation: str) -> str:
    """What `_has_type` accepts for a dataclass field's annotation, in words."""
    kind = annotation.removesuffix(" | None")
    words = {
        "str": "text",
        "int": "an integer of at least 1",
        "float": "a finite number",
        "tuple[str, ...]": "a list of texts",
    }
    described = words.get(kind, "a list of finite numbers")
    return described if kind == annotation else f"{described} or null"


def _has_type(entry: object, annotation: str) -> bool:
    """Whether a JSON value fits a dataclass field's annotation.

    Integers must be at least 1 and fit in 64 bits.
    """
    kind = annotation.removesuffix(" | None")
    if entry is None:
        return kind != annotation
    if kind == "str":
        return isinstance(entry, str)
    if kind == "int":
        return type(entry) is int and 1 <= entry <= strict_json.MAX_INTEGER
    if kind == "float":
        return is_finite(entry)
    if kind == "tuple[str, ...]":
        return type(entry) is list and all(isinstance(text, str) for text in entry)
    return type(entry) is list and all(map(is_finite, entry))
