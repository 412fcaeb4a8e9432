"""What is kept of a benchmark, and how it is shown."""

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import BENCHMARKS
from benchmarks.report import Measurement, Report, at_least, at_most
from benchmarks.results import (
    ROOT,
    Result,
    describe_machine,
    read_results,
    summarise_machine,
)
from benchmarks.tables import (
    BEGIN_MARKER,
    END_MARKER,
    format_value,
    markdown_tables,
    terminal_table,
    write_document,
)

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "flags": ["avx2"],
    "gpu": None,
    "load_average": 0.5,
    "versions": {"torch": "2"},
    "revision": "abc",
}


def result(*measurements: Measurement, quick: bool = False) -> Result:
    """A result of `plan_speed`."""
    return Result(
        benchmark="plan_speed",
        taken="today",
        quick=quick,
        seconds=1.0,
        machine=MACHINE,
        report=Report(measurements, {"rounds": [1.23456789]}),
    )


def test_a_measurement_knows_whether_its_target_is_met() -> None:
    assert at_least("speed", 6.0, "times", bound=6).is_met
    assert not at_least("speed", 5.9, "times", bound=6).is_met
    assert at_most("wait", 40.0, "ms", bound=40).is_met
    assert not at_most("wait", 41.0, "ms", bound=40).is_met
    assert at_most("wait", None, "ms", bound=40).is_met is None
    assert Measurement("wait", 3.0, "ms").is_met is None


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = result(
        at_least("speed", 7.25, "times", bound=6),
        at_most("wait", None, "ms", bound=40, note="no GPU"),
    )
    path = written.write(tmp_path / "new")
    (tmp_path / "new" / "other.json").write_text("not a result")
    (read,) = read_results(path.parent, BENCHMARKS)
    rounded = Report(written.report.measurements, {"rounds": [1.2346]})
    assert read == dataclasses.replace(written, report=rounded)
    assert read_results(tmp_path / "nowhere", BENCHMARKS) == []


def test_the_keys_of_a_result_file_are_fixed(tmp_path: Path) -> None:
    values = json.loads(
        result(at_least("speed", 7.0, "times", bound=6)).write(tmp_path).read_text()
    )
    assert list(values) == [
        "benchmark",
        "taken",
        "quick",
        "seconds",
        "machine",
        "figures",
        "details",
    ]
    assert values["figures"] == [
        {
            "what": "speed",
            "value": 7.0,
            "unit": "times",
            "target": {"kind": "at least", "bound": 6},
            "note": "",
            "met": True,
        }
    ]


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["processor"]
    assert "torch" in machine["versions"]
    assert machine["processor"] in summarise_machine(machine)


def test_the_table_shows_missed_targets_and_missing_values() -> None:
    measurements = (
        at_least("speed", 7.25, "times", bound=6),
        at_most("delay", 51234.0, "ms", bound=40),
        at_most("wait", None, "ms", bound=40, note="no [GPU]"),
    )
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(terminal_table([result(*measurements)]))
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in captured.get().splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        ["plan_speed", "speed", "7.25 times", "at least 6", "met", ""],
        ["", "delay", "51,234 ms", "at most 40", "missed", ""],
        ["", "wait", "–", "at most 40", "", "no [GPU]"],
    ]
    document = markdown_tables([result(*measurements)])
    assert "| `plan_speed` | speed | 7.25 times | at least 6 | met |  |" in document
    assert "no GPU; torch 2; revision abc. Load average at the start" in document


def test_results_of_quick_runs_are_marked() -> None:
    assert "quick" in markdown_tables([result(quick=True)])
    assert "quick" not in markdown_tables([result()])


def test_numbers_are_short() -> None:
    assert format_value(Measurement("x", 0.98765, "times")) == "0.988 times"
    assert format_value(Measurement("x", 123456.7, "ms")) == "123,457 ms"


def test_a_document_changes_between_its_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN_MARKER}\nold\n{END_MARKER}\nafter\n")
    for _ in range(2):
        write_document(page, [result(at_least("speed", 7.0, "times", bound=6))])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN_MARKER}\n\n")
    assert text.endswith(f"\n\n{END_MARKER}\nafter\n")
    assert text.count("| speed |") == 1
    assert "old" not in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="expected the lines"):
        write_document(page, [])


def test_the_performance_page_shows_the_results_of_the_repository(tmp_path: Path) -> None:
    original = (ROOT / "docs" / "performance.md").read_text()
    page = tmp_path / "performance.md"
    page.write_text(original)
    results = read_results(ROOT / "benchmarks", BENCHMARKS)
    assert {result.benchmark for result in results} == set(BENCHMARKS)
    write_document(page, results)
    assert page.read_text() == original
