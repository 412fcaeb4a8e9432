"""`python -m benchmarks.latent_health`: measure, write the results, draw and print them.

The results go to `benchmarks/latent_health.json`, the pictures to `docs/latent-health`, and the
tables of `docs/latent-health.md` to standard output. With `--draw`, nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.in_process import describe_model, load_like_server
from benchmarks.latent_health.measure import measure
from benchmarks.latent_health.pictures import draw
from benchmarks.results import ROOT, describe_machine, now
from lewm_models.checkpoint import PRETRAINED

RESULTS_FILE = ROOT / "benchmarks" / "latent_health.json"
PICTURES_FOLDER = ROOT / "docs" / "latent-health"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latent_health")
    parser.add_argument("--quick", action="store_true", help="a few requests of each kind")
    parser.add_argument("--draw", action="store_true", help="draw the results of the last run")
    parser.add_argument("--model", type=Path, default=PRETRAINED / "two-room")
    arguments = parser.parse_args()
    if not arguments.draw:
        start = time.monotonic()

        def show_progress(text: str) -> None:
            print(f"{time.monotonic() - start:5.0f} s  {text}", file=sys.stderr)

        machine, model = describe_machine(), load_like_server(arguments.model)
        # Only small tensors are left to torch; the backend has its own threads.
        torch.set_num_threads(1)
        results = {
            "taken": now(),
            "quick": arguments.quick,
            "machine": machine,
            "served": describe_model(model),
            **measure(model, arguments.quick, show_progress),
        }
        RESULTS_FILE.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    results = json.loads(RESULTS_FILE.read_text())
    draw(results, PICTURES_FOLDER)
    print(markdown_tables(results))


def markdown_tables(results: dict[str, Any]) -> str:
    """False alarms, detection and cost, a table each."""
    return "\n\n".join(
        (
            _table(
                ("ordinary requests", "answers", "not `ok`", "rate", "95 % interval", "by score"),
                [_false_alarms_row(row) for row in results["ordinary"]],
            ),
            _table(
                ("newest frame", "detected", "norm", "Mahalanobis", "surprise", "SIGReg ÷ limit"),
                [_detection_row(row) for row in results["faults"]],
            ),
            _table(
                ("plan", "with the monitor", "without", "longer by", "assessing", "predicting"),
                [_cost_row(row) for row in results["cost"]],
            ),
        )
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _false_alarms_row(row: dict[str, Any]) -> Sequence[str]:
    low, high = row["interval_95"]
    kinds = ", ".join(f"{kind} {count}" for kind, count in row["by_kind"].items() if count)
    return (
        row["name"],
        f"{row['requests']:,}",
        str(row["alarms"]),
        f"{100 * row['rate']:.3f} %",
        f"{100 * low:.3f} to {100 * high:.3f} %",
        kinds or "–",
    )


def _detection_row(row: dict[str, Any]) -> Sequence[str]:
    kinds = ("all", "norm", "mahalanobis", "surprise")
    rates = (_percent(row["rates"][kind]) for kind in kinds)
    return (row["name"], *rates, "–" if row["sigreg"] is None else f"{row['sigreg']:.1f}")


def _percent(rate: float) -> str:
    return "–" if rate == 0 else f"{100 * rate:.1f} %"


def _cost_row(row: dict[str, Any]) -> Sequence[str]:
    plans = (f"{row[name]:.2f} ms" for name in ("plan_ms", "bare_ms"))
    parts = (f"{row[name]:.3f} ms" for name in ("assess_ms", "predict_ms"))
    return (row["kind"], *plans, f"{100 * row['share']:.1f} %", *parts)


if __name__ == "__main__":
    main()
