"""The commands and the code of docs/your-robot.md, in order, for a recording as it describes it."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lewm_models import checkpoint
from lewm_models.card import SolverConfig
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.judging import measure
from lewm_models.training import settings
from lewm_models.training.trainer import TrainingConfig
from lewm_serve.cli import judge, pilot_run
from lewm_serve.cli.main import app
from lewm_serve.cli.pilot_checks import EXIT_CODES
from tests.lewm_models.training.sources import write_robot
from tests.lewm_serve.support.server_process import ServerProcess

DOCUMENT = (Path(__file__).parents[3] / "docs" / "your-robot.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
CODE = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def test_the_document_leads_from_a_recording_to_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_robot(Path("robot.h5"), steps=[60] * 20)
    few_steps = TrainingConfig(steps=2, learning_rate=1e-4, batch=8, directions=16)
    monkeypatch.setattr(settings, "PRESET_TRAINING", {"edge": few_steps})
    short_distance = DistanceTraining(steps=4, width=8, batch=16)
    monkeypatch.setattr(settings, "DISTANCE_TRAINING", short_distance)
    monkeypatch.setattr(measure, "RESAMPLES", 5)
    for module in (judge, pilot_run):
        monkeypatch.setattr(module, "default_plans", lambda solver: 2)
    few_candidates = SolverConfig(samples=8, iterations=1, elites=2)
    monkeypatch.setattr(settings, "LARGE_ACTION_SOLVER", few_candidates)
    *commands, serve = (shlex.split(command) for command in COMMANDS)
    names_of_commands = [command[1] for command in commands]
    assert names_of_commands == ["data", "train", "models", "models", "evaluate", "pilot"]
    for program, *arguments in commands:
        assert program == "lewm"
        result = CliRunner().invoke(app, arguments)
        # After two steps of training, no model is good enough.
        expected = EXIT_CODES["no-go"] if arguments[0] == "pilot" else 0
        assert result.exit_code == expected, (arguments, result.output)
    assert Path("robot.h5-contact.png").is_file()
    assert "no-go" in Path("pilot/report.html").read_text()
    card = checkpoint.load(Path("runs/robot/model")).card
    assert (card.config.action_dim, card.config.image_size, card.crop) == (3, 64, "pad")

    assert serve[:3] == ["lewm", "serve", "--models"]
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with ServerProcess(tmp_path / "log", "--models", str(Path(serve[3]).resolve())) as server:
        server.wait_ready()
        for block in CODE:
            code = block.replace("127.0.0.1:50051", server.target).replace("2.0", "60.0")
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "your-robot.md", "exec"), names)
        names["planner"].close()
    shape, health, *correlations = printed.getvalue().splitlines()
    assert (shape, health) == ("(25, 3)", "uncalibrated")
    assert [line.rpartition(" ")[0] for line in correlations] == [
        f"joint {joint}: correlation" for joint in range(3)
    ]
    assert np.shape(names["planned"]) == np.shape(names["executed"]) == (10, 3)
