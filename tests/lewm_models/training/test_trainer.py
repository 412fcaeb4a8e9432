"""A short run learns, and an interrupted run ends exactly as one without interruption."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lewm_models.config import LeWMConfig, StateInput
from lewm_models.lewm import LeWM, Projector
from lewm_models.training import trainer as module
from lewm_models.training.prepared import PreparedData
from lewm_models.training.trainer import (
    Trainer,
    TrainingConfig,
    TrainingMetrics,
    fastest_precision,
    reestimate_batch_norm,
)
from lewm_models.training.windows import batch_order
from tests.lewm_models.training.short_run import CONFIG, SHORT_TRAINING, TRAINING, make_trainer

ROOT = Path(__file__).parents[3]


def train(trainer: Trainer, report_every: int) -> list[TrainingMetrics]:
    lines: list[TrainingMetrics] = []
    trainer.run(on_metrics=lines.append, report_every=report_every)
    return lines


def assert_same_weights(model: LeWM, other: LeWM) -> None:
    state = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_short_run_lowers_the_loss_and_does_not_collapse(data: PreparedData) -> None:
    first, *_, last = train(make_trainer(data), report_every=10)
    weight = TRAINING.sigreg_weight
    totals = [line.prediction + weight * line.sigreg for line in (first, last)]
    assert totals[1] < 0.7 * totals[0]
    assert last.sigreg < 0.7 * first.sigreg
    assert last.latent_std > 0.3
    assert last.collapse is None
    assert last.prediction_to_copy < 1
    assert last.cost_range > 1.1
    assert 2 < last.effective_rank <= CONFIG.latent_dim


def test_without_sigreg_the_latents_collapse(data: PreparedData) -> None:
    trainer = make_trainer(data, replace(TRAINING, sigreg_weight=0.0))
    *_, last = train(trainer, report_every=10)
    assert last.prediction < 1e-3
    assert last.latent_std < 0.01
    assert last.collapse is not None
    assert last.collapse.startswith("all frames have nearly the same latent")


def test_initial_weights_depend_on_the_seed_only(data: PreparedData) -> None:
    first, again = make_trainer(data), make_trainer(data)
    other = make_trainer(data, replace(TRAINING, seed=1))
    assert_same_weights(first.model, again.model)
    with pytest.raises(AssertionError):
        assert_same_weights(first.model, other.model)


def test_reports_do_not_change_the_weights(data: PreparedData) -> None:
    reported, unreported = make_trainer(data), make_trainer(data)
    reported.run(on_metrics=lambda metrics: None, report_every=1, until=6)
    unreported.run(until=6)
    assert_same_weights(reported.model, unreported.model)


def test_a_resumed_run_ends_as_one_without_interruption(data: PreparedData, tmp_path: Path) -> None:
    uninterrupted, stopped, resumed = (make_trainer(data) for _ in range(3))
    uninterrupted.run(until=12)
    stopped.run(tmp_path / "checkpoint.pt", until=5)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.step == 5
    assert resumed.seconds == stopped.seconds
    resumed.run(until=12)
    assert_same_weights(resumed.model, uninterrupted.model)


def test_an_action_head_adds_a_term_and_leaves_the_model_as_it_is(
    data: PreparedData, tmp_path: Path
) -> None:
    training = replace(TRAINING, action_head_weight=0.5)
    uninterrupted, stopped, resumed = (make_trainer(data, training) for _ in range(3))
    assert_same_weights(uninterrupted.model, make_trainer(data).model)  # at the first step
    batch = uninterrupted.windows.batch(np.arange(32))
    first, plain = (make_trainer(data, each).losses(batch, 0) for each in (training, TRAINING))
    assert first.prediction == plain.prediction
    assert 0.3 < first.total - plain.total < 1.0  # half the variance of z-scored actions
    uninterrupted.run(until=12)
    assert uninterrupted.model.state_dict().keys() == make_trainer(data).model.state_dict().keys()

    stopped.run(tmp_path / "checkpoint.pt", until=5)
    resumed.resume(tmp_path / "checkpoint.pt")
    resumed.run(until=12)
    assert_same_weights(resumed.model, uninterrupted.model)
    with pytest.raises(ValueError, match=r"action_head_weight 0\.5"):
        make_trainer(data).resume(tmp_path / "checkpoint.pt")


def with_states(data: PreparedData) -> LeWMConfig:
    """A model that takes the agent's position."""
    mean, std = data.state_statistics()
    given = StateInput(("x", "y"), tuple(mean.tolist()), tuple(std.tolist()))
    return replace(CONFIG, state_input=given)


