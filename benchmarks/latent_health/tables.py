"""The figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tables(figures: dict[str, Any]) -> str:
    """False alarms, detection and cost."""
    return "\n\n".join(
        (
            _table(
                ("ordinary requests", "answers", "not `ok`", "rate", "95 % interval", "by score"),
                [_ordinary(one) for one in figures["ordinary"]],
            ),
            _table(
                ("newest frame", "detected", "norm", "Mahalanobis", "surprise", "SIGReg ÷ limit"),
                [_fault(one) for one in figures["faults"]],
            ),
            _table(
                ("plan", "with the monitor", "without", "longer by", "assessing", "predicting"),
                [_cost(one) for one in figures["cost"]],
            ),
        )
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ordinary(one: dict[str, Any]) -> Sequence[str]:
    low, high = one["interval_95"]
    kinds = ", ".join(f"{kind} {count}" for kind, count in one["by_kind"].items() if count)
    return (
        one["name"],
        f"{one['requests']:,}",
        str(one["alarms"]),
        f"{100 * one['rate']:.3f} %",
        f"{100 * low:.3f} to {100 * high:.3f} %",
        kinds or "–",
    )


def _fault(one: dict[str, Any]) -> Sequence[str]:
    rates = (_percent(one["rates"][kind]) for kind in ("all", "norm", "mahalanobis", "surprise"))
    return (one["name"], *rates, "–" if one["sigreg"] is None else f"{one['sigreg']:.1f}")


def _percent(rate: float) -> str:
    return "–" if rate == 0 else f"{100 * rate:.1f} %"


def _cost(one: dict[str, Any]) -> Sequence[str]:
    plans = (f"{one[name]:.2f} ms" for name in ("plan_ms", "bare_ms"))
    parts = (f"{one[name]:.3f} ms" for name in ("assess_ms", "predict_ms"))
    return (one["kind"], *plans, f"{100 * one['share']:.1f} %", *parts)
