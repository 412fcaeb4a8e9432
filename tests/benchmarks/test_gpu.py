"""The benchmark of a GPU goes its whole way on a CPU, without anything but torch and NumPy."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import run as running
from benchmarks.gpu.bench import Bench, Found
from benchmarks.gpu.run import SECTIONS, Section, run
from benchmarks.report import Measurement, Report, RunOptions, at_most
from benchmarks.results import ROOT
from tests.patience import PATIENCE_S

BARE = """
import sys
ABSENT = (
    "argon2 fastapi grpc gymnasium h5py httptools jinja2 msgpack onnx onnxruntime orjson PIL "
    "prometheus_client pydantic redis rich simplejpeg structlog typer uvicorn websockets"
)
for name in ABSENT.split():
    sys.modules[name] = None
sys.argv = ["gpu", "--device", "cpu", "--small", "--out", sys.argv[1]]
import runpy
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
CPU = RunOptions(quick=True, device="cpu")


def test_all_of_it_runs_on_a_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["quick"]
    assert set(written["details"]["seconds"]) == set(SECTIONS)
    assert "failures" not in written["details"]
    figures = {figure["what"]: figure for figure in written["figures"]}
    for section in SECTIONS.values():
        for expected in section.expected:
            assert figures[expected.what]["value"] is not None
    # Values that were only tried are compared with no target.
    assert all(figure["target"] is None for figure in figures.values())
    assert {"GPU: two-room, 32 clients", "GPU: 64 clients"} <= set(figures)
    missing = [figure["what"] for figure in figures.values() if figure["value"] is None]
    assert missing == ["GPU: memory of all models of this run", "GPU: energy of a plan"]
    table = (tmp_path / "gpu.md").read_text()
    assert all(what in table for what in figures)


def ends(bench: Bench) -> Found:
    return Found([Measurement("a", 1.0, "s")], {"b": 2})


def fails(bench: Bench) -> Found:
    raise RuntimeError("no such kernel\nand more")


def with_sections(monkeypatch: pytest.MonkeyPatch, **sections: Section) -> None:
    monkeypatch.setattr(running, "SECTIONS", sections)


def test_a_section_that_fails_says_so_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = at_most("x", None, "ms", bound=1.0)
    with_sections(monkeypatch, bad=Section(1, fails, (target,)), good=Section(1, ends))
    reports: list[Report] = []
    report = run(CPU, on_progress=reports.append)
    assert [one.what for one in report.measurements] == ["x", "a"]
    assert report.measurements[0].note == "failed: RuntimeError: no such kernel"
    assert "Traceback" in report.details["failures"]["bad"]
    assert report.details["good"] == {"b": 2}
    assert [len(part.measurements) for part in reports] == [1, 2]


def test_sections_after_the_time_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with_sections(monkeypatch, late=Section(1, fails), last=Section(1, fails))
    report = run(RunOptions(device="cpu"), limit_s=0.0)
    assert [one.note for one in report.measurements] == ["not measured: the time was over"] * 2


def test_a_section_gets_its_budget_and_no_more_than_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[float] = []

    def looks(bench: Bench) -> Found:
        left.append(bench.left_s)
        return Found([])

    with_sections(monkeypatch, short=Section(5, looks), long=Section(1000, looks))
    run(RunOptions(device="cpu"), limit_s=100.0)
    assert 0 < left[0] <= 5 < left[1] <= 100


def test_a_section_that_hangs_is_given_up(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from benchmarks.gpu import run as running
from benchmarks.report import RunOptions
from tests.benchmarks.test_gpu import ends

running.GRACE_S = 0.0
running.SECTIONS = {{
    "good": running.Section(1, ends),
    "bad": running.Section(1, lambda bench: time.sleep(1000)),
}}
def write(report):
    Path({str(tmp_path / "out")!r}).write_text(str(report.details))
running.run(RunOptions(quick=True, device="cpu"), limit_s=0.2, on_progress=write)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == 3
    assert time.monotonic() - began < PATIENCE_S
    written = (tmp_path / "out").read_text()
    assert "'good': {'b': 2}" in written
    assert "did not end in time" in written
