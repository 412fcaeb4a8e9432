"""`python -m benchmarks`: run benchmarks, show their results as a table and write them as JSON."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from benchmarks.report import Report, RunOptions
from benchmarks.results import Result, describe_machine, now, read_results

PROGRAM = "python -m benchmarks"
RESULTS_FOLDER = Path("benchmarks")
WIDTH_WITHOUT_TERMINAL = 160
"""Columns of the table when it is written to a file or a pipe."""

BENCHMARKS = {
    "plan_speed": "one plan of the paper's size against a plain roll-out and the arithmetic floor",
    "transport": "/plan of the embedded model over REST and gRPC, and what they add",
    "encode_throughput": "frames encoded for 64 gRPC clients against the backend alone",
    "closed_loop": "8 clients against one: throughput, and latency against a perfect queue",
    "overload": "3 times as many requests as can be answered: in time, and time to refuse",
    "cache": "what the cache saves and costs, in process, in Redis, and with a failing Redis",
    "moving_robot": "a robot that plans while it moves against one that stops (20 minutes)",
    "solvers": "the default solver against CEM 300 × 30 on the same 500 episodes (half an hour)",
    "objectives": "success against candidates, by the latent and by the distance (an hour)",
    "states": "goals by coordinates, and a disc on the way, in Two-Room (twenty minutes)",
    "state_input": "states beside pixels where an occluder hides the agent (half an hour)",
    "dino_wm": "LeWM against DINO-WM's shapes: tokens a frame and time a plan",
    "gpu": "the search on a GPU: correctness, time, throughput, deadlines, energy (8 minutes)",
    "startup": "time to ready, first and second start",
    "profile": "where the time of a plan goes",
}
"""What each benchmark measures. A benchmark is the module `benchmarks.NAME` with a `measure`."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="benchmarks to run; default: all"),
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="list the benchmarks")] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="run everything with little work; the results mean little"),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="DIR",
            help="folder of the results; default: benchmarks, or none with --quick",
        ),
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="run nothing; write the results in DIR as tables into this page"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="where benchmarks of a GPU run")] = "cuda",
) -> None:
    """Run benchmarks on this machine and compare their results with the project's targets.

    A missed target is shown but is not a failure. A benchmark that cannot run is a failure.
    """
    if show_list:
        for name, about in BENCHMARKS.items():
            typer.echo(f"{name:<18} {about}")
        return
    if unknown := sorted(set(names or ()) - set(BENCHMARKS)):
        typer.echo(f"{PROGRAM}: no benchmark {unknown[0]}, see --list", err=True)
        raise typer.Exit(2)
    if document is not None:
        _write_document(document, output or RESULTS_FOLDER)
        return
    chosen = [name for name in BENCHMARKS if not names or name in names]
    folder = output or (None if quick else RESULTS_FOLDER)
    results, failures = run_benchmarks(chosen, RunOptions(quick=quick, device=device), folder)
    _show(results)
    for name, reason in failures.items():
        typer.echo(f"{PROGRAM}: {name}: {reason}", err=True)
    if failures:
        raise typer.Exit(1)


def run_benchmarks(
    names: Sequence[str], options: RunOptions, folder: Path | None
) -> tuple[list[Result], dict[str, str]]:
    """Run benchmarks one after another, with a line of progress for each.

    Each result is written to the folder as soon as it is there.

    Returns:
        The results, and the errors of the benchmarks that have none.
    """
    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    results, failures = [], {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in names:
            task = progress.add_task(name, total=1)

            def show_progress(text: str, name: str = name, task: TaskID = task) -> None:
                progress.update(task, description=f"{name}: {escape(text)}")

            threads, machine = torch.get_num_threads(), describe_machine()
            start = time.perf_counter()
            try:
                report = run_benchmark(name, replace(options, show_progress=show_progress))
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {error}"
                progress.update(task, description=f"{name}: failed", completed=1)
                continue
            finally:
                torch.set_num_threads(threads)
            result = Result(
                benchmark=name,
                taken=now(),
                quick=options.quick,
                seconds=time.perf_counter() - start,
                machine=machine,
                report=report,
            )
            results.append(result)
            if folder is not None:
                result.write(folder)
            progress.update(task, description=name, completed=1)
    return results, failures


def run_benchmark(name: str, options: RunOptions) -> Report:
    """Import one benchmark and run it."""
    module = importlib.import_module(f"benchmarks.{name}")
    return cast(Report, module.measure(options))


def _show(results: Sequence[Result]) -> None:
    from rich.console import Console

    from benchmarks.tables import terminal_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    console.print(terminal_table(results))


def _write_document(document: Path, folder: Path) -> None:
    from benchmarks.tables import write_document

    try:
        write_document(document, read_results(folder, BENCHMARKS))
    except (OSError, ValueError) as error:
        typer.echo(f"{PROGRAM}: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app(prog_name=PROGRAM)
