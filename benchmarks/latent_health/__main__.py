"""Measure, write `benchmarks/latent_health.json`, and draw and tabulate what `docs` show of it.

`python -m benchmarks.latent_health`; with `--draw`, from the figures there are.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.latent_health.measure import measure
from benchmarks.latent_health.pictures import draw
from benchmarks.latent_health.tables import tables
from benchmarks.machine import describe_machine
from benchmarks.results import now
from benchmarks.served import describe_served, load_served
from lewm_models.checkpoint import PRETRAINED

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "latent_health.json"
PICTURES = ROOT / "docs" / "latent-health"


def main() -> None:
    """Run as the arguments say."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.latent_health")
    arguments.add_argument("--quick", action="store_true", help="a few requests of each kind")
    arguments.add_argument("--draw", action="store_true", help="draw the figures there are")
    arguments.add_argument("--model", type=Path, default=PRETRAINED / "two-room")
    given = arguments.parse_args()
    if not given.draw:
        start = time.monotonic()

        def say(what: str) -> None:
            print(f"{time.monotonic() - start:5.0f} s  {what}", file=sys.stderr)

        machine, model = describe_machine(), load_served(given.model)
        # What is left to torch here are small tensors; the backend has its own threads.
        torch.set_num_threads(1)
        figures = {
            "taken": now(),
            "quick": given.quick,
            "machine": machine,
            "served": describe_served(model),
            **measure(model, given.quick, say),
        }
        FIGURES.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    figures = json.loads(FIGURES.read_text())
    draw(figures, PICTURES)
    print(tables(figures))


if __name__ == "__main__":
    main()
