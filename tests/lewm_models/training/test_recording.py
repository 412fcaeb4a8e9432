"""Recordings are reproducible, complete on disk, and cover the task."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_models.environments import two_room
from lewm_models.preprocessing import resize
from lewm_models.training.recording import Recording, RecordingSpec, collect

SMALL_SPEC = RecordingSpec("two-room", episodes=3, steps=20, image_size=16, seed=7)
FILES = ("recording.json", "states.npy", "actions.npy", "frames.npy")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "again"):
        collect(tmp_path / name, SMALL_SPEC)
    collect(tmp_path / "other", replace(SMALL_SPEC, seed=8))
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    for content, other in zip(
        contents(tmp_path / "first"), contents(tmp_path / "other"), strict=True
    ):
        assert content != other


def test_a_complete_recording_is_not_collected_again(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    collect(tmp_path, SMALL_SPEC, lambda done, total: progress.append((done, total)))
    assert progress == [(1, 3), (2, 3), (3, 3)]
    collect(tmp_path, SMALL_SPEC, lambda done, total: progress.append((done, total)))
    assert len(progress) == 3
    with pytest.raises(ValueError, match="holds a recording of"):
        collect(tmp_path, replace(SMALL_SPEC, episodes=4))


def test_an_interrupted_collection_is_started_again(tmp_path: Path) -> None:
    collect(tmp_path, SMALL_SPEC)
    complete = contents(tmp_path)
    (tmp_path / "recording.json").unlink()
    (tmp_path / "frames.npy").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        Recording.open(tmp_path)
    collect(tmp_path, SMALL_SPEC)
    assert contents(tmp_path) == complete


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recording.json", b"{"),
        ("recording.json", b'{"environment": "two-room"}'),
        ("frames.npy", b""),
        ("actions.npy", b"no array"),
    ],
)
def test_a_broken_recording_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    collect(tmp_path, SMALL_SPEC)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="holds a broken recording"):
        Recording.open(tmp_path)


def test_an_unknown_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env: expected one of \['two-room'\], got 'chess'"):
        collect(tmp_path, replace(SMALL_SPEC, environment="chess"))


def test_states_actions_and_frames_belong_together(recording: Recording) -> None:
    states, actions = torch.tensor(recording.states), torch.tensor(recording.actions)
    moved = two_room.move(states[:, :-1].flatten(0, 1), actions.flatten(0, 1))
    assert torch.equal(moved, states[:, 1:].flatten(0, 1))
    for episode in (0, 31):
        frames = resize(two_room.render(states[episode]), recording.spec.image_size)
        assert torch.equal(torch.tensor(recording.frames[episode]), frames)


def test_trajectories_cover_both_rooms_and_the_door(recording: Recording) -> None:
    x, y = recording.states[..., 0], recording.states[..., 1]
    is_left = x < two_room.WALL_X
    visits_both = is_left.any(axis=1) & ~is_left.all(axis=1)
    # With one goal per episode it would be 60 %.
    assert visits_both.mean() > 0.7
    assert 0.25 < is_left.mean() < 0.75
    in_door = (np.abs(x - two_room.WALL_X) < 12) & (np.abs(y - two_room.DOOR_Y) < 16)
    assert in_door.any(axis=1).mean() > 0.5
    crossings = np.diff(is_left.astype(int), axis=1)
    assert (crossings == 1).any()
    assert (crossings == -1).any()


def test_action_statistics_leave_missing_actions_out(recording: Recording) -> None:
    actions = np.array(recording.actions)
    actions[:, -3:] = np.nan
    mean, std = replace(recording, actions=actions).action_statistics()
    known = actions[:, :-3].reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(mean, known.mean(axis=0))
    np.testing.assert_allclose(std, known.std(axis=0, ddof=0))
