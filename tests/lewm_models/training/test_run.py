"""A run writes a model folder, and the same call continues it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_models import checkpoint
from lewm_models.calibration import calibrate
from lewm_models.config import PRESETS
from lewm_models.environments.two_room import render
from lewm_models.preprocessing import resize
from lewm_models.training import run, trainer
from lewm_models.training.recording import Recording
from lewm_models.training.run import TrainingRun, train
from lewm_models.training.trainer import TrainingMetrics
from tests.lewm_models.training.short_run import CONFIG, TRAINING

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the preset `edge` a small model and a short run."""
    monkeypatch.setitem(PRESETS, "edge", CONFIG)
    monkeypatch.setattr(run, "PRESET_TRAINING", {"edge": replace(TRAINING, steps=4, batch=16)})
    monkeypatch.setattr(trainer, "fastest_precision", lambda device: torch.float32)


def short_run(**changes: int) -> TrainingRun:
    settings = {"episodes": 4, "episode_steps": 30, **changes}
    return TrainingRun.from_preset("two-room", "edge", **settings)


def test_a_run_writes_a_model_folder(tmp_path: Path) -> None:
    reports: list[TrainingMetrics] = []
    folder = train(short_run(), tmp_path, name="small", device=CPU, on_metrics=reports.append)
    loaded = checkpoint.load(folder)
    assert [line.step for line in reports] == [4]
    card = loaded.card
    assert (card.name, card.config) == ("small", CONFIG)

    recording = Recording.open(tmp_path / "data")
    actions = recording.actions.reshape(-1, 2).astype(np.float64)
    assert card.action_mean == pytest.approx(actions.mean(axis=0))
    assert card.action_std == pytest.approx(actions.std(axis=0))
    assert (card.action_low, card.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert card.controllers == ("waypoint",)
    assert (card.solver.name, card.solver.samples, card.solver.iterations) == ("icem", 48, 2)

    # The only held-out episode has too few frames for a calibration.
    assert (card.calibration, loaded.reference) == (None, None)
    assert loaded.frames is not None
    frames = torch.tensor(recording.frames[3])
    assert torch.equal(loaded.frames, frames[[0, 7, 15, 22, 30]])

    assert card.provenance["command"] == (
        "lewm train --env two-room --preset edge --episodes 4 --episode-steps 30 --steps 4 --seed 0"
    )


def test_a_model_is_calibrated_on_the_held_out_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "MIN_CALIBRATION_FRAMES", 31)
    monkeypatch.setattr(run, "MIN_CALIBRATION_FRAMES", 31)
    loaded = checkpoint.load(train(short_run(), tmp_path, name="small", device=CPU))
    recording = Recording.open(tmp_path / "data")
    frames = resize(render(torch.tensor(recording.states[3])), CONFIG.image_size)
    with torch.inference_mode():
        norms = loaded.model.encode(frames).norm(dim=-1)
    calibration = loaded.card.calibration
    assert calibration is not None
    assert calibration.frames == 31
    assert calibration.norm_mean == pytest.approx(float(norms.mean()), rel=1e-4)
    assert calibration.norm_std == pytest.approx(float(norms.std()), rel=1e-3)
    assert loaded.reference is not None


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first = checkpoint.load(train(short_run(), tmp_path, name="small", device=CPU))
    collected: list[int] = []
    reports: list[TrainingMetrics] = []
    again = checkpoint.load(
        train(
            short_run(),
            tmp_path,
            name="small",
            device=CPU,
            on_episode=lambda done, total: collected.append(done),
            on_metrics=reports.append,
        )
    )
    assert (collected, reports) == ([], [])
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])


def test_measured_results_are_kept_only_for_the_same_weights(tmp_path: Path) -> None:
    folder = train(short_run(), tmp_path, name="small", device=CPU)
    card = checkpoint.load(folder).card.with_figures(paper={"success_rate": 0.9})
    checkpoint.write_card(folder, card)
    train(short_run(), tmp_path, name="small", device=CPU)
    assert checkpoint.load(folder).card.figures == card.figures

    other = checkpoint.load(folder)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    checkpoint.save(folder, other.model, card)
    train(short_run(), tmp_path, name="small", device=CPU)
    assert checkpoint.load(folder).card.figures == {}


@pytest.mark.parametrize("change", [{"seed": 1}, {"episodes": 5}, {"steps": 5}])
def test_another_run_in_the_same_folder_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    train(short_run(), tmp_path, name="small", device=CPU)
    with pytest.raises(ValueError, match=r"holds a recording of|was written by a run with"):
        train(short_run(**change), tmp_path, name="small", device=CPU)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"preset: expected one of .*'edge'.* got 'huge'"):
        TrainingRun.from_preset("two-room", "huge")
