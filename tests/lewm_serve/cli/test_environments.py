"""The code and the commands of docs/environments.md, in order."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from lewm_models import checkpoint
from lewm_models.card import read_card
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.training import settings
from lewm_models.training.prepared import PreparedData
from lewm_models.training.trainer import TrainingConfig
from lewm_serve.cli import demo
from lewm_serve.cli.main import app

DOCUMENT = (Path(__file__).parents[3] / "docs" / "environments.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def quickly(words: list[str]) -> list[str]:
    """The command with small numbers, and without --steps."""
    replaced = {"--episodes": "8", "--episode-steps": "40", "--steps": "2"}
    return [
        replaced.get(before, word) for before, word in zip(["", *words[:-1]], words, strict=True)
    ]


def test_a_gymnasium_environment_is_trained_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "puck", raising=False)
    few_steps = TrainingConfig(steps=2, learning_rate=1e-4, batch=8, directions=16)
    monkeypatch.setattr(settings, "PRESET_TRAINING", {"edge": few_steps})
    short_distance = DistanceTraining(steps=4, width=8, batch=16)
    monkeypatch.setattr(settings, "DISTANCE_TRAINING", short_distance)
    monkeypatch.setattr(demo, "LONE_ROBOTS", 2)
    monkeypatch.setattr(demo, "REQUIRED_SUCCESS", 0.0)
    monkeypatch.setattr("lewm_serve.cli.imagination.SLOW_FRAMES", 40)
    plain, complete = blocks("python")
    Path("puck.py").write_text(plain + complete)
    first, second, _ = blocks("sh")
    for line in (first + second).splitlines():
        program, *words = quickly(shlex.split(line))
        assert program == "lewm"
        extra = ["--robots", "2"] if words[0] == "demo" else []
        extra += ["--json", "results.json"] if words[0] == "evaluate" else []
        result = CliRunner().invoke(app, [*words, *extra])
        assert result.exit_code == 0, (line, result.output)
        if words[0] == "evaluate":
            results = json.loads(Path("results.json").read_text())
            assert results["episodes"] == 8
    assert (results["protocol"], results["offset"], results["budget"]) == ("far", 50, 100)
    data = PreparedData.open(Path("runs/puck/data"))
    assert (len(data.frames), len(data.actions), data.frame_every) == (8 * 9, 8 * 41, 5)
    card = read_card(Path("runs/puck/model") / checkpoint.CARD_FILE)
    assert (card.name, card.action_low) == ("puck", (-1, -1))
    assert shlex.split(card.provenance["command"])[:4] == ["lewm", "train", "--env", "puck:make"]
    for name in ("Puck", "puck"):
        for suffix in (".gif", ".png"):
            with Image.open(Path("demo") / (name + suffix)) as picture:
                assert picture.width > 500
