"""The checks of `lewm pilot`: each has a value, two thresholds and a result; together a verdict."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lewm_models.judging.judge import Judgement
from lewm_models.judging.robustness import Disturbance
from lewm_serve.cli.pilot_data import RecordedData

Verdict = Literal["go", "limits", "no-go"]

VERDICTS: tuple[Verdict, ...] = ("go", "limits", "no-go")
"""From the best to the worst."""

VERDICT_WORDS: Mapping[Verdict, str] = {
    "go": "go",
    "limits": "go with limits",
    "no-go": "no-go",
}
"""The verdicts as people read them."""

EXIT_CODES: Mapping[Verdict, int] = {"go": 0, "limits": 3, "no-go": 4}

NOTICED_SHARE = 1 / 3
"""A disturbance is noticed if the monitor calls at least this share of its frames anomalous: then a
controller that falls back on anomalies does so within a few frames."""


@dataclass(frozen=True)
class Threshold:
    """What a check asks for.

    Attributes:
        name: of the check, as in the file of thresholds.
        meaning: what its value is, for people.
        better: whether low or high values are good.
        go: values at least as good as this are good enough.
        limit: worse values mean no-go.
    """

    name: str
    meaning: str
    better: Literal["lower", "higher"]
    go: float
    limit: float

    def verdict(self, value: float) -> Verdict:
        """What a value means. NaN is no-go."""
        sign = 1 if self.better == "lower" else -1
        if sign * value <= sign * self.go:
            return "go"
        return "limits" if sign * value <= sign * self.limit else "no-go"


THRESHOLDS: Mapping[str, Threshold] = {
    threshold.name: threshold
    for threshold in (
        Threshold("episodes", "usable episodes of the recording", "higher", 20, 2),
        Threshold("steps", "usable steps of the recording", "higher", 5_000, 1_000),
        Threshold(
            "varying_actions", "share of the action dimensions that vary", "higher", 1.0, 0.5
        ),
        Threshold(
            "succession",
            "difference of successive frames ÷ that of distant frames of the same episode",
            "lower",
            0.7,
            0.9,
        ),
        Threshold(
            "prediction_1",
            "prediction error one block ahead ÷ that of copying the last frame",
            "lower",
            0.3,
            0.7,
        ),
        Threshold(
            "prediction_5",
            "prediction error five blocks ahead ÷ that of copying the last frame",
            "lower",
            0.3,
            0.7,
        ),
        Threshold(
            "action_sensitivity",
            "prediction error with the actions of other moments ÷ that with the true ones",
            "higher",
            2.0,
            1.2,
        ),
        Threshold(
            "recovery_correlation",
            "correlation of planned and recorded actions, goals one block ahead",
            "higher",
            0.8,
            0.5,
        ),
        Threshold(
            "recovery_error",
            "error of planned actions ÷ that of actions of other moments, goals one block ahead",
            "lower",
            0.5,
            0.8,
        ),
        Threshold(
            "plan_latent_error",
            "distance of a plan's end from its goal ÷ that of staying, at the model's horizon",
            "lower",
            0.3,
            0.7,
        ),
        Threshold(
            "surprise",
            "share of shuffled frames that surprise more than true ones",
            "higher",
            0.95,
            0.8,
        ),
        Threshold(
            "false_alarms", "share of ordinary frames that raise an alarm", "lower", 0.02, 0.2
        ),
        Threshold(
            "silent_disturbances",
            "strongest disturbances, of 7, that double the action error and are not noticed",
            "lower",
            0,
            7,
        ),
        Threshold(
            "latency", "p99 of a plan ÷ the time between two plans of a robot", "lower", 0.5, 1.0
        ),
    )
}
"""The defaults. The measures of the model are those that ranked models in docs/judging.md. Of the
checkpoints there, Two-Room's after 64 of 800 steps gets limits, the collapsed ones and all of
Reacher get no-go, and the others pass."""


@dataclass(frozen=True)
class Check:
    """A check that was made.

    Attributes:
        threshold: what it asks for.
        value: what was found; NaN: it could not be measured.
        note: why it could not be measured, or what else to know; empty: nothing.
        unmeasured: what it means if the value is NaN.
    """

    threshold: Threshold
    value: float
    note: str = ""
    unmeasured: Verdict = "no-go"

    @property
    def verdict(self) -> Verdict:
        """What the value means."""
        if math.isnan(self.value):
            return self.unmeasured
        return self.threshold.verdict(self.value)

    def describe(self) -> str:
        """One line for people: what was found, and what was expected."""
        threshold = self.threshold
        bound = "at most" if threshold.better == "lower" else "at least"
        value = "not measured" if math.isnan(self.value) else f"{self.value:.3g}"
        note = f" ({self.note})" if self.note else ""
        return (
            f"{VERDICT_WORDS[self.verdict]}: {threshold.name}: {threshold.meaning}: {value}, "
            f"expected {bound} {threshold.go:g}, no-go beyond {threshold.limit:g}{note}"
        )

    def to_json(self) -> dict[str, Any]:
        threshold = self.threshold
        return {
            "name": threshold.name,
            "meaning": threshold.meaning,
            "better": threshold.better,
            "value": float(f"{self.value:.5g}") if math.isfinite(self.value) else None,
            "threshold": threshold.go,
            "limit": threshold.limit,
            "passed": self.verdict == "go",
            "result": self.verdict,
            "note": self.note,
        }


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """The worst result of all checks."""
    return max((check.verdict for check in checks), key=VERDICTS.index, default="no-go")


def read_thresholds(path: Path | None) -> dict[str, Threshold]:
    """The thresholds, with those of a TOML file in place of the defaults.

    The file has a table for each check: ``[prediction_1]`` with ``go`` and ``limit``.

    Raises:
        ValueError: the file is no such file; the message names the file and the entry.
        OSError: it cannot be read.
    """
    found = dict(THRESHOLDS)
    if path is None:
        return found
    for name, entry in read_toml(path).items():
        if name not in found:
            known = ", ".join(found)
            raise ValueError(f"{path}: {name}: there is no such check, expected one of {known}")
        default = found[name]
        if not isinstance(entry, dict) or not entry or set(entry) - {"go", "limit"}:
            raise ValueError(f"{path}: {name}: expected go and limit, got {entry}")
        values = {key: _number(path, f"{name}.{key}", value) for key, value in entry.items()}
        changed = Threshold(
            name,
            default.meaning,
            default.better,
            go=values.get("go", default.go),
            limit=values.get("limit", default.limit),
        )
        if changed.verdict(changed.limit) == "go" and changed.limit != changed.go:
            order = "at most" if default.better == "lower" else "at least"
            raise ValueError(
                f"{path}: {name}: go has to be {order} limit, got {changed.go:g} and "
                f"{changed.limit:g}"
            )
        found[name] = changed
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ValueError: it is not TOML.
        OSError: it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected TOML: {error}") from None


def _number(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{path}: {name}: expected a number, got {value!r}")
    return float(value)


def data_checks(thresholds: Mapping[str, Threshold], data: RecordedData) -> list[Check]:
    """The checks of a recording, which need no model."""
    constant = [
        item.label
        for item, varies in zip(data.dimensions, data.is_varying, strict=True)
        if not varies
    ]
    return [
        Check(thresholds["episodes"], data.episodes, data.problem),
        Check(thresholds["steps"], data.steps, data.problem),
        Check(
            thresholds["varying_actions"],
            data.varying,
            f"constant: {', '.join(constant)}" if constant else "",
        ),
        Check(
            thresholds["succession"],
            data.succession,
            "the frames do not differ, or none can be used" if math.isnan(data.succession) else "",
        ),
    ]


def model_checks(
    thresholds: Mapping[str, Threshold],
    judgement: Judgement,
    disturbances: Sequence[Disturbance],
    *,
    horizon: int,
) -> Iterator[Check]:
    """The checks of a model on held-out episodes."""
    measures = {measure.name: measure for measure in judgement.measures}

    def check(
        name: str, measure: str, baseline: str | None = None, unmeasured: Verdict = "no-go"
    ) -> Check:
        found = measures.get(measure)
        if found is None:
            note = f"{measure} could not be measured"
            return Check(thresholds[name], math.nan, note, unmeasured)
        value = found.estimate.value
        if baseline is not None:
            value /= max(found.baselines[baseline].value, 1e-12)
        return Check(thresholds[name], value)

    yield check("prediction_1", "prediction_error_1", "copy the last")
    yield check("prediction_5", "prediction_error_5", "copy the last", "limits")
    yield check("action_sensitivity", "action_sensitivity_1")
    yield check("recovery_correlation", "recovery_1_action_correlation")
    yield check("recovery_error", "recovery_1_action_error", "random actions")
    yield check("plan_latent_error", f"recovery_{horizon}_latent_error", "stay", "limits")
    yield check("surprise", "surprise_shuffled_above_true")
    if "false_alarms_any" in measures:
        yield check("false_alarms", "false_alarms_any")
    else:
        yield Check(
            thresholds["false_alarms"],
            math.nan,
            "the model is not calibrated, so that it reports no anomaly: `lewm models calibrate`",
            unmeasured="limits",
        )
    yield _silent(thresholds["silent_disturbances"], disturbances)


def _silent(threshold: Threshold, disturbances: Sequence[Disturbance]) -> Check:
    """How many of the strongest disturbances harm plans and are not noticed."""
    (undisturbed,) = (found for found in disturbances if found.level == 0)
    strongest = [found for found in disturbances if found.level == 3]
    silent = [
        found.kind
        for found in strongest
        if found.action_error > 2 * undisturbed.action_error
        and (found.noticed or 0.0) < NOTICED_SHARE
    ]
    return Check(threshold, len(silent), ", ".join(silent))
