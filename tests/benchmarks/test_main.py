"""`python -m benchmarks` as it is typed."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from benchmarks import __main__ as program
from benchmarks.__main__ import BENCHMARKS, app
from benchmarks.report import Report, RunOptions, at_least, run_as_program
from benchmarks.results import ROOT
from benchmarks.tables import BEGIN_MARKER, END_MARKER


def run(*arguments: str | Path) -> Result:
    """Run the program in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_list_names_modules_and_does_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from benchmarks.__main__ import app\n"
        "app(['--list'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == list(BENCHMARKS)
    assert all(importlib.util.find_spec(f"benchmarks.{name}") is not None for name in names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_benchmark_that_cannot_be_measured_here_says_so(tmp_path: Path) -> None:
    result = run("gpu", "--json", tmp_path)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["machine"]["gpu"] is None
    assert {figure["value"] for figure in written["figures"]} == {None}
    assert all("no CUDA device" in figure["note"] for figure in written["figures"])


def test_missed_targets_are_no_failure_but_errors_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_benchmark(name: str, options: RunOptions) -> Report:
        assert options.quick
        if name == "startup":
            raise ValueError("out of luck")
        return Report((at_least("speed", 1.0, "times", bound=6),))

    monkeypatch.setattr(program, "run_benchmark", run_benchmark)
    monkeypatch.chdir(tmp_path)
    result = run("plan_speed", "--quick")
    assert result.exit_code == 0, result.output
    assert "missed" in result.stdout
    assert not list(tmp_path.iterdir())
    result = run("startup", "plan_speed", "--quick", "--json", "here")
    assert result.exit_code == 1
    assert "python -m benchmarks: startup: ValueError: out of luck" in result.stderr
    assert [path.name for path in Path("here").iterdir()] == ["plan_speed.json"]
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN_MARKER}\n{END_MARKER}\n")
    assert run("--json", "here", "--document", page).exit_code == 0
    assert "| speed | 1 times | at least 6 | missed |" in page.read_text()


def test_unknown_names_and_pages_are_one_clear_line(tmp_path: Path) -> None:
    result = run("nonsense")
    assert result.exit_code == 2
    assert result.stderr.strip() == "python -m benchmarks: no benchmark nonsense, see --list"
    result = run("--document", tmp_path / "absent.md")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "absent.md" in line


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "name", [*BENCHMARKS, "fallbacks", "judging", "latent_health", "revisions"]
)
def test_every_benchmark_is_a_program(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")


def test_a_benchmark_run_as_a_program_prints_its_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(options: RunOptions) -> Report:
        options.show_progress("measuring")
        value = 1.0 if options.quick else 2.0
        return Report((at_least("speed", value, "times", bound=6),), {"device": options.device})

    monkeypatch.setattr(sys, "argv", ["speed", "--quick", "--device", "cpu"])
    run_as_program(measure, "Speed.")
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [figure["value"] for figure in report["figures"]] == [1.0]
    assert report["details"] == {"device": "cpu"}
    assert captured.err == "measuring\n"
