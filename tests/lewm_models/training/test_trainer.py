"""A short run learns and does not collapse; a run that is cut off ends where it would have."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_models.training.recording import Recording
from lewm_models.training.trainer import Metrics, Trainer, TrainingConfig, fastest_precision
from tests.lewm_models.training.short_run import CONFIG, SHORT, TRAINING, trainer

ROOT = Path(__file__).parents[3]


def reports(run: Trainer, every: int) -> list[Metrics]:
    lines: list[Metrics] = []
    run.run(report=lines.append, report_every=every)
    return lines


def assert_same_weights(model: LeWM, other: LeWM) -> None:
    state = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_short_run_lowers_the_loss_and_does_not_collapse(recording: Recording) -> None:
    first, *_, last = reports(trainer(recording), every=10)
    weight = TRAINING.sigreg_weight
    totals = [line.prediction + weight * line.sigreg for line in (first, last)]
    assert totals[1] < 0.7 * totals[0]
    assert last.sigreg < 0.7 * first.sigreg
    assert last.latent_std > 0.3


def test_without_sigreg_it_collapses(recording: Recording) -> None:
    *_, last = reports(trainer(recording, replace(TRAINING, sigreg_weight=0.0)), every=10)
    assert last.prediction < 1e-3
    assert last.latent_std < 0.01


def test_the_same_seed_makes_the_same_start(recording: Recording) -> None:
    first, again = trainer(recording), trainer(recording)
    other = trainer(recording, replace(TRAINING, seed=1))
    assert_same_weights(first.model, again.model)
    with pytest.raises(AssertionError):
        assert_same_weights(first.model, other.model)


def test_reports_change_nothing(recording: Recording) -> None:
    often, never = trainer(recording), trainer(recording)
    often.run(report=lambda metrics: None, report_every=1, until=6)
    never.run(until=6)
    assert_same_weights(often.model, never.model)


def test_a_run_resumed_ends_as_if_it_had_not_stopped(recording: Recording, tmp_path: Path) -> None:
    whole, stopped, resumed = (trainer(recording) for _ in range(3))
    whole.run(until=12)
    stopped.run(tmp_path / "checkpoint.pt", until=5)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.step == 5
    assert resumed.seconds == stopped.seconds
    resumed.run(until=12)
    assert_same_weights(resumed.model, whole.model)


def test_a_killed_run_ends_as_if_it_had_lived(
    recording: Recording, recording_folder: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    module = "tests.lewm_models.training.short_run"
    command = [sys.executable, "-m", module, str(recording_folder), str(checkpoint), "4"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdin is not None
        assert killed.stdout is not None
        assert killed.stdout.readline() == "4\n"
        killed.stdin.write("\n")
        killed.stdin.flush()
        # A report is followed by its checkpoint: at the second one the first is whole.
        assert killed.stdout.readline() == "8\n"
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["resumed at 4", "8", "12"]

    whole, ended = trainer(recording, SHORT), trainer(recording, SHORT)
    whole.run()
    ended.resume(checkpoint)
    assert ended.step == SHORT.steps
    assert_same_weights(ended.model, whole.model)


@pytest.mark.parametrize(
    ("training", "config", "difference"),
    [
        (replace(TRAINING, seed=1), CONFIG, "'seed': 0"),
        (replace(TRAINING, sigreg_weight=0.1), CONFIG, "'sigreg_weight': 0.09"),
        (replace(TRAINING, steps=200), CONFIG, "'steps': 100"),
        (TRAINING, replace(CONFIG, encoder_heads=4), "'encoder_heads': 2"),
        (TRAINING, replace(CONFIG, predictor_depth=2), "'predictor_depth': 1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    recording: Recording,
    tmp_path: Path,
    training: TrainingConfig,
    config: LeWMConfig,
    difference: str,
) -> None:
    trainer(recording).save(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=f"was written by a run with .*{difference}"):
        trainer(recording, training, config).resume(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("part", ["config", "step", "model", "optimizer"])
def test_a_checkpoint_without_a_part_is_refused(
    recording: Recording, tmp_path: Path, part: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    trainer(recording).save(path)
    saved = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in saved.items() if name != part}, path)
    with pytest.raises(ValueError, match=rf"checkpoint.pt: lacks {part}"):
        trainer(recording).resume(path)


@pytest.mark.parametrize("left", [0, 1, 1000])
def test_a_truncated_checkpoint_is_refused(recording: Recording, tmp_path: Path, left: int) -> None:
    path = tmp_path / "checkpoint.pt"
    trainer(recording).save(path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"checkpoint.pt: is no whole checkpoint"):
        trainer(recording).resume(path)


def test_an_older_checkpoint_can_be_resumed(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    trainer(recording).save(path)
    saved = torch.load(path, weights_only=True)
    for later in ("architecture", "precision", "seconds"):
        del saved[later]
    torch.save(saved, path)
    trainer(recording).resume(path)


def test_a_resumed_run_keeps_its_precision(recording: Recording, tmp_path: Path) -> None:
    trainer(recording, precision=torch.bfloat16).save(tmp_path / "checkpoint.pt")
    resumed = trainer(recording, precision=torch.float32)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.precision == torch.bfloat16


def test_a_checkpoint_is_replaced_whole(recording: Recording, tmp_path: Path) -> None:
    run = trainer(recording)
    run.save(tmp_path / "checkpoint.pt")
    (tmp_path / "checkpoint.part").write_bytes(b"cut off")
    trainer(recording).resume(tmp_path / "checkpoint.pt")
    run.save(tmp_path / "checkpoint.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_rate_warms_up_and_falls_to_nothing(recording: Recording) -> None:
    run = trainer(recording, replace(TRAINING, steps=1000, learning_rate=2.0))
    rates = [run.learning_rate(step) for step in range(1000)]
    assert rates[:11] == pytest.approx([0.2 * (step + 1) for step in range(10)] + [2.0])
    assert rates[505] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0, abs=1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.filterwarnings("ignore:invalid value|overflow")
def test_a_run_that_diverges_says_so(recording: Recording) -> None:
    run = trainer(recording, replace(TRAINING, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=r"^step \d+: losses are \[nan"):
        run.run(report_every=5)


def test_the_fastest_precision_is_measured() -> None:
    assert fastest_precision(torch.device("cpu")) in (torch.bfloat16, torch.float32)
