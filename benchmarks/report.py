"""What a benchmark found: figures, each with the target it is held to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Target:
    """A bound that a figure should keep."""

    kind: Literal["at least", "at most"]
    bound: float

    def met(self, value: float) -> bool:
        """Whether the value keeps the bound."""
        return value >= self.bound if self.kind == "at least" else value <= self.bound


@dataclass(frozen=True)
class Figure:
    """One measured number. ``value`` is None where it could not be taken; ``note`` says why."""

    what: str
    value: float | None
    unit: str
    target: Target | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a value."""
        if self.target is None or self.value is None:
            return None
        return self.target.met(self.value)

    def to_json(self) -> dict[str, Any]:
        """The figure under its fields' names."""
        return asdict(self) | {"met": self.met}

    @classmethod
    def from_json(cls, figure: dict[str, Any]) -> Figure:
        """What `to_json` gave."""
        target = figure["target"] and Target(**figure["target"])
        return cls(figure["what"], figure["value"], figure["unit"], target, figure["note"])


@dataclass(frozen=True)
class Report:
    """The figures of one benchmark, and in ``details`` what they were made from."""

    figures: tuple[Figure, ...]
    details: dict[str, Any] = field(default_factory=dict)


def at_least(what: str, value: float | None, unit: str, bound: float, note: str = "") -> Figure:
    """A figure that should not be lower."""
    return Figure(what, value, unit, Target("at least", bound), note)


def at_most(what: str, value: float | None, unit: str, bound: float, note: str = "") -> Figure:
    """A figure that should not be higher."""
    return Figure(what, value, unit, Target("at most", bound), note)
