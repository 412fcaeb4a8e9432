"""A run writes a model folder, and the same call continues it."""

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lewm_client import Recorder
from lewm_models import checkpoint
from lewm_models.calibration import calibrate
from lewm_models.calibration.reference import sha256_of
from lewm_models.config import PRESETS
from lewm_models.distance.loop import TrainingReport
from lewm_models.distance.run import MIN_RANK_CORRELATION
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.loss import Losses
from lewm_models.probe import fit
from lewm_models.probe.network import StateSpace
from lewm_models.recordings.recording import RecordingError, open_recording
from lewm_models.recordings.summary import summarise
from lewm_models.training import run, settings, trainer
from lewm_models.training.prepared import PreparedData
from lewm_models.training.run import TrainingRun, check_output, read_log, train
from lewm_models.training.settings import Choices, environment_run, recording_run
from lewm_models.training.trainer import TrainingMetrics
from lewm_models.training.windows import Batch
from tests.lewm_models.training.short_run import CONFIG, TRAINING
from tests.lewm_models.training.sources import write_robot

EDGE_IMAGE_SIZE = PRESETS["edge"].image_size
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the preset `edge` a small model and a short run."""
    monkeypatch.setitem(PRESETS, "edge", CONFIG)
    short = replace(TRAINING, steps=4, batch=16)
    monkeypatch.setattr(settings, "PRESET_TRAINING", {"edge": short})
    short_distance = DistanceTraining(steps=4, width=8, batch=16)
    monkeypatch.setattr(settings, "DISTANCE_TRAINING", short_distance)
    monkeypatch.setattr(settings, "FINE_TUNING", short)
    monkeypatch.setattr(trainer, "fastest_precision", lambda device: torch.float32)


def short_run(episodes: int = 4, **choices: Any) -> TrainingRun:
    return environment_run(
        "two-room", Choices(**choices), name="small", episodes=episodes, episode_steps=30
    )


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of another robot: three joints, frames of 96 × 64."""
    return write_robot(tmp_path_factory.mktemp("recording") / "robot.h5")


def robot_run(robot: Path, **choices: Any) -> TrainingRun:
    with open_recording(robot) as recording:
        return recording_run(recording, Choices(**choices), name="robot")


