"""`lewm train` as it is typed, from a recording to a plan of the served model."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import h5py
import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.config import PRESETS
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.training import run, settings
from lewm_models.training.run import read_log
from lewm_models.training.trainer import TrainingConfig, TrainingMetrics
from lewm_serve.cli.main import app
from lewm_serve.cli.train import describe
from lewm_serve.cli.training_picture import draw_training
from tests.lewm_models.training.short_run import CONFIG
from tests.lewm_models.training.sources import write_robot
from tests.lewm_serve.support.frames import base64_of
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

SHORT_ENV = ("--env", "two-room", "--episodes", "2", "--episode-steps", "15", "--steps", "1")


@pytest.fixture(autouse=True)
def _small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the preset `edge` a small model."""
    monkeypatch.setitem(PRESETS, "edge", CONFIG)
    short = TrainingConfig(steps=3, learning_rate=1e-3, batch=16, directions=16)
    monkeypatch.setattr(settings, "PRESET_TRAINING", {"edge": short})
    short_distance = DistanceTraining(steps=4, width=8, batch=16)
    monkeypatch.setattr(settings, "DISTANCE_TRAINING", short_distance)


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(*arguments: str | Path) -> Result:
    """Run the program."""
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def error_line(result: Result) -> str:
    """The one line on standard error besides the progress bars."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("lewm train: "))
    return line


def test_a_recording_becomes_a_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three joints, frames of 96 × 64: trained, served, and planned with frames of that shape."""
    monkeypatch.chdir(tmp_path)
    write_robot(Path("robot arm.h5"), steps=[40] * 30)
    result = train("--data", "robot arm.h5", "--crop", "pad", "--action-rate-limit", "auto")
    assert result.exit_code == 0, result.output
    folder = Path("runs/robot-arm/model")
    assert result.stdout == f"{folder}\n"
    said = " ".join(result.stderr.split())
    assert "preparing 1,200 frames of 32 × 32 pixels: 3.7 MB in runs/robot-arm/data (" in said
    assert "frames that are not square: pad (--crop)" in said
    assert "training 3 steps, with a report every 250" in said
    assert "step 3 prediction" in said
    assert "warning: Only 1,200 steps can be used" in said
    card = checkpoint.load(folder).card
    assert (card.name, card.config.action_dim, card.crop) == ("robot-arm", 3, "pad")

    with h5py.File("robot arm.h5", locking=False) as file:
        start, goal = file["pixels"][0], file["pixels"][30]
    log = tmp_path / "server.log"
    with ServerProcess(log, "--models", str(folder.resolve())) as server:
        server.wait_ready()
        frames = [{"pixels": _pixels(frame)} for frame in (start, goal)]
        body = {"frames": frames[:1], "goal": frames[1], "seed": 1}
        plan = httpx.post(f"{server.url}/plan", json=body, timeout=PATIENCE_S)
        assert plan.status_code == 200, plan.text
        rows = np.array(plan.json()["actions"])
    assert rows.shape == (25, 3)
    assert ((rows >= card.action_low) & (rows <= card.action_high)).all()
    assert card.action_rate_limit is not None
    assert (np.abs(np.diff(rows, axis=0)) <= card.action_rate_limit).all()


def _pixels(frame: np.ndarray) -> dict[str, object]:
    return {"data": base64_of(frame.tobytes()), "shape": list(frame.shape)}


@pytest.mark.usefixtures("_here")
def test_the_same_command_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    write_robot(Path("robot.h5"))
    command = ("--data", "robot.h5", "--output", "out", "--name", "arm", "--steps", "6")
    monkeypatch.setattr(run, "REPORT_EVERY", 2)

    def interrupt(metrics: TrainingMetrics) -> str:
        if metrics.step == 4:
            raise KeyboardInterrupt
        return describe(metrics)

    with monkeypatch.context() as patch:
        patch.setattr("lewm_serve.cli.train.describe", interrupt)
        assert train(*command).exit_code == 130
    assert [line.step for line in read_log(Path("out"))] == [2, 4]
    result = train(*command)
    assert result.exit_code == 0, result.output
    assert "preparing" not in result.stderr.replace("preparing frames", "")
    assert [line.step for line in read_log(Path("out"))] == [2, 4, 6]
    with Image.open("out/training.png") as picture:
        assert picture.format == "PNG"
    assert checkpoint.load(Path("out/model")).card.name == "arm"


