"""Figures as people read them: on a terminal, and in the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from benchmarks.machine import summary
from benchmarks.report import Figure, Target
from benchmarks.results import Result

BEGIN = "<!-- figures: written by `lewm benchmark --document` -->"
END = "<!-- end of figures -->"
MARKS = {True: "met", False: "missed", None: ""}


def terminal(results: Sequence[Result]) -> Table:
    """A table for the terminal."""
    table = Table(title="Benchmarks", title_justify="left")
    for column in ("benchmark", "what", "measured", "target", "", "note"):
        table.add_column(column)
    colours = {True: "[green]met", False: "[red]missed", None: ""}
    for result in results:
        name = result.benchmark
        for figure in result.figures:
            cells = (name, figure.what, value(figure), bound(figure.target))
            table.add_row(*map(escape, cells), colours[figure.met], escape(figure.note))
            name = ""
        table.add_section()
    return table


def markdown(results: Iterable[Result]) -> str:
    """Tables for the documentation, one for each machine, revision and kind of run."""
    parts = []
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_heading(result), []).append(result)
    for heading, group in groups.items():
        rows = ["| benchmark | what | measured | target | | note |", "|---|---|---|---|---|---|"]
        for result in group:
            for figure in result.figures:
                cells = (
                    f"`{result.benchmark}`",
                    figure.what,
                    value(figure),
                    bound(figure.target),
                    MARKS[figure.met],
                    figure.note,
                )
                rows.append("| " + " | ".join(cells) + " |")
        loads = [result.machine["load_average"] for result in group]
        load = f"Load average at the start of each: {min(loads):g} to {max(loads):g}."
        parts.append(f"{heading} {load}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def write_document(path: Path, results: Iterable[Result]) -> None:
    """Put the tables between the markers of a document.

    Raises:
        ValueError: the document has no such markers.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: expected the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}")


def value(figure: Figure) -> str:
    """The number and its unit."""
    if figure.value is None:
        return "–"
    number = f"{figure.value:.3g}" if abs(figure.value) < 1000 else f"{figure.value:,.0f}"
    return f"{number} {figure.unit}".strip()


def bound(target: Target | None) -> str:
    """The bound in words."""
    return "" if target is None else f"{target.kind} {target.bound:g}"


def _heading(result: Result) -> str:
    quick = " (quick: not figures to rely on)" if result.quick else ""
    return f"{summary(result.machine)}; revision {result.machine['revision'] or 'unknown'}{quick}."
