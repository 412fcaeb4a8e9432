"""`lewm train` as it is typed; what it makes is tested with `lewm_models.training`."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from lewm_serve.cli.main import app

QUICK = ("--episodes", "2", "--episode-steps", "15", "--steps", "1")


def train(*arguments: str | Path) -> Result:
    """Run the program."""
    return CliRunner().invoke(app, ["train", *QUICK, *map(str, arguments)])


def complaint(result: Result) -> str:
    """The one line on standard error beside the bars of progress."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("lewm train: "))
    return line


def test_a_folder_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "/proc/x" in complaint(train("--output", "/proc/x"))
    assert str(file) in complaint(train("--output", file))


def test_a_recording_or_checkpoint_that_is_broken_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    recording = tmp_path / "data" / "recording.json"
    recording.write_text("{")
    assert "data: holds a broken recording" in complaint(train("--output", tmp_path))
    recording.unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    assert "checkpoint.pt: is no whole checkpoint" in complaint(train("--output", tmp_path))


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_a_device_that_is_not_there_is_named_as_it_was_given(tmp_path: Path, device: str) -> None:
    line = complaint(train("--output", tmp_path, "--device", device))
    assert "--device: " in line
    assert device in line
    assert "LEWM" not in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_there_may_be_no_gpu(tmp_path: Path) -> None:
    assert "there is no cuda here" in complaint(train("--output", tmp_path, "--device", "cuda"))
