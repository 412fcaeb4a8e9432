"""Compare two checkouts of this project: the same answers bit for bit, and paired timings.

Each checkout needs its own `.venv`, made by `make setup`. Servers of both run on free ports with
the same flags; nothing else should run on the machine. The comparison has four parts:

answers     seeded requests to servers on one thread of the native and of the ONNX backend; every
            field of the answers must be the same, bit for bit
latency     /plan of the embedded model over REST and gRPC, p50 of blocks, on one thread
plan-speed  a plan of the paper's size (CEM 300 × 30, horizon 5) over gRPC, on all cores
ready       the time from the start of a server to its ready line, with default settings

Targets: the upper end of the 95 % interval of new / old is at most 1.03, for ready 1.10. With 30
rounds the comparison takes about ten minutes. The exit status is 1 if answers differ.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.results import describe_machine, now
from benchmarks.revisions.answers import BACKENDS, compare_answers
from benchmarks.revisions.timings import (
    NEW,
    OLD,
    PairedTimes,
    markdown_table,
    measure_latency,
    measure_plan_speed,
    measure_ready,
)
from lewm_serve.cli.local_server import LocalServerError

PARTS = ("answers", "latency", "plan-speed", "ready")
MAX_SHOWN_DIFFERENCES = 50


def main() -> None:
    """Do what the command line says."""
    arguments = _parse_arguments()
    start = time.monotonic()

    def show_progress(text: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {text}", file=sys.stderr, flush=True)

    checkouts = {OLD: arguments.old, NEW: arguments.new}
    flags = shlex.split(arguments.flags)
    results: dict[str, Any] = {
        "taken": now(),
        "machine": describe_machine(),
        "flags": flags,
        "answers": {},
        "timings": [],
    }
    if "answers" in arguments.only:
        for backend in BACKENDS:
            show_progress(f"answers of the backend {backend}")
            results["answers"][backend] = _compare(
                arguments.old, arguments.new, backend, flags=flags
            )
    measure_in_rounds: dict[str, Callable[..., list[PairedTimes]]] = {
        "latency": partial(measure_latency, requests=arguments.requests),
        "plan-speed": measure_plan_speed,
        "ready": measure_ready,
    }
    order = random.Random(arguments.seed)
    timings: list[PairedTimes] = []
    for part, measure in measure_in_rounds.items():
        if part in arguments.only:
            timings += measure(
                checkouts,
                rounds=arguments.rounds,
                flags=flags,
                order=order,
                show_progress=show_progress,
            )
    if timings:
        print(markdown_table(timings))
    if arguments.json is not None:
        results["timings"] = [times.to_json() for times in timings]
        arguments.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    sys.exit(any(answers["differences"] for answers in results["answers"].values()))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.revisions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--rounds", type=int, default=30, help="pairs of each timing")
    parser.add_argument("--requests", type=int, default=30, help="plans in a block of latency")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument(
        "--flags", default="", help='further flags of all servers, such as "--backend onnx"'
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values to this file")
    return parser.parse_args()


def _compare(old: Path, new: Path, backend: str, flags: list[str]) -> dict[str, Any]:
    """Compare the answers of one backend and print the result."""
    try:
        count, differences = compare_answers(old, new, backend, flags=flags)
    except LocalServerError as error:
        reason = str(error).strip().splitlines()[-1]
        print(f"{backend}: not compared, it does not run here: {reason}")
        return {"requests": 0, "differences": [], "reason": reason}
    if differences:
        print(f"{backend}: {len(differences)} differences in the answers to {count} requests")
        for difference in differences[:MAX_SHOWN_DIFFERENCES]:
            print(f"  {difference}")
    else:
        print(f"{backend}: the answers to {count} requests are the same, bit for bit")
    return {"requests": count, "differences": differences}


if __name__ == "__main__":
    main()
