"""The path of a plan stays short enough to be read."""

import json
import subprocess
import sys

import pytest
import torch

from lewm_models.config import PRESETS
from lewm_serve.backends.choice import native_problem
from tests.lewm_serve.support.server_process import ROOT
from tests.patience import PATIENCE_S

MAX_FILES = 39


@pytest.mark.parametrize("backend", ["onnx", "native", "torch"])
def test_a_plan_runs_through_few_files(backend: str) -> None:
    """A newcomer follows a plan from file to file, and a path of many files is hard to follow.

    It had grown to 53 files and 5,700 lines before anyone counted. This test counts the project's
    own files of which any function runs during one `/plan` over REST with new images. If it fails,
    merge what is one idea, or move work off the path. The limit was raised from 32 for the
    limits of HTTP connections and the fairness between clients, from 35 for the learned
    distance, and from 36 for several engines that may have processes of their own.
    """
    problem = native_problem(PRESETS["edge"], torch.device("cpu"))
    if backend == "native" and problem is not None:
        pytest.skip(problem)
    command = [sys.executable, "-m", "tests.lewm_serve.support.traced_plan", backend]
    traced = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert traced.returncode == 0, traced.stderr
    files = json.loads(traced.stdout.splitlines()[-1])
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in files}
    assert "service/lewm_serve/planner/planner.py" in lines
    assert "service/lewm_serve/engine/jobs.py" in lines  # the engine's thread is traced too
    assert "service/lewm_serve/transports/spans.py" not in lines  # without tracing
    listed = "\n".join(f"{count:5} {file}" for file, count in lines.items())
    total = f"{len(files)} files, {sum(lines.values())} lines"
    assert len(files) <= MAX_FILES, f"{total}; expected at most {MAX_FILES} files\n{listed}"
