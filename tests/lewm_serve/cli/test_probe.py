"""`lewm models probe`: a probe of states for a model that is there already."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.probe import fit
from lewm_serve.cli.main import app
from tests.lewm_models.examples import example_card, tiny_model
from tests.lewm_models.training.sources import prepare, two_room

FRAMES = 16


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    quick = fit.ProbeTraining(steps=20, width=8, batch=64)
    monkeypatch.setattr(fit, "ProbeTraining", lambda: quick)


def write_model(folder: Path = Path("model")) -> Path:
    model = tiny_model()
    checkpoint.save(folder, model, example_card(model))
    return folder


def write_rooms(path: Path, *columns: str, episodes: int = 8) -> Path:
    """A recording of Two-Room with these columns of states."""
    data = prepare(two_room(episodes=episodes, steps=39, image_size=FRAMES), path.with_suffix(""))
    assert data.states is not None
    with h5py.File(path, "w") as file:
        file["pixels"] = data.read_frames(np.arange(40 * episodes))
        file["action"] = data.actions
        for column in columns:
            file[column] = data.states
        file["ep_len"], file["ep_offset"] = np.full(episodes, 40), np.arange(episodes) * 40
    return path


def lewm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_probe_from_an_environment_is_written_and_described() -> None:
    folder = write_model()
    weights, version = (folder / "model.safetensors").read_bytes(), checkpoint.version(folder)
    result = lewm("models", "probe", folder, "--env", "two-room", "--episodes", "8")
    assert result.exit_code == 0, result.output
    loaded = checkpoint.load(folder)
    card = loaded.card.probe
    assert card is not None
    assert loaded.probe is not None
    assert card.states == ("x", "y")
    assert loaded.version != version
    assert (folder / "model.safetensors").read_bytes() == weights
    assert f"version {loaded.version}" in result.stdout
    assert f"{card.r2[0]:.6g}" in result.stdout
    assert f"{card.ridge_error[1]:.6g}" in result.stdout
    assert loaded.card.provenance["probe"]["command"] == (
        "lewm models probe model --env two-room --episodes 8 --episode-steps 150 --seed 0"
    )


def test_a_probe_from_a_recording_has_the_names_of_its_column() -> None:
    folder = write_model()
    recording = write_rooms(Path("rooms.h5"), "state", "proprio")
    assert "--state has to choose one" in lewm("models", "probe", folder, recording).stderr
    result = lewm("models", "probe", folder, recording, "--state", "proprio")
    assert result.exit_code == 0, result.output
    card = checkpoint.load(folder).card
    assert card.probe is not None
    assert card.probe.states == ("proprio_0", "proprio_1")
    assert card.probe.periods == (0, 0)
    assert card.provenance["probe"]["data"]["state"] == "proprio"
    period = ("--period", "proprio_1=360")
    result = lewm("models", "probe", folder, recording, "--state", "proprio", *period)
    assert result.exit_code == 0, result.output
    card = checkpoint.load(folder).card
    assert card.probe is not None
    assert card.probe.periods == (0, 360)
    assert card.provenance["probe"]["command"] == (
        "lewm models probe model rooms.h5 --state proprio --period proprio_1=360"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "probe: expected either DATA or --env"),
        (("rooms.h5", "--env", "two-room"), "probe: expected either DATA or --env"),
        (("none.h5",), "none.h5: there is no such file or folder"),
        (("--env", "chess"), "--env: expected one of cube"),
        (("rooms.h5", "--period", "state_0"), "--period: expected NAME=NUMBER, such as angle=360"),
        (("rooms.h5", "--period", "z=3"), "--period: expected one of state_0, state_1, got 'z'"),
        (("rooms.h5", "--state", "pose"), "--state: rooms.h5 has no 'pose'; it has state"),
        (("few.h5",), "the training episodes have 80 frames with states, a probe needs 200"),
    ],
)
def test_what_is_wrong_is_named(arguments: tuple[str, ...], message: str) -> None:
    folder = write_model()
    write_rooms(Path("rooms.h5"), "state")
    write_rooms(Path("few.h5"), "state", episodes=3)
    result = lewm("models", "probe", folder, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert checkpoint.load(folder).card.probe is None


def test_a_damaged_or_missing_probe_is_refused_by_name() -> None:
    folder = write_model()
    assert lewm("models", "probe", folder, "--env", "two-room", "--episodes", "8").exit_code == 0
    path = folder / checkpoint.PROBE_FILE
    content = path.read_bytes()
    for damaged, message in (
        (content[:-1] + bytes([content[-1] ^ 1]), "does not belong to the card's probe"),
        (b"{}", "expected a safetensors file"),
        (None, "No such file or directory"),
    ):
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        result = lewm("models", "verify", folder)
        assert result.exit_code == 1
        assert f"{path}: " in result.stderr
        assert message in result.stderr, result.stderr


def test_verify_export_and_save_know_the_probe() -> None:
    folder = write_model()
    result = lewm("models", "probe", folder, "--env", "reacher", "--episodes", "8")
    assert result.exit_code == 0, result.output
    verified = lewm("models", "verify", folder)
    assert verified.exit_code == 0, verified.output
    assert "held-out R² shoulder " in verified.stdout
    exported = lewm("models", "export", folder, "onnx")
    assert exported.exit_code == 0, exported.output
    assert "probe.onnx: within" in exported.stdout

    loaded = checkpoint.load(folder)
    copied = checkpoint.save(Path("copy"), loaded.model, loaded.card, probe=loaded.probe)
    assert copied == loaded.version
    checkpoint.save(Path("copy"), loaded.model, replace(loaded.card, probe=None))
    assert not (Path("copy") / checkpoint.PROBE_FILE).exists()
