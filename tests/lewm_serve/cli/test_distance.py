"""`lewm models distance`: a distance for a model that is there already."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.training import settings
from lewm_serve.cli.main import app
from tests.lewm_models.examples import example_card, tiny_model
from tests.lewm_models.training.sources import write_robot


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    short = DistanceTraining(steps=4, width=8, batch=16)
    monkeypatch.setattr(settings, "DISTANCE_TRAINING", short)


def write_model(folder: Path = Path("model"), **changes: Any) -> Path:
    model = tiny_model(**changes)
    checkpoint.save(folder, model, example_card(model))
    return folder


def distance(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["models", "distance", *map(str, arguments)])


SHORT_ENV = ("--env", "two-room", "--episodes", "12", "--episode-steps", "60")


def test_a_distance_from_an_environment_is_written_and_described() -> None:
    folder = write_model()
    weights, version = (folder / "model.safetensors").read_bytes(), checkpoint.version(folder)
    result = distance(folder, *SHORT_ENV)
    assert result.exit_code == 0, result.output
    loaded = checkpoint.load(folder)
    assert loaded.card.distance is not None
    assert loaded.distance is not None
    assert loaded.distance.proposal is not None
    assert loaded.version != version
    assert (folder / "model.safetensors").read_bytes() == weights
    assert f"version {loaded.version}" in result.stdout
    assert f"{loaded.card.distance.rank_correlation:.6g}" in result.stdout
    assert "plan requests minimise by default: latent" in result.stdout
    assert loaded.card.provenance["distance"]["recording"]["seed"] == 0
    assert loaded.card.provenance["distance"]["command"] == (
        "lewm models distance model --env two-room --episodes 12 --episode-steps 60 --seed 0"
    )


def test_the_same_command_does_not_train_again_and_may_change_the_default() -> None:
    folder = write_model()
    assert distance(folder, *SHORT_ENV).exit_code == 0
    first = checkpoint.load(folder)
    result = distance(folder, *SHORT_ENV, "--objective", "distance")
    assert result.exit_code == 0, result.output
    assert "loss" not in result.stderr
    second = checkpoint.load(folder)
    assert second.card.distance == first.card.distance
    assert second.card.solver.objective == "distance"
    assert distance(folder, *SHORT_ENV, "--objective", "latent").exit_code == 0
    assert checkpoint.load(folder).card.solver.objective is None


def test_a_recording_is_treated_as_in_training() -> None:
    write_robot(Path("robot.h5"), steps=[70] * 12)
    folder = write_model(action_dim=3)
    assert "does not say how they become square" in distance(folder, "robot.h5").stderr
    model = tiny_model(action_dim=3)
    card = example_card(model)
    checkpoint.save(folder, model, card.__class__.from_json({**card.to_json(), "crop": "pad"}))
    result = distance(folder, "robot.h5", "--output", "run")
    assert result.exit_code == 0, result.output
    assert (Path("run") / "data" / "prepared.json").is_file()
    assert checkpoint.load(folder).distance is not None
    again = distance(folder, "run/data", "--output", "again")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "distance: expected either DATA or --env"),
        (("robot.h5", *SHORT_ENV), "distance: expected either DATA or --env"),
        (("none.h5",), "none.h5: there is no such file or folder"),
        (("--env", "chess"), "--env: expected one of cube"),
        (("--env", "two-room", "--episodes", "2"), "the training episodes have"),
    ],
)
def test_what_is_wrong_is_named(arguments: tuple[str, ...], message: str) -> None:
    folder = write_model()
    result = distance(folder, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert checkpoint.load(folder).card.distance is None


def test_a_damaged_or_missing_distance_is_refused_by_name() -> None:
    folder = write_model()
    assert distance(folder, *SHORT_ENV).exit_code == 0
    path = folder / checkpoint.DISTANCE_FILE
    content = path.read_bytes()
    for damaged, message in (
        (content[:-1] + bytes([content[-1] ^ 1]), "does not belong to the card's distance"),
        (b"{}", "expected a safetensors file"),
        (None, "No such file or directory"),
    ):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        result = CliRunner().invoke(app, ["models", "verify", str(folder)])
        assert result.exit_code == 1
        assert f"{path}: " in result.stderr
        assert message in result.stderr, result.stderr


def test_verify_and_export_know_the_distance() -> None:
    folder = write_model()
    assert distance(folder, *SHORT_ENV).exit_code == 0
    verified = CliRunner().invoke(app, ["models", "verify", str(folder)])
    assert verified.exit_code == 0, verified.output
    assert "distance" in verified.stdout
    exported = CliRunner().invoke(app, ["models", "export", str(folder), "onnx"])
    assert exported.exit_code == 0, exported.output
    assert "distance.onnx: within" in exported.stdout