def test_states_are_hidden_in_a_tenth_of_the_frames(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(data, config=with_states(data))
    seen: list[torch.Tensor] = []

    def encode(frames: torch.Tensor, states: torch.Tensor | None = None) -> torch.Tensor:
        assert states is not None
        seen.append(states)
        return LeWM.encode(made.model, frames, states)

    monkeypatch.setattr(made.model, "encode", encode)
    batch = made.windows.batch(np.arange(len(made.windows))[:1000])
    first, second, again = (made.losses(batch, step).total for step in (0, 1, 0))
    assert first == again
    assert first != second
    assert batch.states is not None
    recorded = batch.states.flatten(0, 1)
    for shown in seen:
        is_hidden = shown.isnan()
        assert torch.equal(is_hidden[:, 0], is_hidden[:, 1])
        share = is_hidden[:, 0].float().mean()
        assert abs(share - 0.1) < 4 * (0.09 / len(shown)) ** 0.5
        assert torch.equal(shown[~is_hidden], recorded[~is_hidden])
    assert not torch.equal(seen[0].isnan(), seen[1].isnan())


def test_a_run_with_states_is_resumed_and_uses_them(data: PreparedData, tmp_path: Path) -> None:
    config = with_states(data)
    uninterrupted, stopped, resumed = (make_trainer(data, config=config) for _ in range(3))
    uninterrupted.run(until=12)
    stopped.run(tmp_path / "checkpoint.pt", until=5)
    resumed.resume(tmp_path / "checkpoint.pt")
    resumed.run(until=12)
    assert_same_weights(resumed.model, uninterrupted.model)
    model, windows = resumed.model, resumed.windows
    reestimate_batch_norm(model, windows, batch=32, seed=0)
    batch = windows.batch(np.arange(64))
    assert batch.states is not None
    with torch.no_grad():
        shown = model.encode(batch.frames[:, 0], batch.states[:, 0])
        moved = model.encode(batch.frames[:, 0], batch.states[:, 1])
    assert (shown - moved).norm(dim=1).mean() > 0.01 * shown.norm(dim=1).mean()
    with pytest.raises(ValueError, match="state_input"):
        make_trainer(data).resume(tmp_path / "checkpoint.pt")


def test_settings_that_a_checkpoint_lacks_had_their_defaults(
    data: PreparedData, tmp_path: Path
) -> None:
    """It is one of an earlier version, which did not have these settings."""
    path = tmp_path / "checkpoint.pt"
    make_trainer(data).save(path)
    saved = torch.load(path, weights_only=True)
    del saved["config"]["action_head_weight"], saved["head"]
    del saved["architecture"]["pred_proj_norm"]
    torch.save(saved, path)
    make_trainer(data).resume(path)
    for training, config in (
        (replace(TRAINING, action_head_weight=0.5), CONFIG),
        (TRAINING, replace(CONFIG, pred_proj_norm="layernorm")),
    ):
        with pytest.raises(ValueError, match=r"action_head_weight|pred_proj_norm"):
            make_trainer(data, training, config).resume(path)


def test_a_killed_run_can_be_resumed(data: PreparedData, data_folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    module = "tests.lewm_models.training.short_run"
    command = [sys.executable, "-m", module, str(data_folder), str(checkpoint), "4"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdin is not None
        assert killed.stdout is not None
        assert killed.stdout.readline() == "4\n"
        killed.stdin.write("\n")
        killed.stdin.flush()
        # A checkpoint follows its report: at the second report the first checkpoint is complete.
        assert killed.stdout.readline() == "8\n"
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["resumed at 4", "8", "12"]

    uninterrupted, resumed = (make_trainer(data, SHORT_TRAINING) for _ in range(2))
    uninterrupted.run()
    resumed.resume(checkpoint)
    assert resumed.step == SHORT_TRAINING.steps
    assert_same_weights(resumed.model, uninterrupted.model)


def test_a_run_that_is_stopped_is_saved_after_its_step(data: PreparedData, tmp_path: Path) -> None:
    uninterrupted, stopped, resumed = (make_trainer(data) for _ in range(3))
    uninterrupted.run(until=5)
    steps: list[tuple[int, int]] = []
    stopped.run(
        tmp_path / "checkpoint.pt",
        on_step=lambda done, total: steps.append((done, total)),
        is_stopped=lambda: len(steps) > 3,
    )
    assert steps == [(0, 100), (1, 100), (2, 100), (3, 100)]
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.step == 3
    resumed.run(until=5)
    assert_same_weights(resumed.model, uninterrupted.model)


@pytest.mark.parametrize(
    ("training", "config", "difference"),
    [
        (replace(TRAINING, seed=1), CONFIG, "seed 0, this one has seed "),
        (
            replace(TRAINING, sigreg_weight=0.1),
            CONFIG,
            "sigreg_weight 0.09, this one has sigreg_weight ",
        ),
        (replace(TRAINING, steps=200), CONFIG, "steps 100, this one has steps "),
        (
            TRAINING,
            replace(CONFIG, encoder_heads=4),
            "encoder_heads 2, this one has encoder_heads ",
        ),
        (
            TRAINING,
            replace(CONFIG, predictor_depth=2),
            "predictor_depth 1, this one has predictor_depth ",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    data: PreparedData,
    tmp_path: Path,
    training: TrainingConfig,
    config: LeWMConfig,
    difference: str,
) -> None:
    make_trainer(data).save(tmp_path / "checkpoint.pt")
    advice = "another --output, or .* --from .*/model" if training.steps != 100 else "--output$"
    with pytest.raises(ValueError, match=f"was written by a run with {difference}.*{advice}"):
        make_trainer(data, training, config).resume(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("part", ["config", "step", "model", "optimizer"])
def test_a_checkpoint_without_a_part_is_refused(
    data: PreparedData, tmp_path: Path, part: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    make_trainer(data).save(path)
    saved = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in saved.items() if name != part}, path)
    with pytest.raises(ValueError, match=rf"checkpoint.pt: lacks {part}"):
        make_trainer(data).resume(path)


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_a_truncated_checkpoint_is_refused(data: PreparedData, tmp_path: Path, length: int) -> None:
    path = tmp_path / "checkpoint.pt"
    make_trainer(data).save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"checkpoint.pt: is not a complete checkpoint"):
        make_trainer(data).resume(path)


def test_an_older_checkpoint_can_be_resumed(data: PreparedData, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    make_trainer(data).save(path)
    saved = torch.load(path, weights_only=True)
    for newer_part in ("architecture", "precision", "seconds"):
        del saved[newer_part]
    torch.save(saved, path)
    make_trainer(data).resume(path)


def test_a_resumed_run_keeps_its_precision(data: PreparedData, tmp_path: Path) -> None:
    make_trainer(data, precision=torch.bfloat16).save(tmp_path / "checkpoint.pt")
    resumed = make_trainer(data, precision=torch.float32)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert resumed.precision == torch.bfloat16


def test_a_checkpoint_is_replaced_as_a_whole(data: PreparedData, tmp_path: Path) -> None:
    trainer = make_trainer(data)
    trainer.save(tmp_path / "checkpoint.pt")
    (tmp_path / "checkpoint.part").write_bytes(b"interrupted")
    make_trainer(data).resume(tmp_path / "checkpoint.pt")
    trainer.save(tmp_path / "checkpoint.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_the_learning_rate_warms_up_and_falls_to_zero(data: PreparedData) -> None:
    trainer = make_trainer(data, replace(TRAINING, steps=1000, learning_rate=2.0))
    rates = [trainer.learning_rate(step) for step in range(1000)]
    assert rates[:11] == pytest.approx([0.2 * (step + 1) for step in range(10)] + [2.0])
    assert rates[505] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0, abs=1e-5)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.filterwarnings("ignore:invalid value|overflow")
def test_a_loss_that_is_not_finite_ends_the_run(data: PreparedData) -> None:
    trainer = make_trainer(data, replace(TRAINING, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=r"^step \d+: losses are \[nan"):
        trainer.run(report_every=5)


def test_the_precision_is_one_that_a_cpu_has() -> None:
    assert fastest_precision(torch.device("cpu")) in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_bfloat16_on_a_cpu_trains_without_the_fused_attention(
    data: PreparedData, precision: torch.dtype
) -> None:
    # At edge size, the gradient of the fused attention in bfloat16 takes half of a step.
    trainer = make_trainer(data, precision=precision)
    with torch.profiler.profile() as profile:
        trainer.run(until=1)
    fused = [event.key for event in profile.key_averages() if "flash_attention" in event.key]
    assert bool(fused) == (precision == torch.float32)


@pytest.fixture
def _three_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_NORM_BATCHES", 3)


@pytest.mark.usefixtures("_three_batches")
def test_batch_norm_gets_the_average_statistics_of_training_batches(data: PreparedData) -> None:
    trainer = make_trainer(data)
    model, windows = trainer.model.eval(), trainer.windows
    assert isinstance(model.projector, Projector)
    order = batch_order(len(windows), 16, seed=0, first_step=0)
    means, variances = [], []
    with torch.no_grad():
        for _ in range(3):
            frames, _, _ = windows.batch(next(order))
            hidden = model.projector.net[0](model.features(frames.flatten(0, 1)))
            means.append(hidden.mean(0))
            variances.append(hidden.var(0))

    reestimate_batch_norm(model, windows, batch=16, seed=0)
    norm = model.projector.net[1]
    assert isinstance(norm, nn.BatchNorm1d)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert norm.momentum == 0.1
    assert not model.training
    assert not norm.training


@pytest.mark.usefixtures("_three_batches")
def test_reestimation_changes_statistics_but_no_weights(data: PreparedData) -> None:
    trainer, untouched = make_trainer(data), make_trainer(data)
    reestimate_batch_norm(trainer.model, trainer.windows, batch=16, seed=0)
    for parameter, original in zip(
        trainer.model.parameters(), untouched.model.parameters(), strict=True
    ):
        assert torch.equal(parameter, original)
    latents = torch.zeros(1, CONFIG.history, CONFIG.latent_dim)
    actions = torch.zeros(1, CONFIG.history, CONFIG.block_width)
    assert not torch.equal(
        trainer.model.predict(latents, actions), untouched.model.eval().predict(latents, actions)
    )
