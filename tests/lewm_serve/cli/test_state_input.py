"""Models that take states beside the pixels, from `lewm train` to plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.calibration import calibrate
from lewm_models.card import SolverConfig
from lewm_models.config import PRESETS, StateInput
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.judging import measure
from lewm_models.probe import fit
from lewm_models.training import settings
from lewm_models.training.trainer import TrainingConfig
from lewm_serve.cli.main import app
from tests.lewm_models.examples import STATE_INPUT, example_card, tiny_model
from tests.lewm_models.training.short_run import CONFIG
from tests.lewm_serve.cli.test_probe import write_rooms
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

COLUMN = StateInput(("state_0", "state_1"), STATE_INPUT.mean, STATE_INPUT.std)
"""The states of the column `state` of a recording without their names."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "edge", CONFIG)
    short = TrainingConfig(steps=3, learning_rate=1e-3, batch=16, directions=16)
    monkeypatch.setattr(settings, "PRESET_TRAINING", {"edge": short})
    distance = DistanceTraining(steps=4, width=8, batch=16)
    monkeypatch.setattr(settings, "DISTANCE_TRAINING", distance)
    probe = fit.ProbeTraining(steps=20, width=8, batch=64)
    monkeypatch.setattr(fit, "ProbeTraining", lambda: probe)
    monkeypatch.setattr(measure, "RESAMPLES", 10)
    monkeypatch.setattr(calibrate, "MIN_CALIBRATION_FRAMES", 100)


def lewm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_model(given: StateInput = COLUMN) -> Path:
    folder, model = Path("model"), tiny_model(state_input=given)
    quick = SolverConfig(name="icem", samples=8, iterations=1, elites=2)
    card = replace(example_card(model), solver=quick)
    checkpoint.save(folder, model, card)
    return folder


def test_a_trained_model_is_exported_served_and_asked_with_vectors(tmp_path: Path) -> None:
    trained = lewm("train", "--env", "two-room", "--episodes", "8", "--state-input")
    assert trained.exit_code == 0, trained.output
    assert "states that the model sees: x, y" in trained.stderr
    folder = Path(trained.stdout.strip())
    exported = lewm("models", "export", folder, "onnx")
    assert exported.exit_code == 0, exported.output
    card = json.loads(Path("onnx/model.json").read_text())
    assert card["state_input"]["names"] == ["x", "y"]
    verified = lewm("models", "verify", folder)
    assert verified.exit_code == 0, verified.output
    assert "change the latent, of its norm: x" in verified.stdout

    with ServerProcess(tmp_path / "server.log", "--models", str(folder.resolve())) as server:
        server.wait_ready()

        def plan(*vectors: list[float] | None) -> httpx.Response:
            frames = [
                pixels(index) | ({} if vector is None else {"vector": vector})
                for index, vector in enumerate(vectors)
            ]
            body = {"frames": frames[:1], "goal": frames[1], "seed": 1}
            return httpx.post(f"{server.url}/plan", json=body, timeout=PATIENCE_S)

        answers = [plan([40, 120], [90, 60]), plan(None, [90, 60]), plan(None, None)]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            assert np.shape(answer.json()["actions"]) == (25, 2)
        assert len({str(answer.json()["latent_ids"]) for answer in answers}) == 3
        refused = plan([40], None)
        assert refused.status_code == 422
        assert "frames[0].vector: received 1 numbers, expected 2" in refused.json()["detail"]


@pytest.mark.parametrize(
    "command",
    [
        ("models", "distance", "model", "rooms.h5"),
        ("models", "probe", "model", "rooms.h5"),
        ("models", "calibrate", "model", "rooms.h5"),
        ("evaluate", "model", "--data", "rooms.h5", "--plans", "4"),
    ],
)
def test_a_recording_shows_a_model_the_states_that_it_takes(command: tuple[str, ...]) -> None:
    write_rooms(Path("rooms.h5"), "proprio", "state", episodes=24)
    folder = write_model()
    result = lewm(*command)
    assert result.exit_code == 0, result.output
    card = checkpoint.load(folder).card
    if command[1] == "calibrate":
        # With the states hidden, the norms are others.
        assert card.calibration is not None
        hidden = write_model(STATE_INPUT)
        assert lewm("models", "calibrate", hidden, "rooms").exit_code == 0
        of_names = checkpoint.load(hidden).card.calibration
        assert of_names is not None
        assert of_names.norm_mean == pytest.approx(card.calibration.norm_mean, rel=1e-4)
    others = write_model(StateInput(("x", "elbow"), STATE_INPUT.mean, STATE_INPUT.std))
    refused = lewm(*command)
    assert refused.exit_code == 1
    assert "rooms.h5: expected the states x, elbow" in refused.stderr.replace("\n", " ")
    assert checkpoint.load(others).card.calibration is None


def test_an_environment_without_the_states_is_refused() -> None:
    write_model()
    for command in ("distance", "probe"):
        arguments = ("--env", "two-room", "--episodes", "8", "--episode-steps", "40")
        refused = lewm("models", command, "model", *arguments)
        assert refused.exit_code == 1
        assert "expected the states state_0, state_1 (example takes them), got x, y" in (
            " ".join(refused.stderr.split())
        )


def test_options_that_cannot_be_met_are_named() -> None:
    write_rooms(Path("rooms.h5"), "proprio", "state", episodes=4)
    several = lewm("train", "--data", "rooms.h5", "--state-input")
    assert several.exit_code == 1
    assert "--state-input: rooms.h5 has no column of states, or several" in several.stderr
    one = lewm("train", "--data", "rooms.h5", "--state-input", "--state", "proprio")
    assert one.exit_code == 0, one.output
    given = checkpoint.load(Path(one.stdout.strip())).card.config.state_input
    assert given is not None
    assert given.names == ("proprio_0", "proprio_1")
