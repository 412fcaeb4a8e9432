"""Business figures of a pilot, from a person's own numbers and what was measured."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lewm_models.judging.measure import Estimate
from lewm_serve.cli.pilot_checks import read_toml
from lewm_serve.cli.pilot_machine import Machine

REQUIRED_KEYS = ("value_of_cycle", "cycle_s", "cost_of_stop")
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Kpi:
    """What a person knows of the work, from the file of --kpi.

    Attributes:
        value_of_cycle: what one finished cycle is worth, in ``currency``.
        cycle_s: the seconds of a cycle.
        cost_of_stop: what it costs if a robot stops until a person has looked.
        robots: how many robots work.
        hours_per_year: the hours that each works.
        cost_of_core_hour: one core of the planning machine, for one hour.
        cost_of_kwh: a kilowatt hour.
        currency: of all of these, for people.
    """

    value_of_cycle: float
    cycle_s: float
    cost_of_stop: float
    robots: float = 1.0
    hours_per_year: float = 2000.0
    cost_of_core_hour: float = 0.0
    cost_of_kwh: float = 0.0
    currency: str = "EUR"


@dataclass(frozen=True)
class Figure:
    """One business figure: what it is, its value and unit, and how it comes about."""

    name: str
    meaning: str
    value: float
    unit: str
    formula: str

    def to_json(self) -> dict[str, Any]:
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "value"
        } | {"value": float(f"{self.value:.5g}") if math.isfinite(self.value) else None}


def read_kpi(path: Path) -> Kpi:
    """The numbers in a TOML file, or in a JSON file by its name.

    Raises:
        ValueError: the message names the file and the key.
        OSError: the file cannot be read.
    """
    content = _read_json(path) if path.suffix.lower() == ".json" else read_toml(path)
    known = [field.name for field in fields(Kpi)]
    for key, value in content.items():
        if key not in known:
            raise ValueError(f"{path}: {key}: there is no such key, expected {', '.join(known)}")
        if key == "currency":
            if not isinstance(value, str) or not 0 < len(value) <= 8:
                raise ValueError(f"{path}: currency: expected 1 to 8 letters, got {value!r}")
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise ValueError(f"{path}: {key}: expected a number of at least 0, got {value!r}")
        if key in ("cycle_s", "value_of_cycle", "robots", "hours_per_year") and value == 0:
            raise ValueError(f"{path}: {key}: expected a number above 0, got {value!r}")
    for key in REQUIRED_KEYS:
        if key not in content:
            raise ValueError(f"{path}: {key} is missing; expected {', '.join(REQUIRED_KEYS)}")
    return Kpi(**content)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # also of text that is not UTF-8
        raise ValueError(f"{path}: expected JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def business_figures(kpi: Kpi, machine: Machine, false_alarms: Estimate | None) -> list[Figure]:
    """What the numbers mean for a year of all robots.

    Args:
        kpi: the person's numbers.
        machine: what was measured on this machine.
        false_alarms: the share of ordinary frames that raise an alarm; None: not calibrated. Stops
            are counted at the upper end of its interval: of few frames, none may be above a limit.
    """
    money = f"{kpi.currency} a year"
    hours = kpi.robots * kpi.hours_per_year
    cycles = 3600 * hours / kpi.cycle_s
    plans = 3600 * hours * machine.rate_hz
    stops = math.nan
    if false_alarms is not None:
        stops = plans * (false_alarms.interval_95 or (0.0, false_alarms.value))[1]
    chosen = machine.recommended
    cores = plans * chosen.processor_s / 3600
    energy = plans * (chosen.energy_j or 0.0) / JOULES_PER_KWH
    value, stop_costs = cycles * kpi.value_of_cycle, stops * kpi.cost_of_stop
    computing = cores * kpi.cost_of_core_hour + energy * kpi.cost_of_kwh
    return [
        Figure("cycles", "cycles of all robots", cycles, "a year", "robots × hours ÷ cycle_s"),
        Figure(
            "value",
            "their value if every cycle succeeds",
            value,
            money,
            "cycles × value_of_cycle",
        ),
        Figure(
            "false_stops",
            "at most so many stops by false alarms, if every one stops a robot",
            stops,
            "a year",
            "plans × upper end of the interval of false alarms",
        ),
        Figure(
            "cost_of_false_stops",
            "what these stops cost",
            stop_costs,
            money,
            "false stops × cost_of_stop",
        ),
        Figure(
            "cost_of_computing",
            "processor time and energy of plans",
            computing,
            money,
            "core hours × cost_of_core_hour + kWh × cost_of_kwh",
        ),
        Figure(
            "break_even",
            "the share of cycles that has to succeed to pay for both",
            (stop_costs + computing) / value,
            "of cycles",
            "costs ÷ value",
        ),
        Figure(
            "cycles_per_stop",
            "cycles that must succeed to pay for one stop",
            kpi.cost_of_stop / kpi.value_of_cycle,
            "cycles",
            "cost_of_stop ÷ value_of_cycle",
        ),
    ]
