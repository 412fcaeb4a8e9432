"""Several benchmarks, one after another, as a person follows them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.catalogue import run_benchmark
from benchmarks.machine import describe_machine
from benchmarks.results import Result, now
from benchmarks.run import Run

COLUMNS = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())


def run_all(
    names: Sequence[str], run: Run, folder: Path | None
) -> tuple[list[Result], dict[str, str]]:
    """Run them with a line of progress each, writing results as they come.

    Returns:
        The results, and what went wrong with those benchmarks that gave none.
    """
    results, failed = [], {}
    with Progress(*COLUMNS, console=Console(stderr=True)) as progress:
        for name in names:
            task = progress.add_task(name, total=1)

            def say(text: str, name: str = name, task: TaskID = task) -> None:
                progress.update(task, description=f"{name}: {escape(text)}")

            threads, machine = torch.get_num_threads(), describe_machine()
            start = time.perf_counter()
            try:
                report = run_benchmark(name, replace(run, say=say))
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
                progress.update(task, description=f"{name}: failed", completed=1)
                continue
            finally:
                torch.set_num_threads(threads)
            seconds = time.perf_counter() - start
            result = Result(
                name, now(), run.quick, seconds, machine, report.figures, report.details
            )
            results.append(result)
            if folder is not None:
                result.write(folder)
            progress.update(task, description=name, completed=1)
    return results, failed
