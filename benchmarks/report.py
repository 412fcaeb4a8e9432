"""What a benchmark is given and what it returns: its options, and measurements with targets.

This module needs the standard library alone, so that benchmarks also run on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


def _ignore(_text: str) -> None:
    pass


@dataclass(frozen=True)
class RunOptions:
    """How a benchmark is to run.

    Attributes:
        quick: go through everything once with little work; the results mean little.
        show_progress: called with a text that says what is being done.
        state_folder: where a benchmark keeps what a later run continues from.
        device: where benchmarks of an accelerator run: `cuda`, or `cpu` to try them.
    """

    quick: bool = False
    show_progress: Callable[[str], None] = _ignore
    state_folder: Path = Path("runs/benchmarks")
    device: str = "cuda"


@dataclass(frozen=True)
class Target:
    """A bound that a measured value should keep."""

    kind: Literal["at least", "at most"]
    bound: float

    def is_met(self, value: float) -> bool:
        """Whether the value keeps the bound."""
        return value >= self.bound if self.kind == "at least" else value <= self.bound


@dataclass(frozen=True)
class Measurement:
    """One measured value.

    Attributes:
        what: what was measured.
        value: the value in ``unit``; None if it could not be measured, and ``note`` says why.
        target: its target; None: there is none.
    """

    what: str
    value: float | None
    unit: str
    target: Target | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a target or a value."""
        if self.target is None or self.value is None:
            return None
        return self.target.is_met(self.value)

    def to_json(self) -> dict[str, Any]:
        """The measurement as `from_json` reads it, and whether its target is met."""
        return asdict(self) | {"met": self.is_met}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measurement:
        """The measurement that `to_json` wrote."""
        target = values["target"] and Target(**values["target"])
        return cls(
            values["what"], values["value"], values["unit"], target=target, note=values["note"]
        )


@dataclass(frozen=True)
class Report:
    """The measurements of one benchmark, and in ``details`` the values behind them."""

    measurements: tuple[Measurement, ...]
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values. The measurements are called ``figures`` in JSON."""
        figures = [measurement.to_json() for measurement in self.measurements]
        return {"figures": figures, "details": self.details}


def at_least(
    what: str, value: float | None, unit: str, bound: float, *, note: str = ""
) -> Measurement:
    """A measurement whose value should not be lower than the bound."""
    return Measurement(what, value, unit, target=Target("at least", bound), note=note)


def at_most(
    what: str, value: float | None, unit: str, bound: float, *, note: str = ""
) -> Measurement:
    """A measurement whose value should not be higher than the bound."""
    return Measurement(what, value, unit, target=Target("at most", bound), note=note)


def run_as_program(measure: Callable[[RunOptions], Report], description: str | None) -> None:
    """Run one benchmark as the command line says, and print its report as JSON.

    Progress goes to standard error. No result is written.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little work; results mean little")
    parser.add_argument("--device", default="cuda", help="where benchmarks of a GPU run")
    arguments = parser.parse_args()
    options = RunOptions(
        quick=arguments.quick, show_progress=_print_progress, device=arguments.device
    )
    print(json.dumps(measure(options).to_json(), indent=2, ensure_ascii=False))


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
