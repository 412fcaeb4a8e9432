"""The benchmark of a GPU runs on a machine that has neither a GPU nor a web stack."""

import json
import subprocess
import sys

from benchmarks.results import ROOT

WITHOUT_A_WEB_STACK = """
import sys
ABSENT = "fastapi grpc onnx onnxruntime prometheus_client pydantic rich structlog typer"
for name in ABSENT.split():
    sys.modules[name] = None
sys.argv = ["gpu_plan", "--device", "cpu", "--quick"]
import runpy
runpy.run_module("benchmarks.gpu_plan", run_name="__main__")
"""


def test_all_of_it_runs_on_a_cpu() -> None:
    command = [sys.executable, "-c", WITHOUT_A_WEB_STACK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["figures"]) == 3
    assert all(figure["value"] > 0 for figure in report["figures"])
    # Values that were only tried are compared with no target.
    assert all(figure["target"] is None for figure in report["figures"])
    assert report["details"]["device"] == "cpu"
    assert set(report["details"]["plans_per_s"]) == {"1", "8", "32"}