def test_a_run_writes_a_model_folder(tmp_path: Path) -> None:
    reports: list[TrainingMetrics] = []
    folder = train(short_run(), tmp_path, device=CPU, on_metrics=reports.append)
    assert folder == tmp_path / "model"
    loaded = checkpoint.load(folder)
    assert [line.step for line in reports] == [4]
    card = loaded.card
    assert (card.name, card.config) == ("small", CONFIG)

    data = PreparedData.open(tmp_path / "data")
    mean, std = data.action_statistics()
    assert card.action_mean == tuple(mean)
    assert card.action_std == tuple(std)
    assert (card.action_low, card.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert (card.action_rate_limit, card.crop) == (None, None)
    assert card.controllers == ("waypoint",)
    assert (card.solver.name, card.solver.samples, card.solver.iterations) == ("icem", 48, 2)

    # The only held-out episode has too few frames for a calibration.
    assert (card.calibration, loaded.reference) == (None, None)
    assert loaded.frames is not None
    held_out = np.array(data.rows(2))
    assert torch.equal(
        loaded.frames, torch.from_numpy(data.frames.read(held_out[[0, 7, 15, 22, 30]]))
    )
    assert card.provenance["trained_on"] == "two-room"
    assert card.provenance["recording"]["episodes"] == 4
    assert card.provenance["command"] == (
        "lewm train --env two-room --episodes 4 --episode-steps 30 --steps 4 --seed 0"
    )


def test_a_recording_of_another_robot_becomes_a_model(robot: Path, tmp_path: Path) -> None:
    run_of_robot = robot_run(robot, crop="pad", action_rate_limit="auto", image_size=32)
    folder = train(run_of_robot, tmp_path, device=CPU)
    loaded = checkpoint.load(folder)
    card, config = loaded.card, loaded.card.config
    assert (config.action_dim, config.action_block, config.history) == (3, 5, 3)
    assert config.action_smoothed == config.block_width == 15
    assert (card.name, card.crop, card.controllers) == ("robot", "pad", ())

    data = PreparedData.open(tmp_path / "data")
    actions = np.asarray(data.actions, np.float64)
    known = actions[~np.isnan(actions).any(axis=1)]
    assert card.action_mean == pytest.approx(known.mean(axis=0))
    assert card.action_std == pytest.approx(known.std(axis=0))
    low, high = np.quantile(known, (0.001, 0.999), axis=0)
    assert card.action_low == pytest.approx(low)
    assert card.action_high == pytest.approx(high)
    assert card.action_rate_limit is not None
    changes = np.abs(np.diff(actions, axis=0))
    usual = np.quantile(changes[~np.isnan(changes).any(axis=1)], 0.995, axis=0)
    assert card.action_rate_limit == pytest.approx(np.minimum(usual, high - low))

    assert card.provenance["trained_on"] == "robot.h5"
    assert card.provenance["recording"]["format"] == "HDF5"
    assert card.provenance["recording"]["usable_steps"] == 368
    assert card.provenance["command"] == (
        "lewm train --data robot.h5 --image-size 32 --crop pad --action-rate-limit auto "
        "--steps 4 --seed 0"
    )


def test_the_proposals_of_inspect_are_the_defaults(robot: Path) -> None:
    run_of_robot = robot_run(robot)
    config = run_of_robot.config
    assert (config.action_block, config.history, config.image_size) == (5, 3, 32)
    assert (run_of_robot.crop, run_of_robot.action_rate_limit) == ("center", None)
    assert robot_run(robot, action_block=2).config.action_block == 2
    assert robot_run(robot, action_rate_limit="1,0.5,.25").action_rate_limit == (1, 0.5, 0.25)


def test_inspect_proposes_the_image_size_of_the_default_preset(robot: Path) -> None:
    with open_recording(robot) as recording:
        proposals = summarise(recording).proposals
    assert proposals is not None
    assert proposals.image_size == EDGE_IMAGE_SIZE


def test_more_than_two_action_values_are_searched_longer(robot: Path) -> None:
    solver = robot_run(robot).solver
    assert (solver.name, solver.samples, solver.iterations) == ("icem", 96, 6)


def test_what_the_recording_lacks_is_said_before_training(robot: Path) -> None:
    few_steps, few_frames = robot_run(robot).warnings
    assert few_steps.startswith("Only 368 steps can be used; a first try needs some 20,000")
    assert "Too few frames are held out to calibrate the model: " in few_frames
    assert "of 1,000" in few_frames


def test_the_card_describes_the_recording(tmp_path: Path, robot: Path) -> None:
    frames, joints = np.zeros((40, 8, 8, 3), np.uint8), ["a", "b", "c"]
    with Recorder(tmp_path / "arm", rate_hz=1 / 0.1000000000001, action_labels=joints) as recorder:
        for step in range(80):
            recorder.add(frames[0], [step % 7, 0.0, 1.0], time_s=step / 10)
            if step == 39:
                recorder.end_episode()
    recording = robot_run(tmp_path / "arm").provenance["recording"]
    assert recording["action_labels"] == joints
    assert recording["frame"] == {"height": 8, "width": 8}
    assert recording["rate_hz"] == 10
    assert "action_labels" not in robot_run(robot).provenance["recording"]


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output: .* holds no training run: notes.txt; give a"):
        check_output(tmp_path)
    (tmp_path / "notes.txt").unlink()
    check_output(tmp_path)
    check_output(tmp_path / "new")
    train(short_run(), tmp_path, device=CPU)
    (tmp_path / "notes.txt").write_text("mine")
    check_output(tmp_path)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal's programs have it; programs in the background may inherit none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_completes_and_saves_the_step(tmp_path: Path) -> None:
    messages: list[str] = []

    def press(done: int, total: int) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(short_run(), tmp_path, device=CPU, on_step=press, on_message=messages.append)
    assert "training 4 steps, with a report every 250" in messages
    assert messages[-1] == "stopped at step 2 of 4; the same command continues"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(short_run(), tmp_path, device=CPU, on_message=messages.append)
    assert "continues at step 2 of 4; prepared frames are reused" in messages
    assert [line.step for line in read_log(tmp_path)] == [4]


def test_a_dimension_that_never_changes_is_not_magnified(tmp_path: Path, robot: Path) -> None:
    constant = tmp_path / "constant.h5"
    constant.write_bytes(robot.read_bytes())
    with h5py.File(constant, "r+") as file:
        actions = file["action"][:]
        actions[:, 1] = 0.7
        file["action"][:] = actions
    card = checkpoint.load(train(robot_run(constant), tmp_path, device=CPU)).card
    width = card.action_high[1] - card.action_low[1]
    assert card.action_low[1] < 0.7 < card.action_high[1]
    assert card.action_std[1] == pytest.approx(width)


def test_a_faulty_action_does_not_decide_over_the_statistics(tmp_path: Path) -> None:
    right, faulty = (
        write_robot(tmp_path / name, steps=[60] * 40, height=16, width=24)
        for name in ("right.h5", "faulty.h5")
    )
    with h5py.File(faulty, "r+") as file:
        file["action"][100] = [1e6, -1e6, 1e6]
    card, expected = (
        checkpoint.load(train(robot_run(path), tmp_path / path.stem, device=CPU)).card
        for path in (faulty, right)
    )
    assert card.action_std == pytest.approx(expected.action_std, rel=0.1)
    assert card.action_low == pytest.approx(expected.action_low, rel=0.1)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"preset": "huge"}, r"--preset: expected one of .*edge.*, got 'huge'"),
        ({"image_size": 50}, "--image-size: expected a multiple of 8 .* such as 48, got 50"),
        ({"action_rate_limit": "1,2"}, "--action-rate-limit: expected auto, none, or 3 numbers"),
        ({"action_rate_limit": "1,2,0"}, "--action-rate-limit: .* got '1,2,0'"),
        ({"action_rate_limit": "fast"}, "--action-rate-limit: .* got 'fast'"),
        ({"action_block": 40}, "no episode can be used: .* needs 121 steps in a row"),
    ],
)
def test_an_impossible_choice_is_named(
    robot: Path, choices: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        robot_run(robot, **choices)


def test_a_single_episode_is_refused(tmp_path: Path) -> None:
    path = write_robot(tmp_path / "one.h5", steps=[60, 10])
    with pytest.raises(RecordingError, match=r"one.h5: only one episode can be used"):
        robot_run(path)


def test_fewer_samples_than_a_batch_are_one_batch(tmp_path: Path) -> None:
    path = write_robot(tmp_path / "few.h5", steps=[20, 21])
    card = checkpoint.load(train(robot_run(path), tmp_path / "run", device=CPU)).card
    assert card.provenance["training"]["batch"] == 12


def test_a_trained_model_is_carried_on(robot: Path, tmp_path: Path) -> None:
    """Its statistics, bounds and crop stay: its weights belong to them."""
    first = train(robot_run(robot, crop="stretch"), tmp_path / "first", device=CPU)
    before = checkpoint.load(first)
    more = write_robot(tmp_path / "more.h5", seed=1)
    carried_on = robot_run(more, initial=first, steps=1)
    assert carried_on.crop == "stretch"
    assert carried_on.training.learning_rate == settings.FINE_TUNING.learning_rate
    faster = robot_run(more, initial=first, learning_rate=4e-4)
    assert faster.training.learning_rate == 4e-4
    after = checkpoint.load(train(carried_on, tmp_path / "second", device=CPU))
    for name in ("config", "action_mean", "action_std", "action_low", "action_high", "crop"):
        assert getattr(after.card, name) == getattr(before.card, name)
    assert after.card.provenance["from"]["version"] == before.version
    # One step at a small rate changes the weights a little.
    differences = [
        float((value - before.model.state_dict()[name]).abs().max())
        for name, value in after.model.state_dict().items()
        if value.ndim > 1
    ]
    assert 0 < max(differences) < 0.05

    with pytest.raises(ValueError, match=r"was written by a run from .*; give another --output"):
        train(robot_run(more, steps=1, crop="stretch"), tmp_path / "second", device=CPU)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"preset": "edge"}, "--preset: --from takes the architecture of small"),
        ({"action_block": 4}, r"--action-block: small \(--from\) has 5, got 4"),
        ({"image_size": 64}, r"--image-size: small \(--from\) has 32, got 64"),
        ({}, "--from: actions of small have 2 values, those of .*robot.h5: action have 3"),
    ],
)
def test_what_does_not_fit_the_trained_model_is_named(
    robot: Path, tmp_path: Path, choices: dict[str, object], message: str
) -> None:
    folder = train(short_run(), tmp_path, device=CPU)
    with pytest.raises(ValueError, match=message):
        robot_run(robot, initial=folder, **choices)


