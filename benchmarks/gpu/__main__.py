"""`python -m benchmarks.gpu`; see the package."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import gpu
from benchmarks.gpu.run import TOTAL_S, run
from benchmarks.report import Report, RunOptions
from benchmarks.results import Result, describe_machine, now
from benchmarks.tables import markdown_tables

OUTPUT_FOLDER = Path("benchmarks")


def main() -> None:
    """Run all sections, and write what there is after each of them."""
    parser = argparse.ArgumentParser(
        description=gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="tiny shapes; results mean nothing")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--limit", type=float, default=TOTAL_S, help="seconds for all sections")
    parser.add_argument("--out", type=Path, default=OUTPUT_FOLDER, help="folder of the results")
    parser.add_argument("--only", nargs="*", help="the sections to run; default: all")
    arguments = parser.parse_args()
    machine, taken, began = describe_machine(), now(), time.monotonic()

    def write(report: Report) -> None:
        result = Result(
            benchmark="gpu",
            taken=taken,
            quick=arguments.small,
            seconds=time.monotonic() - began,
            machine=machine,
            report=report,
        )
        result.write(arguments.out)
        (arguments.out / "gpu.md").write_text(markdown_tables([result]) + "\n")

    options = RunOptions(
        quick=arguments.small,
        device=arguments.device,
        show_progress=lambda text: print(
            f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True
        ),
    )
    report = run(options, limit_s=arguments.limit, only=arguments.only, on_progress=write)
    write(report)
    print((arguments.out / "gpu.md").read_text())
    if report.details.get("failures"):
        sys.exit(1)


if __name__ == "__main__":
    main()