@pytest.mark.usefixtures("_here")
def test_the_command_of_the_card_makes_the_model_again() -> None:
    write_robot(Path("robot.h5"))
    given = ("--action-block", "3", "--learning-rate", "0.004")
    first = Path(train("--data", "robot.h5", *given).stdout.strip())
    card = checkpoint.load(first).card
    assert "--learning-rate 0.004" in card.provenance["command"]
    program, command, *options = shlex.split(card.provenance["command"])
    assert (program, command) == ("lewm", "train")
    again = train(*options, "--output", "again")
    assert again.exit_code == 0, again.output
    weights = (
        path.read_bytes()
        for path in (first / "model.safetensors", Path("again/model/model.safetensors"))
    )
    assert len(set(weights)) == 1


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one of --data PATH, a recording, and --env NAME, an environment (cube,"),
        (("--env", "chess"), "--env: expected one of cube, "),
        (("--data", "robot.h5", "--env", "two-room"), "expected one of --data PATH"),
        (("--data", "none.h5"), "none.h5: there is no such file or folder"),
        (("--data", "robot.h5", "--camera", "front"), "--camera: robot.h5 has no 'front'"),
        (("--data", "robot.h5", "--action", "a", "--action", "b"), "--action: expected one name"),
        (("--data", "robot.h5", "--state", "joints"), "--state: robot.h5 has no 'joints'"),
        (("--data", "robot.h5", "--episodes", "5"), "--episodes: is for --env"),
        (("--env", "two-room", "--camera", "front"), "--camera: is for --data"),
        (("--env", "two-room", "--crop", "pad"), "--crop: is for --data"),
        (("--env", "two-room", "--action-rate-limit", "auto"), "--action-rate-limit: auto is for"),
        (("--data", "robot.h5", "--from", "nowhere"), "nowhere/model.json: "),
        (("--data", "robot.h5", "--image-size", "20"), "--image-size: expected a multiple of 8"),
        (("--data", "robot.h5", "--name", "two words"), "name: expected 1 to 64 letters"),
        (("--data", "robot.h5", "--action-rate-limit", "1"), "--action-rate-limit: expected"),
        (("--data", "robot.h5", "--device", "tpu"), "--device: there is no tpu here"),
        (("--data", "robot.h5", "--output", "."), "holds no training run: robot.h5"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, ...], message: str) -> None:
    write_robot(Path("robot.h5"))
    result = train(*arguments)
    assert message in error_line(result)
    assert not result.stderr.startswith("\n")
    assert not Path("runs").exists()


def test_an_unusable_folder_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "/proc/x" in error_line(train(*SHORT_ENV, "--output", "/proc/x"))
    assert str(file) in error_line(train(*SHORT_ENV, "--output", file))


def test_broken_data_and_a_broken_checkpoint_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    prepared = tmp_path / "data" / "prepared.json"
    prepared.write_text("{")
    output = (*SHORT_ENV, "--output", tmp_path)
    assert "data: holds broken data" in error_line(train(*output))
    prepared.unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    assert "checkpoint.pt: is not a complete checkpoint" in error_line(train(*output))


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_a_missing_device_is_named_as_it_was_typed(tmp_path: Path, device: str) -> None:
    line = error_line(train(*SHORT_ENV, "--output", tmp_path, "--device", device))
    assert "--device: " in line
    assert device in line
    assert "LEWM" not in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    result = train(*SHORT_ENV, "--output", tmp_path, "--device", "cuda")
    assert "there is no cuda here" in error_line(result)


METRICS = TrainingMetrics(
    step=250,
    prediction=0.5,
    sigreg=1.5,
    held_out_prediction=0.25,
    held_out_sigreg=2.0,
    copy_error=0.5,
    cost_range=4.0,
    effective_rank=30.0,
    latent_std=0.9,
    seconds_per_step=0.125,
)


def test_a_line_of_the_log() -> None:
    assert describe(METRICS) == (
        "step    250  prediction 0.5000 (held out 0.2500, 0.50 × copying)  "
        "sigreg 1.500 (held out 2.000)  cost range 4.00  rank 30  latent std 0.90  0.12 s/step"
    )


@pytest.mark.usefixtures("_here")
def test_a_collapse_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    write_robot(Path("robot.h5"))
    monkeypatch.setattr("lewm_models.training.diagnostics.MIN_COST_RANGE", 1e9)
    result = train("--data", "robot.h5")
    assert result.exit_code == 0, result.output
    assert "warning: the model has collapsed: " in result.stderr


def test_the_picture_shows_the_latest_values(tmp_path: Path) -> None:
    """With one report, with several, and with values that are not finite."""
    output = tmp_path / "training.png"
    pictures = set()
    later = [
        TrainingMetrics(**vars(METRICS) | {"step": 250 * i, "cost_range": 3.0**i})
        for i in (1, 2, 3)
    ]
    broken = TrainingMetrics(**vars(METRICS) | {"step": 500, "sigreg": float("nan")})
    for reports in ([METRICS], later[:2], later, [METRICS, broken]):
        draw_training(reports, output)
        pictures.add(output.read_bytes())
    assert len(pictures) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["training.png"]


@pytest.mark.usefixtures("_here")
def test_tensorboard_gets_the_reports_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[tuple[str, float, int]] = []

    def writer(folder: str) -> SimpleNamespace:
        assert folder == "runs/robot/tensorboard"
        return SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar), flush=list)

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    write_robot(Path("robot.h5"))
    assert train("--data", "robot.h5").exit_code == 0
    (report,) = read_log(Path("runs/robot"))
    assert ("held_out_prediction", report.held_out_prediction, 3) in written
    assert ("prediction_to_copy", report.prediction_to_copy, 3) in written