def test_a_trained_model_without_a_crop_asks_for_one(robot: Path, tmp_path: Path) -> None:
    folder = train(robot_run(robot, crop="pad"), tmp_path, device=CPU)
    with pytest.raises(ValueError, match=r"--crop: robot \(--from\) has pad, got center"):
        robot_run(robot, initial=folder, crop="center")
    loaded = checkpoint.load(folder)
    checkpoint.write_card(folder, replace(loaded.card, crop=None))
    with pytest.raises(
        ValueError, match=r"--crop: frames of pixels are 96 x 64 and robot .*choose"
    ):
        robot_run(robot, initial=folder)
    assert robot_run(robot, initial=folder, crop="center").crop == "center"


def test_a_model_is_calibrated_on_the_held_out_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "MIN_CALIBRATION_FRAMES", 31)
    monkeypatch.setattr(run, "MIN_CALIBRATION_FRAMES", 31)
    loaded = checkpoint.load(train(short_run(), tmp_path, device=CPU))
    data = PreparedData.open(tmp_path / "data")
    frames = torch.from_numpy(data.frames.read(np.array(data.rows(2))))
    with torch.inference_mode():
        norms = loaded.model.encode(frames).norm(dim=-1)
    calibration = loaded.card.calibration
    assert calibration is not None
    assert calibration.frames == 31
    assert calibration.norm_mean == pytest.approx(float(norms.mean()), rel=1e-4)
    assert calibration.norm_std == pytest.approx(float(norms.std()), rel=1e-3)
    assert loaded.reference is not None


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = checkpoint.load(train(short_run(), tmp_path, device=CPU))
    calls: list[object] = []
    again = checkpoint.load(
        train(
            short_run(),
            tmp_path,
            device=CPU,
            on_progress=lambda done, total: calls.append(done),
            on_metrics=calls.append,
        )
    )
    assert calls == []
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_the_log_has_one_line_per_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[TrainingMetrics] = []
    monkeypatch.setattr(run, "REPORT_EVERY", 2)
    train(short_run(steps=5), tmp_path, device=CPU, on_metrics=reports.append)
    assert [line.step for line in reports] == [2, 4, 5]
    assert read_log(tmp_path) == reports
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines[0]["prediction_to_copy"] == reports[0].prediction_to_copy


