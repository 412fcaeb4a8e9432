"""What is kept of a benchmark, and how it is shown."""

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.report import Figure, at_least, at_most
from benchmarks.results import Result, read_results
from benchmarks.table import BEGIN, END, markdown, terminal, value, write_document

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "flags": ["avx2"],
    "gpu": None,
    "load_average": 0.5,
    "versions": {"torch": "2"},
    "revision": "abc",
}


def result(*figures: Figure, quick: bool = False) -> Result:
    return Result("plan_speed", "today", quick, 1.0, MACHINE, figures, {"rounds": [1.23456789]})


def test_a_figure_knows_whether_it_meets_its_target() -> None:
    assert at_least("speed", 6.0, "times", 6).met
    assert not at_least("speed", 5.9, "times", 6).met
    assert at_most("wait", 40.0, "ms", 40).met
    assert not at_most("wait", 41.0, "ms", 40).met
    assert at_most("wait", None, "ms", 40).met is None
    assert Figure("wait", 3.0, "ms").met is None


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = result(at_least("speed", 7.25, "times", 6), at_most("wait", None, "ms", 40, "no GPU"))
    path = written.write(tmp_path / "new")
    (tmp_path / "new" / "other.json").write_text("not one of ours")
    (read,) = read_results(path.parent)
    assert read.figures == written.figures
    assert read.details == {"rounds": [1.2346]}
    assert read.machine == MACHINE
    assert read_results(tmp_path / "nowhere") == []


def test_the_table_says_what_was_missed_and_what_was_not_taken() -> None:
    figures = (
        at_least("speed", 7.25, "times", 6),
        at_most("delay", 51234.0, "ms", 40),
        at_most("wait", None, "ms", 40, "no [GPU]"),
    )
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(terminal([result(*figures)]))
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
    document = markdown([result(*figures)])
    assert "| `plan_speed` | speed | 7.25 times | at least 6 | met |  |" in document
    assert "no GPU; torch 2; revision abc. Load average at the start" in document


def test_figures_of_quick_runs_are_marked() -> None:
    assert "quick" in markdown([result(quick=True)])
    assert "quick" not in markdown([result()])


def test_numbers_are_short() -> None:
    assert value(Figure("x", 0.98765, "times")) == "0.988 times"
    assert value(Figure("x", 123456.7, "ms")) == "123,457 ms"


def test_a_document_is_changed_between_its_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_document(page, [result(at_least("speed", 7.0, "times", 6))])
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n")
    assert text.endswith(f"\n\n{END}\nafter\n")
    assert text.count("| speed |") == 1
    assert "old" not in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="expected the lines"):
        write_document(page, [])


def test_the_performance_page_can_be_written(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text((Path(__file__).parents[2] / "docs" / "performance.md").read_text())
    write_document(page, [result()])
