"""A model's card, `model.json`: everything about a model that its tensors do not say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from lewm_models.config import LeWMConfig, is_finite

TOP_LEVEL = (
    "image_size",
    "latent_dim",
    "history",
    "pixel_mean",
    "pixel_std",
    "action_dim",
    "action_block",
)
"""Hyper-parameters that clients need; the card shows them outside ``architecture``."""

RESERVED_CONTROLLERS = ("none", "hold", "tail")
"""What a plan request may name as its fallback with any model."""

ACTION_STATISTICS = ("action_mean", "action_std", "action_low", "action_high")


class CardError(ValueError):
    """A card that cannot be used; the message names the field."""


@dataclass(frozen=True)
class SolverDefaults:
    """What a plan request that leaves its solver settings out gets.

    What is None is left to the defaults of the solver that a plan is made by; a solver takes no
    notice of settings that it does not have.
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
    """Scores of held-out frames, steps and windows, and the limits beyond which one is an anomaly.

    Norms are judged by the size of their z-score. ``…_quantiles`` are taken at
    `lewm_models.calibration.tail.LEVELS`; ``reference`` is the SHA-256 of the file beside the card
    that Mahalanobis distances are measured by. What was not calibrated is None: older cards know
    norms alone, and frames without actions give no surprise.
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
    """Names, statistics and provenance of one model.

    ``action_mean``, ``action_std``, ``action_low``, ``action_high`` hold one number a raw action
    dimension, in the environment's units; ``action_neutral``, too, is what a robot that has no plan
    does, None for what is nearest to zero. ``controllers`` are the fallback controllers that the
    model brings, by entry point. ``crop`` says what is done with frames that are not
    square: null refuses them, "center" takes their central square. ``extra`` keeps fields this
    version does not know, as they came.
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
    solver: SolverDefaults = SolverDefaults()
    calibration: Calibration | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _is_name(self.name):
            raise CardError(
                "name: expected 1 to 64 letters, digits, dots, dashes or underscores, "
                f"got {self.name!r}"
            )
        for name in ACTION_STATISTICS:
            values = getattr(self, name)
            if len(values) != self.config.action_dim or not all(map(is_finite, values)):
                raise CardError(
                    f"{name}: expected {self.config.action_dim} finite numbers (action_dim), "
                    f"got {list(values)}"
                )
        if min(self.action_std) <= 0:
            raise CardError(f"action_std: expected numbers above 0, got {list(self.action_std)}")
        if any(low >= high for low, high in zip(self.action_low, self.action_high, strict=True)):
            raise CardError(
                f"action_low: expected numbers below action_high {list(self.action_high)}, "
                f"got {list(self.action_low)}"
            )
        self._check_neutral()
        for name in self.controllers:
            if not isinstance(name, str) or not _is_name(name) or name in RESERVED_CONTROLLERS:
                raise CardError(
                    "controllers: expected names other than "
                    f"{', '.join(RESERVED_CONTROLLERS)}, got {name!r}"
                )
        if self.crop not in (None, "center"):
            raise CardError(f'crop: expected null or "center", got {self.crop!r}')

    def _check_neutral(self) -> None:
        neutral = self.action_neutral
        if neutral is None:
            return
        if len(neutral) != self.config.action_dim or not all(map(is_finite, neutral)):
            raise CardError(
                f"action_neutral: expected {self.config.action_dim} finite numbers (action_dim), "
                f"got {list(neutral)}"
            )
        bounds = zip(self.action_low, neutral, self.action_high, strict=True)
        if not all(low <= value <= high for low, value, high in bounds):
            raise CardError(
                "action_neutral: expected numbers within action_low and action_high, "
                f"got {list(neutral)}"
            )

    def to_json(self) -> dict[str, Any]:
        """The card as it is written to `model.json` and shown to clients."""
        architecture = asdict(self.config)
        top_level = {name: architecture.pop(name) for name in TOP_LEVEL}
        body = asdict(self)
        for name in ("name", "config", "extra"):
            del body[name]
        body["solver"] = {
            name: value for name, value in body["solver"].items() if value is not None
        }
        card = {"name": self.name, **top_level, **body, "architecture": architecture, **self.extra}
        return json.loads(json.dumps(card))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> ModelCard:
        """Read a card.

        Raises:
            CardError: a field is missing or of the wrong kind.
        """
        known = dict(card)
        architecture = _take(known, "architecture", dict)
        architecture |= {name: _take(known, name) for name in TOP_LEVEL if name in known}
        return cls(
            config=config_from_json(architecture),
            **{name: _numbers(known, name) for name in ACTION_STATISTICS},
            name=_take(known, "name", str),
            action_neutral=(
                _numbers(known, "action_neutral")
                if known.get("action_neutral") is not None
                else known.pop("action_neutral", None)
            ),
            controllers=tuple(_take(known, "controllers", list)) if "controllers" in known else (),
            crop=known.pop("crop", None),
            solver=_part(SolverDefaults, known, "solver") or SolverDefaults(),
            calibration=_part(Calibration, known, "calibration"),
            provenance=_take(known, "provenance", dict) if "provenance" in known else {},
            figures=_take(known, "figures", dict) if "figures" in known else {},
            extra=known,
        )

    def with_figures(self, **figures: Any) -> ModelCard:
        """The same card with measured figures added."""
        return replace(self, figures={**self.figures, **figures})


def config_from_json(architecture: Mapping[str, Any]) -> LeWMConfig:
    """Hyper-parameters from a card's fields.

    Raises:
        CardError: one is unknown, of the wrong kind or inconsistent.
    """
    names = {field.name for field in fields(LeWMConfig)}
    if unknown := sorted(set(architecture) - names):
        raise CardError(f"architecture: unknown fields {unknown}")
    # ImageNet's statistics are assumed where nothing is said; a wrong guess of any other field
    # could fit the tensors and still give another model.
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
        CardError: it is missing, is no JSON, or a field is wrong.
    """
    return ModelCard.from_json(read_json(path))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CardError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CardError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path}: is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)


def _take(card: dict[str, Any], name: str, kind: type | None = None) -> Any:
    if name not in card:
        raise CardError(f"{name}: is missing")
    value = card.pop(name)
    if kind is not None and not isinstance(value, kind):
        raise CardError(f"{name}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _numbers(card: dict[str, Any], name: str) -> tuple[float, ...]:
    return tuple(_take(card, name, list))


def _part(kind: type, card: dict[str, Any], name: str) -> Any:
    """A nested dataclass of plain numbers and strings, or None where the card has none."""
    value = card.pop(name, None)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise CardError(f"{name}: expected an object, got {value!r:.80}")
    types = {field.name: str(field.type) for field in fields(kind)}
    if unknown := sorted(set(value) - set(types)):
        raise CardError(f"{name}: unknown fields {unknown}, known are {sorted(types)}")
    for key, entry in value.items():
        if not _fits(types[key], entry):
            raise CardError(f"{name}.{key}: expected {types[key]}, got {entry!r:.80}")
    read = {key: tuple(entry) if type(entry) is list else entry for key, entry in value.items()}
    try:
        return kind(**read)
    except TypeError as error:
        raise CardError(f"{name}: {error}") from error


def _fits(annotation: str, entry: object) -> bool:
    """Whether a JSON value is what a dataclass's field says: a number, a string, a list, null."""
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
