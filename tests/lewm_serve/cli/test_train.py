"""`lewm train` as it is typed. Training itself is tested with `lewm_models.training`."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from lewm_serve.cli.main import app

SHORT_RUN = ("--episodes", "2", "--episode-steps", "15", "--steps", "1")


def train(*arguments: str | Path) -> Result:
    """Run the program."""
    return CliRunner().invoke(app, ["train", *SHORT_RUN, *map(str, arguments)])


def error_line(result: Result) -> str:
    """The one line on standard error besides the progress bars."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("lewm train: "))
    return line


def test_an_unusable_folder_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "/proc/x" in error_line(train("--output", "/proc/x"))
    assert str(file) in error_line(train("--output", file))


def test_a_broken_recording_or_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    recording = tmp_path / "data" / "recording.json"
    recording.write_text("{")
    assert "data: holds a broken recording" in error_line(train("--output", tmp_path))
    recording.unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    assert "checkpoint.pt: is not a complete checkpoint" in error_line(train("--output", tmp_path))


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_a_missing_device_is_named_as_it_was_typed(tmp_path: Path, device: str) -> None:
    line = error_line(train("--output", tmp_path, "--device", device))
    assert "--device: " in line
    assert device in line
    assert "LEWM" not in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    assert "there is no cuda here" in error_line(train("--output", tmp_path, "--device", "cuda"))
