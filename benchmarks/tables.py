"""Results as tables: on a terminal, and in `docs/performance.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Measurement, Target
from benchmarks.results import Result, summarise_machine

if TYPE_CHECKING:
    from rich.table import Table

BEGIN_MARKER = "<!-- results: written by `python -m benchmarks --document` -->"
END_MARKER = "<!-- end of results -->"

VERDICTS = {True: "met", False: "missed", None: ""}
COLOURED_VERDICTS = {True: "[green]met", False: "[red]missed", None: ""}


def terminal_table(results: Sequence[Result]) -> Table:
    """One row per measurement."""
    # A bare GPU machine, which writes tables for documents, does not have rich.
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Benchmarks", title_justify="left")
    for column in ("benchmark", "what", "measured", "target", "", "note"):
        table.add_column(column)
    for result in results:
        name = result.benchmark
        for measurement in result.report.measurements:
            table.add_row(
                escape(name),
                escape(measurement.what),
                escape(format_value(measurement)),
                format_target(measurement.target),
                COLOURED_VERDICTS[measurement.is_met],
                escape(measurement.note),
            )
            name = ""
        table.add_section()
    return table


def markdown_tables(results: Iterable[Result]) -> str:
    """One table per machine, revision and kind of run."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_heading(result), []).append(result)
    return "\n\n".join(_markdown_table(heading, group) for heading, group in groups.items())


def _markdown_table(heading: str, results: Sequence[Result]) -> str:
    rows = ["| benchmark | what | measured | target | | note |", "|---|---|---|---|---|---|"]
    for result in results:
        for measurement in result.report.measurements:
            cells = (
                f"`{result.benchmark}`",
                measurement.what,
                format_value(measurement),
                format_target(measurement.target),
                VERDICTS[measurement.is_met],
                measurement.note,
            )
            rows.append("| " + " | ".join(cells) + " |")
    loads = [result.machine["load_average"] for result in results]
    load = f"Load average at the start of each: {min(loads):g} to {max(loads):g}."
    return f"{heading} {load}\n\n" + "\n".join(rows)


def _heading(result: Result) -> str:
    quick = " (quick: these results mean little)" if result.quick else ""
    revision = result.machine["revision"] or "unknown"
    return f"{summarise_machine(result.machine)}; revision {revision}{quick}."


def write_document(path: Path, results: Iterable[Result]) -> None:
    """Put the tables between the markers of a document.

    Raises:
        ValueError: the document has no such markers.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN_MARKER)
    _, end, after = rest.partition(END_MARKER)
    if not begin or not end:
        raise ValueError(f"{path}: expected the lines {BEGIN_MARKER} and {END_MARKER}")
    path.write_text(f"{before}{begin}\n\n{markdown_tables(results)}\n\n{end}{after}")


def format_value(measurement: Measurement) -> str:
    """The value with its unit; a dash where it could not be measured."""
    value = measurement.value
    if value is None:
        return "–"
    number = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{number} {measurement.unit}".strip()


def format_target(target: Target | None) -> str:
    """The target in words."""
    return "" if target is None else f"{target.kind} {target.bound:g}"
