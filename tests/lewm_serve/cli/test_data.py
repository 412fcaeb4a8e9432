"""`lewm data inspect` as it is typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from lewm_serve.cli.main import app
from tests.lewm_models.recordings.made_data import (
    STEPS,
    actions_of,
    frames_of,
    write_hdf5,
    write_images,
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def inspect(*arguments: str) -> Result:
    """Run the program."""
    return CliRunner().invoke(app, ["data", "inspect", *arguments])


def test_the_report_for_people() -> None:
    actions = actions_of(STEPS)
    actions[STEPS[0] : STEPS[0] + STEPS[1]] = np.nan
    write_hdf5(Path("robot.h5"), columns={"action": actions}, attributes={"fps": 10})
    result = inspect("robot.h5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for line in (
        "episodes    3 of 25 to 60 steps",
        "steps       125",
        "rate        10 Hz",
        "cameras     pixels, 16 × 12 pixels",
        "usable      2 of 3 episodes, 100 of 125 steps; one sample takes 16 steps in a row",
        "  episodes without actions        1   the episode is left out (episode 1)",
        "  action block        5 steps",
        "contact sheet: robot-contact.png",
        "to train: lewm train --data robot.h5 --action-block 5 --image-size 16 --crop center",
    ):
        assert line in lines
    (row,) = (line.split() for line in lines if line.startswith("  action 0"))
    assert float(row[2]) == pytest.approx(np.nanmin(actions[:, 0]), rel=1e-3)


def test_the_report_for_programs() -> None:
    actions = actions_of(STEPS)
    write_hdf5(Path("robot.h5"), attributes={"fps": 10})
    result = inspect("robot.h5", "--json", "--output", "sheets/robot.png")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["episodes"] == 3
    assert report["steps"] == sum(STEPS)
    assert report["rate_hz"] == 10
    assert report["hours"] == pytest.approx(sum(STEPS) / 36_000)
    assert report["cameras"] == [{"name": "pixels", "height": 12, "width": 16}]
    dimension = report["actions"][0]["dimensions"][1]
    assert dimension["mean"] == pytest.approx(float(np.nanmean(actions[:, 1])), rel=1e-4)
    assert set(dimension) >= {"low", "high", "deviation", "constant_share", "clipped_share"}
    assert report["problems"] == []
    assert set(report["proposals"]) == {
        "action_block",
        "history",
        "image_size",
        "crop",
        "action_low",
        "action_high",
        "action_rate_limit",
    }
    assert report["contact_sheet"] == "sheets/robot.png"


def test_the_contact_sheet_shows_frames_of_each_episode() -> None:
    red, blue = np.zeros((2, 30, 16, 16, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    steps = (30, 30)
    write_hdf5(
        Path("a.h5"),
        steps=steps,
        columns={"pixels": np.concatenate([red, blue]), "action": actions_of(steps)},
    )
    assert inspect("a.h5", "--output", "sheet.png").exit_code == 0
    with Image.open("sheet.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    is_red = (pixels == (255, 0, 0)).all(axis=2)
    is_blue = (pixels == (0, 0, 255)).all(axis=2)
    assert is_red.sum() == is_blue.sum() == 8 * 120 * 120
    assert np.flatnonzero(is_red.any(axis=1)).max() < np.flatnonzero(is_blue.any(axis=1)).min()


def test_several_cameras_are_listed_and_one_can_be_chosen() -> None:
    wrist = np.zeros((sum(STEPS), 8, 8, 3), np.uint8)
    write_hdf5(Path("a.h5"), columns={"wrist": wrist})
    result = inspect("a.h5")
    assert result.exit_code == 0, result.output
    assert "There are several cameras. Choose one with --camera" in result.stdout
    assert "several at once are not supported" in result.stdout
    assert "to train:" not in result.stdout
    result = inspect("a.h5", "--camera", "wrist")
    assert "lewm train --data a.h5 --camera wrist" in result.stdout
    result = inspect("a.h5", "--camera", "wrist", "--camera", "pixels")
    assert result.exit_code == 1
    assert "--camera: expected one name, got wrist, pixels; several at once" in result.stderr
    result = inspect("a.h5", "--camera", "top")
    assert result.exit_code == 1
    assert "has no 'top'; it has pixels, wrist" in result.stderr


def test_a_recording_that_cannot_be_trained_from_is_reported_and_fails() -> None:
    write_hdf5(Path("a.h5"), columns={"action": np.full((sum(STEPS), 2), np.nan, np.float32)})
    result = inspect("a.h5")
    assert result.exit_code == 1
    assert "no finite values" in result.stdout
    assert "episodes without actions" in result.stdout
    assert "no episode can be used: 3 episodes without actions" in result.stderr
    assert json.loads(inspect("a.h5", "--json").stdout)["proposals"] is None


def test_images_without_actions_and_damaged_images() -> None:
    write_images(Path("a"), frames_of(30), [f"{step}.png" for step in range(30)])
    result = inspect("a")
    assert result.exit_code == 1
    assert "has no actions" in result.stderr
    np.save("a/actions.npy", np.zeros((30, 2)))
    Path("a/0.png").write_bytes(Path("a/0.png").read_bytes()[:60])
    result = inspect("a")
    assert result.exit_code == 0, result.output
    assert "Unreadable frame: a/0.png: cannot be decoded" in result.stdout


def test_what_is_no_recording_is_one_clear_line() -> None:
    for path in ("gone", "."):
        result = inspect(path)
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("lewm data inspect: ")
        assert isinstance(result.exception, SystemExit)


def test_a_contact_sheet_that_cannot_be_written() -> None:
    write_hdf5(Path("a.h5"))
    result = inspect("a.h5", "--output", "a.h5/sheet.png")
    assert result.exit_code == 1
    assert "a.h5" in result.stderr
