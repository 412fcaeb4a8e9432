"""The Python code in the client's README runs, in order, and prints what its comments say."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lewm_client import PlanResponse, PredictResponse
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
README = (ROOT / "client" / "README.md").read_text()

PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTED_COMMENT = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)

STEPS_TO_GOAL = 3
STEPS_WITHOUT_STOP = 10
STEPS_RECORDED = 3


class FakeCamera:
    """A camera that always sees the same picture."""

    def frame(self) -> NDArray[np.uint8]:
        return np.asarray(Image.open(ROOT / "docs" / "frames" / "start.png").convert("RGB"))


class FakeRobot:
    """A robot that keeps the actions it is to run, and arrives after a few steps."""

    def __init__(self) -> None:
        self.actions: list[NDArray[np.float32]] = []
        self.executed: list[NDArray[np.float32]] = []

    def execute(self, action: NDArray[np.float32]) -> None:
        self.executed.append(action)

    def has_arrived(self) -> bool:
        return len(self.executed) == STEPS_WITHOUT_STOP

    def run(self, actions: NDArray[np.float32]) -> None:
        self.actions.append(actions)

    def arrived(self) -> bool:
        return len(self.actions) == STEPS_TO_GOAL


def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    robot = FakeRobot()
    names: dict[str, Any] = {"robot": robot, "camera": FakeCamera(), "arrived": robot.arrived}
    blocks = PYTHON_BLOCK.findall(README)
    assert len(blocks) == 12
    with ServerProcess(tmp_path / "log").wait_ready() as server:
        for block in blocks:
            # The machine that runs the tests may be too busy for a robot's timeouts.
            program = block.replace("127.0.0.1:50051", server.target)
            program = program.replace("recordings/kitchen", str(tmp_path / "kitchen"))
            program = re.sub(r"(timeout_s|deadline_ms)=[\d.]+", rf"\1={PATIENCE_S}", program)
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(program, "client/README.md", "exec"), names)
            assert output.getvalue().splitlines() == PRINTED_COMMENT.findall(block)
        names["client"].close()

    shapes = [actions.shape for actions in robot.actions]
    assert shapes == [(5, 2)] * STEPS_TO_GOAL + [(1, 2)] * STEPS_RECORDED
    assert np.shape(robot.executed) == (STEPS_WITHOUT_STOP, 2)
    assert len(list((tmp_path / "kitchen").glob("episodes/*/steps.bin"))) == 1
    plan, predicted = names["plan"], names["predicted"]
    assert isinstance(plan, PlanResponse)
    assert isinstance(predicted, PredictResponse)
    assert np.isfinite(plan.actions).all()
    assert np.isfinite(predicted.latents).all()
