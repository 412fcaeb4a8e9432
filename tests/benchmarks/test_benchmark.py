"""`lewm benchmark` as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from benchmarks import session
from benchmarks.catalogue import BENCHMARKS
from benchmarks.report import Report, at_least
from benchmarks.run import Run
from benchmarks.table import BEGIN, END
from lewm_serve.cli.main import app

ROOT = Path(__file__).parents[2]
WITHOUT_A_WEB_STACK = """
import sys
ABSENT = "fastapi grpc onnx onnxruntime prometheus_client pydantic rich structlog typer"
for name in ABSENT.split():
    sys.modules[name] = None
from benchmarks.gpu_plan import main
sys.argv = ["gpu_plan", "--device", "cpu", "--quick"]
main()
"""


def lewm(*arguments: str | Path) -> Result:
    """Run the program."""
    return CliRunner().invoke(app, ["benchmark", *map(str, arguments)])


def test_the_list_names_modules_and_does_not_wait_for_torch() -> None:
    program = (
        "import sys, lewm_serve.cli.main as main\n"
        "try: main.app(['benchmark', '--list'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == list(BENCHMARKS)
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_taken_here_says_so(tmp_path: Path) -> None:
    result = lewm("gpu_plan", "--json", tmp_path)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "gpu_plan.json").read_text())
    assert written["machine"]["gpu"] is None
    assert {figure["value"] for figure in written["figures"]} == {None}
    assert all("no CUDA device" in figure["note"] for figure in written["figures"])


def test_missed_targets_are_no_failure_but_errors_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_benchmark(name: str, run: Run) -> Report:
        assert run.quick
        if name == "startup":
            raise ValueError("out of luck")
        return Report((at_least("speed", 1.0, "times", 6),))

    monkeypatch.setattr(session, "run_benchmark", run_benchmark)
    monkeypatch.chdir(tmp_path)
    result = lewm("plan_speed", "--quick")
    assert result.exit_code == 0, result.output
    assert "missed" in result.stdout
    assert not list(tmp_path.iterdir())
    result = lewm("startup", "plan_speed", "--quick", "--json", "here")
    assert result.exit_code == 1
    assert "lewm benchmark: startup: ValueError: out of luck" in result.stderr
    assert [path.name for path in Path("here").iterdir()] == ["plan_speed.json"]
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert lewm("--json", "here", "--document", page).exit_code == 0
    assert "| speed | 1 times | at least 6 | missed |" in page.read_text()


def test_unknown_names_and_pages_are_one_clear_line(tmp_path: Path) -> None:
    result = lewm("nonsense")
    assert result.exit_code == 2
    assert result.stderr.strip() == "lewm benchmark: no benchmark nonsense, see --list"
    result = lewm("--document", tmp_path / "absent.md")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "absent.md" in line


def test_the_benchmark_of_a_bare_gpu_machine_goes_its_whole_way_on_a_cpu() -> None:
    command = [sys.executable, "-c", WITHOUT_A_WEB_STACK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert all(figure["value"] > 0 for figure in report["figures"])
    assert report["details"]["device"] == "cpu"
