"""`lewm benchmark`: what this machine can do, as a table and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FOLDER = Path("benchmarks")
WIDE = 160
"""Columns of the table in a file."""


def benchmark(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="which; default: all")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="say which there are")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="go through everything once; the figures mean little")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="DIR", help="where results go; default: benchmarks, nowhere if quick"
        ),
    ] = None,
    document: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="run nothing, put the tables of the results in DIR into this page"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="where benchmarks of a GPU run")] = "cuda",
) -> None:
    """Run benchmarks of this machine and hold their figures to the project's targets.

    A missed target is shown and is no failure; a benchmark that cannot be run is.
    """
    from benchmarks.catalogue import BENCHMARKS

    if show:
        for name, about in BENCHMARKS.items():
            typer.echo(f"{name:<18} {about}")
        return
    if unknown := sorted(set(names or ()) - set(BENCHMARKS)):
        typer.echo(f"lewm benchmark: no benchmark {unknown[0]}, see --list", err=True)
        raise typer.Exit(2)

    if document is not None:
        _write_document(document, output or FOLDER)
        return

    from rich.console import Console

    from benchmarks.run import Run
    from benchmarks.session import run_all
    from benchmarks.table import terminal

    folder = output or (None if quick else FOLDER)
    chosen = [name for name in BENCHMARKS if not names or name in names]
    results, failed = run_all(chosen, Run(quick=quick, device=device), folder)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(terminal(results))
    for name, why in failed.items():
        typer.echo(f"lewm benchmark: {name}: {why}", err=True)
    if failed:
        raise typer.Exit(1)


def _write_document(document: Path, folder: Path) -> None:
    from benchmarks.results import read_results
    from benchmarks.table import write_document

    try:
        write_document(document, read_results(folder))
    except (OSError, ValueError) as error:
        typer.echo(f"lewm benchmark: {error}", err=True)
        raise typer.Exit(1) from None