def test_an_interrupted_run_has_each_report_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report at step 4 is written, but not the checkpoint that follows it."""
    monkeypatch.setattr(run, "REPORT_EVERY", 2)

    def interrupt(metrics: TrainingMetrics) -> None:
        if metrics.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(short_run(steps=6), tmp_path, device=CPU, on_metrics=interrupt)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "pred')  # a kill in the middle of a line
    train(short_run(steps=6), tmp_path, device=CPU)
    assert [line.step for line in read_log(tmp_path)] == [2, 4, 6]


def test_measured_results_are_kept_only_for_the_same_weights(tmp_path: Path) -> None:
    folder = train(short_run(), tmp_path, device=CPU)
    card = checkpoint.load(folder).card.with_figures(paper={"success_rate": 0.9})
    checkpoint.write_card(folder, card)
    train(short_run(), tmp_path, device=CPU)
    assert checkpoint.load(folder).card.figures == card.figures

    other = checkpoint.load(folder)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    checkpoint.save(folder, other.model, card)
    train(short_run(), tmp_path, device=CPU)
    assert checkpoint.load(folder).card.figures == {}


@pytest.mark.parametrize("change", [{"seed": 1}, {"episodes": 5}, {"steps": 5}])
def test_another_run_in_the_same_folder_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    train(short_run(), tmp_path, device=CPU)
    with pytest.raises(ValueError, match=r"holds data of|was written by a run with"):
        train(short_run(**change), tmp_path, device=CPU)


def test_the_distance_is_trained_after_the_model(tmp_path: Path) -> None:
    reports: list[TrainingReport] = []
    folder = train(short_run(episodes=30), tmp_path, device=CPU, on_distance=reports.append)
    assert [report.part for report in reports] == ["distance", "proposal"]
    loaded = checkpoint.load(folder)
    card = loaded.card
    assert card.distance is not None
    assert loaded.distance is not None
    assert card.distance.network == sha256_of(loaded.distance.to_bytes())
    ranks_well = card.distance.rank_correlation >= MIN_RANK_CORRELATION
    assert card.solver.objective == ("distance" if ranks_well else None)
    assert card.provenance["distance"]["steps"] == 4


def test_few_frames_and_no_steps_give_no_distance(tmp_path: Path) -> None:
    said: list[str] = []
    folder = train(short_run(episodes=4), tmp_path / "few", device=CPU, on_message=said.append)
    assert checkpoint.load(folder).card.distance is None
    assert any("no distance: the training episodes have" in line for line in said)
    run = short_run(episodes=30, distance_steps=0)
    assert run.distance is None
    assert "--distance-steps 0" in run.provenance["command"]


@pytest.fixture
def _quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = fit.ProbeTraining(steps=4, width=8, batch=16)
    monkeypatch.setattr(fit, "ProbeTraining", lambda: quick)


@pytest.mark.usefixtures("_quick_probe")
def test_a_probe_of_the_states_is_fitted(tmp_path: Path) -> None:
    folder = train(short_run(episodes=10, distance_steps=0), tmp_path, device=CPU)
    loaded = checkpoint.load(folder)
    card = loaded.card.probe
    assert card is not None
    assert loaded.probe is not None
    assert card.network == sha256_of(loaded.probe.to_bytes())
    assert (card.states, card.periods) == (("x", "y"), (0, 0))
    assert (card.training_frames, card.held_out_frames) == (9 * 31, 31)
    states = PreparedData.open(tmp_path / "data").states
    assert states is not None
    assert loaded.probe.state_mean.numpy() == pytest.approx(states.mean(axis=0), rel=0.1)


def write_arm(folder: Path, names: Sequence[str] = ("shoulder", "elbow")) -> Path:
    """A recording with named states."""
    frame = np.zeros((32, 32, 3), np.uint8)
    with Recorder(folder, rate_hz=10, state_labels=names) as recorder:
        for step in range(300):
            action, state = [step % 7], [step % 5, step % 9]
            recorder.add(frame + step % 250, action, state=state, time_s=step / 10)
            if step % 60 == 59:
                recorder.end_episode()
    return folder


@pytest.mark.usefixtures("_quick_probe")
def test_states_of_a_recording_have_its_names(tmp_path: Path) -> None:
    run = robot_run(write_arm(tmp_path / "arm"), distance_steps=0)
    assert run.states == StateSpace(("shoulder", "elbow"), (0, 0))
    card = checkpoint.load(train(run, tmp_path / "run", device=CPU)).card
    assert card.probe is not None
    assert card.probe.states == ("shoulder", "elbow")


@pytest.mark.usefixtures("_quick_probe")
def test_a_model_may_take_the_states_of_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = write_arm(tmp_path / "arm")
    run = robot_run(arm, distance_steps=0, state_input=True)
    trained_on: list[torch.Tensor | None] = []
    losses = trainer.Trainer.losses

    def record(self: trainer.Trainer, batch: Batch, step: int) -> Losses:
        trained_on.append(batch.states)
        return losses(self, batch, step)

    monkeypatch.setattr(trainer.Trainer, "losses", record)
    folder = train(run, tmp_path / "run", device=CPU)
    assert [None if shown is None else shown.shape for shown in trained_on] == [(16, 4, 2)] * 4
    loaded = checkpoint.load(folder)
    given = loaded.card.config.state_input
    assert given is not None
    assert given.names == ("shoulder", "elbow")
    states = PreparedData.open(tmp_path / "run/data").states
    assert states is not None
    assert given.mean == pytest.approx(states.mean(axis=0))
    assert given.std == pytest.approx(states.std(axis=0))
    assert loaded.card.provenance["command"].endswith("--seed 0 --state-input")
    # A run from it goes on with its states, and the same call continues the run.
    assert train(run, tmp_path / "run", device=CPU) == folder
    more = robot_run(arm, initial=folder, steps=1, distance_steps=0)
    assert more.state_input
    carried_on = checkpoint.load(train(more, tmp_path / "more", device=CPU))
    assert carried_on.card.config.state_input == given
    other = write_arm(tmp_path / "other", names=("shoulder", "wrist"))
    with pytest.raises(ValueError, match="--from: robot takes the states shoulder, elbow, got sho"):
        robot_run(other, initial=folder)


def test_a_state_that_never_changes_is_not_magnified(tmp_path: Path) -> None:
    run_of_rooms = short_run(state_input=True)
    data = run_of_rooms.source.prepare(tmp_path, lambda done, total: None, lambda line: None)
    assert data.states is not None
    still = replace(data, states=np.full_like(data.states, 1e6))
    given = run._with_state_statistics(run_of_rooms, still).config.state_input
    assert given is not None
    assert (given.mean, given.std) == ((1e6, 1e6), (1.0, 1.0))


@pytest.mark.usefixtures("_quick_probe")
def test_states_that_a_model_cannot_take_are_named(tmp_path: Path, robot: Path) -> None:
    with pytest.raises(ValueError, match=r"--state-input: .*robot\.h5 has no column of states"):
        robot_run(robot, state_input=True)
    folder = train(short_run(distance_steps=0), tmp_path, device=CPU)
    with pytest.raises(ValueError, match=r"--state-input: small \(--from\) sees pixels only"):
        short_run(initial=folder, state_input=True)


@pytest.mark.usefixtures("_quick_probe")
def test_a_model_that_takes_states_is_calibrated_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "MIN_CALIBRATION_FRAMES", 31)
    monkeypatch.setattr(run, "MIN_CALIBRATION_FRAMES", 31)
    folder = train(short_run(state_input=True, distance_steps=0), tmp_path, device=CPU)
    loaded = checkpoint.load(folder)
    data = PreparedData.open(tmp_path / "data")
    rows = np.array(data.rows(2))
    assert data.states is not None
    with torch.inference_mode():
        frames = torch.from_numpy(data.frames.read(rows))
        norms = loaded.model.encode(frames, torch.from_numpy(data.states[rows])).norm(dim=-1)
    assert loaded.card.calibration is not None
    assert loaded.card.calibration.norm_mean == pytest.approx(float(norms.mean()), rel=1e-4)


def test_too_few_states_give_no_probe(tmp_path: Path, robot: Path) -> None:
    said: list[str] = []
    folder = train(short_run(), tmp_path, device=CPU, on_message=said.append)
    assert checkpoint.load(folder).card.probe is None
    assert "no probe: the training episodes have 93 frames with states, a probe needs 200" in said
    assert robot_run(robot).states is None
