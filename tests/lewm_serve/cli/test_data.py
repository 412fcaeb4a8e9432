"""`lewm data inspect` as it is typed."""

import json
from pathlib import Path

import h5py
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
        "contact sheet: robot.h5-contact.png",
        "  Only 100 steps can be used; a first try needs some 20,000.",
        "held out    1 episodes, 40 frames",
        "to train: lewm train --data robot.h5 --action-block 5 --image-size 64 --crop center",
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
    assert is_red.sum() == is_blue.sum() == 2 * 8 * 120 * 120  # and what the model sees
    assert np.flatnonzero(is_red.any(axis=1)).max() < np.flatnonzero(is_blue.any(axis=1)).min()


def test_several_cameras_are_listed_and_one_can_be_chosen() -> None:
    wrist = np.zeros((sum(STEPS), 8, 8, 3), np.uint8)
    write_hdf5(Path("a.h5"), columns={"wrist": wrist})
    result = inspect("a.h5")
    assert result.exit_code == 0, result.output
    assert "several cameras. Choose one with --camera (pixels, wrist): " in result.stdout
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
    assert not list(Path().glob("*.png"))
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


def test_a_column_of_numbers_can_be_named_as_actions() -> None:
    write_hdf5(Path("a.h5"), columns={"cmd_vel": actions_of(STEPS)})
    with h5py.File("a.h5", "r+") as file:
        del file["action"]
    result = inspect("a.h5")
    assert result.exit_code == 1
    assert "has no actions (no column is called action…)" in result.stderr
    assert "name it: --action cmd_vel, proprio" in result.stderr
    result = inspect("a.h5", "--action", "cmd_vel")
    assert result.exit_code == 0, result.output
    assert "  cmd_vel 0" in result.stdout
    assert "to train: lewm train --data a.h5 --action cmd_vel " in result.stdout
    assert result.stdout.index("  cmd_vel 0") < result.stdout.index("  proprio 0")
    assert result.stdout.count("  cmd_vel 0") == 1


def test_a_single_episode_cannot_be_trained_from() -> None:
    write_hdf5(Path("a.h5"), steps=(60,))
    result = inspect("a.h5")
    assert result.exit_code == 0, result.output
    assert "Only one episode can be used, so no model can be trained" in result.stdout
    assert "to train:" not in result.stdout
    assert "Only one episode" in json.loads(inspect("a.h5", "--json").stdout)["warnings"][0]


def test_what_can_be_calibrated_is_said_in_advance() -> None:
    write_hdf5(Path("a.h5"), steps=(83,) * 80)
    report = json.loads(inspect("a.h5", "--json").stdout)
    assert report["held_out"] == {"episodes": 16, "frames": 1328}
    assert not any("calibrate" in warning for warning in report["warnings"])


def test_contact_sheets_are_no_frames_and_do_not_collide() -> None:
    write_hdf5(Path("arm.h5"))
    write_images(Path("arm"), frames_of(30), [f"{step}.png" for step in range(30)])
    np.save("arm/actions.npy", np.zeros((30, 2)))
    for path in ("arm.h5", "arm"):
        assert inspect(path).exit_code == 0
    assert {path.name for path in Path().glob("*.png")} == {"arm.h5-contact.png", "arm-contact.png"}
    result = inspect(".")
    assert "steps       30" in result.stdout  # the folder arm, and not the sheets


def test_the_proposed_size_says_what_else_is_possible() -> None:
    columns = {"pixels": np.zeros((sum(STEPS), 120, 160, 3), np.uint8)}
    write_hdf5(Path("a.h5"), columns=columns)
    result = inspect("a.h5")
    assert "image size          64 pixels; up to 112 shows more and takes longer" in result.stdout


def test_a_contact_sheet_that_cannot_be_written() -> None:
    write_hdf5(Path("a.h5"))
    result = inspect("a.h5", "--output", "a.h5/sheet.png")
    assert result.exit_code == 1
    assert "a.h5" in result.stderr
