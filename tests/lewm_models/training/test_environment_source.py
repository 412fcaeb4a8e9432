"""Episodes of environments whose frames take long: few frames, in parts, in several processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_models.environments.environment import SEED_COUNT
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.preprocessing import resize
from lewm_models.training import environment_source as module
from lewm_models.training.environment_source import EnvironmentSource
from lewm_models.training.prepared import PreparedData
from lewm_models.training.settings import Choices, environment_run
from tests.lewm_models.training.slow_rooms import STOP_FILE
from tests.lewm_models.training.sources import prepare

SLOW_ROOMS = "tests.lewm_models.training.slow_rooms:SlowRooms"
SOURCE = EnvironmentSource(
    environment=SLOW_ROOMS, episodes=20, steps=22, image_size=16, seed=3, frame_every=5
)
FILES = ("prepared.json", "states.npy", "actions.npy", "frames.npy", "offsets.npy", "episodes.npy")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def seed_of(part: int) -> int:
    return int(np.random.default_rng((3, part)).integers(SEED_COUNT))


def test_one_frame_a_block_and_all_states_and_actions(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    lines: list[str] = []
    data = SOURCE.prepare(tmp_path, lambda *counts: progress.append(counts), lines.append)
    assert progress == [(8, 20), (16, 20), (20, 20)]
    assert lines[0].startswith("preparing 100 frames of 16 × 16 pixels")
    assert (len(data.frames), len(data.actions), data.frame_every) == (100, 20 * 23, 5)
    assert data.states is not None
    episodes = [
        episode
        for part, count in enumerate((8, 8, 4))
        for episode in TWO_ROOM.record(count, 22, seed_of(part), frame_every=5)
    ]
    for piece, episode in enumerate(episodes):
        rows = data.rows(piece)
        assert np.array_equal(data.states[rows.start : rows.stop], episode.states)
        assert np.array_equal(data.actions[rows.start : rows.stop - 1], episode.actions)
        assert list(data.frame_rows(piece)) == [rows.start + step for step in (0, 5, 10, 15, 20)]
        expected = resize(torch.from_numpy(episode.frames), 16).numpy()
        assert np.array_equal(data.read_frames(np.array(data.frame_rows(piece))), expected)
    assert not (tmp_path / "preparing.json").exists()


def test_several_processes_record_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(SOURCE, tmp_path / "one")
    monkeypatch.setattr(module, "MIN_POOL_S", 0.0)
    prepare(SOURCE, tmp_path / "several")
    assert contents(tmp_path / "one") == contents(tmp_path / "several")


def test_an_interrupted_recording_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_PERIOD_S", 0.0)
    stop = tmp_path / "stop"
    stop.write_text(f"{seed_of(2)}")
    monkeypatch.setenv(STOP_FILE, str(stop))
    with pytest.raises(KeyboardInterrupt):
        prepare(SOURCE, tmp_path / "data")
    with pytest.raises(FileNotFoundError):
        PreparedData.open(tmp_path / "data")
    # The parts that are done are not recorded again.
    stop.write_text(f"{seed_of(0)} {seed_of(1)}")
    progress: list[int] = []
    SOURCE.prepare(tmp_path / "data", lambda done, total: progress.append(done), print)
    assert progress == [20]
    stop.unlink()
    prepare(SOURCE, tmp_path / "whole")
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_all_frames_are_told_apart_from_some(tmp_path: Path) -> None:
    prepare(SOURCE, tmp_path)
    with pytest.raises(ValueError, match=r"frame_every 5, and this run is of .*"):
        prepare(replace(SOURCE, frame_every=1), tmp_path)


def test_an_environment_that_records_too_little_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = list(TWO_ROOM.record(1, 20, 0))
    monkeypatch.setattr(type(TWO_ROOM), "record", lambda *arguments: iter(recorded))
    with pytest.raises(ValueError, match=r"episode 0: expected \(23, 22, 5\) states, .*21, 20, 21"):
        prepare(SOURCE, tmp_path)


@pytest.mark.parametrize(("environment", "frame_every"), [("two-room", 1), (SLOW_ROOMS, 10)])
def test_few_frames_are_recorded_only_where_they_take_long(
    environment: str, frame_every: int
) -> None:
    run = environment_run(
        environment, Choices(action_block=10), name="model", episodes=2, episode_steps=40
    )
    assert isinstance(run.source, EnvironmentSource)
    assert run.source.frame_every == frame_every
    assert "--frame-every" not in run.provenance["command"]


def test_the_steps_between_frames_can_be_chosen() -> None:
    run = environment_run(SLOW_ROOMS, Choices(), episodes=2, episode_steps=40, frame_every=1)
    assert isinstance(run.source, EnvironmentSource)
    assert (run.source.frame_every, run.name) == (1, "slow-rooms")
    assert "--frame-every 1" in run.provenance["command"]
    with pytest.raises(ValueError, match=r"--frame-every: expected a divisor of .*, 5, got 2"):
        environment_run("two-room", Choices(), episodes=2, episode_steps=40, frame_every=2)
