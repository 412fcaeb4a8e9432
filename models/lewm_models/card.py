"""The model card, `model.json`: everything about a model that its tensors do not show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from lewm_models.config import LeWMConfig, is_finite
from lewm_models.file_kinds import JSON_DOCUMENT, kind_of_file

TOP_LEVEL_FIELDS = (
    "image_size",
    "latent_dim",
    "history",
    "pixel_mean",
    "pixel_std",
    "action_dim",
    "action_block",
)
"""Hyper-parameters that clients need. In a card they stand beside ``architecture``, not in it."""

ACTION_FIELDS = ("action_mean", "action_std", "action_low", "action_high")

RESERVED_CONTROLLERS = ("none", "hold", "tail")
"""Fallbacks that exist for every model, so that no model's controller may have their names."""

MAX_NAME_LENGTH = 64


class CardError(ValueError):
    """A card that cannot be used; the message names the field."""


@dataclass(frozen=True)
class SolverConfig:
    """The settings of a search. A card holds the defaults, and a request may replace some of them.

    A setting that is None has the solver's own default. A solver ignores settings that it does not
    have.
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
        controllers: entry-point names of the fallback controllers for this model.
        crop: None refuses frames that are not square; "center" takes their central square.
        solver: the defaults of plan requests.
        calibration: None if the model is not calibrated.
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
    controllers: tuple[str, ...] = ()
    crop: Literal["center"] | None = None
    solver: SolverConfig = SolverConfig()
    calibration: Calibration | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _is_name(self.name):
            raise CardError(
                f"name: expected 1 to {MAX_NAME_LENGTH} letters, digits, dots, dashes or "
                f"underscores, got {self.name!r}"
            )
        self._check_actions()
        for name in self.controllers:
            if not isinstance(name, str) or not _is_name(name) or name in RESERVED_CONTROLLERS:
                raise CardError(
                    "controllers: expected names other than "
                    f"{', '.join(RESERVED_CONTROLLERS)}, got {name!r}"
                )
        if self.crop not in (None, "center"):
            raise CardError(f'crop: expected null or "center", got {self.crop!r}')

    def _check_actions(self) -> None:
        for name in ACTION_FIELDS:
            self._check_action_numbers(name, getattr(self, name))
        if min(self.action_std) <= 0:
            raise CardError(f"action_std: expected numbers above 0, got {list(self.action_std)}")
        if any(low >= high for low, high in zip(self.action_low, self.action_high, strict=True)):
            raise CardError(
                f"action_low: expected numbers below action_high {list(self.action_high)}, "
                f"got {list(self.action_low)}"
            )
        if self.action_neutral is not None:
            self._check_action_numbers("action_neutral", self.action_neutral)
            bounded = zip(self.action_low, self.action_neutral, self.action_high, strict=True)
            if not all(low <= value <= high for low, value, high in bounded):
                raise CardError(
                    "action_neutral: expected numbers within action_low and action_high, "
                    f"got {list(self.action_neutral)}"
                )

    def _check_action_numbers(self, name: str, values: tuple[float, ...]) -> None:
        if len(values) != self.config.action_dim or not all(map(is_finite, values)):
            raise CardError(
                f"{name}: expected {self.config.action_dim} finite numbers (action_dim), "
                f"got {list(values)}"
            )

    def to_json(self) -> dict[str, Any]:
        """The card as `model.json` holds it and as clients see it."""
        architecture = asdict(self.config)
        top_level = {name: architecture.pop(name) for name in TOP_LEVEL_FIELDS}
        body = asdict(self)
        for name in ("name", "config", "extra"):
            del body[name]
        body["solver"] = {
            name: value for name, value in body["solver"].items() if value is not None
        }
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
        architecture = {
            **_pop(rest, "architecture", dict),
            **{name: rest.pop(name) for name in TOP_LEVEL_FIELDS if name in rest},
        }
        if rest.get("action_neutral") is None:
            rest.pop("action_neutral", None)
        return cls(
            config=config_from_json(architecture),
            **{name: tuple(_pop(rest, name, list)) for name in ACTION_FIELDS},
            name=_pop(rest, "name", str),
            action_neutral=(
                tuple(_pop(rest, "action_neutral", list)) if "action_neutral" in rest else None
            ),
            controllers=tuple(_pop(rest, "controllers", list)) if "controllers" in rest else (),
            crop=rest.pop("crop", None),
            solver=_pop_nested(rest, "solver", SolverConfig) or SolverConfig(),
            calibration=_pop_nested(rest, "calibration", Calibration),
            provenance=_pop(rest, "provenance", dict) if "provenance" in rest else {},
            figures=_pop(rest, "figures", dict) if "figures" in rest else {},
            extra=rest,
        )

    def with_figures(self, **figures: Any) -> ModelCard:
        """The same card with these measured results added."""
        return replace(self, figures={**self.figures, **figures})


def config_from_json(architecture: Mapping[str, Any]) -> LeWMConfig:
    """Hyper-parameters from JSON values. Pixel statistics that are missing are ImageNet's.

    Raises:
        CardError: a field is missing, unknown or wrong.
    """
    names = {field.name for field in fields(LeWMConfig)}
    if unknown := sorted(set(architecture) - names):
        raise CardError(f"architecture: unknown fields {unknown}")
    # Only the pixel statistics have a default here. With a wrong guess of another field, such as
    # the number of heads, the tensors might still fit and the model would be another one.
    if missing := sorted(names - set(architecture) - {"pixel_mean", "pixel_std"}):
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
    return ModelCard.from_json(read_json(path))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CardError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # Windows writes a mark
    except OSError as error:
        raise CardError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        kind = kind_of_file(path)
        reason = f"{error}" if kind in (None, JSON_DOCUMENT) else f"it is {kind}"
        raise CardError(f"{path}: is not valid JSON: {reason}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _is_name(name: str) -> bool:
    allowed = all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    return 0 < len(name) <= MAX_NAME_LENGTH and allowed


def _pop(card: dict[str, Any], name: str, kind: type) -> Any:
    """Remove a required field from the card and return it."""
    if name not in card:
        raise CardError(f"{name}: is missing")
    value = card.pop(name)
    if not isinstance(value, kind):
        raise CardError(f"{name}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _pop_nested(card: dict[str, Any], name: str, kind: type) -> Any:
    """Remove a nested object from the card and return it as a dataclass, None if it is absent."""
    value = card.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CardError(f"{name}: expected an object, got {value!r:.80}")
    types = {field.name: str(field.type) for field in fields(kind)}
    if unknown := sorted(set(value) - set(types)):
        raise CardError(f"{name}: unknown fields {unknown}, known are {sorted(types)}")
    for key, entry in value.items():
        if not _has_type(entry, types[key]):
            raise CardError(f"{name}.{key}: expected {types[key]}, got {entry!r:.80}")
    values = {key: tuple(entry) if type(entry) is list else entry for key, entry in value.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise CardError(f"{name}: {error}") from error


def _has_type(entry: object, annotation: str) -> bool:
    """Whether a JSON value fits a dataclass field's annotation; integers must be at least 1."""
    kind = annotation.removesuffix(" | None")
    if entry is None:
        return kind != annotation
    if kind == "str":
        return isinstance(entry, str)
    if kind == "int":
        return type(entry) is int and entry >= 1
    if kind == "float":
        return is_finite(entry)
    return type(entry) is list and all(map(is_finite, entry))
