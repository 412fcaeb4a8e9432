"""Recordings are made again bit for bit, cover the task, and are cut into exact windows."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_models.environments import two_room
from lewm_models.preprocessing import resize
from lewm_models.training.collection import collect
from lewm_models.training.recording import Recording, RecordingSpec, Windows, batch_order, split

SMALL = RecordingSpec("two-room", episodes=3, steps=20, image_size=16, seed=7)
FILES = ("recording.json", "states.npy", "actions.npy", "frames.npy")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def counted(episodes: int = 2, steps: int = 30, size: int = 2) -> Recording:
    """A recording whose frames and actions say where they stand: episode · 100 + step."""
    here = 100 * np.arange(episodes)[:, None] + np.arange(steps + 1)
    frames = np.broadcast_to(here[..., None, None, None], (*here.shape, size, size, 3))
    actions = np.stack([here[:, :-1], here[:, :-1] + 0.5], axis=-1).astype(np.float32)
    spec = RecordingSpec("counted", episodes, steps, size, seed=0)
    states = np.zeros((*here.shape, 2), np.float32)
    return Recording(spec, states, actions, np.ascontiguousarray(frames, dtype=np.uint8))


def windows(recording: Recording, history: int = 3, block: int = 5) -> Windows:
    mean, std = np.zeros(2), np.ones(2)
    return Windows(recording, range(recording.spec.episodes), history, block, mean, std)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "again"):
        collect(tmp_path / name, SMALL)
    collect(tmp_path / "other", replace(SMALL, seed=8))
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    for mine, other in zip(contents(tmp_path / "first"), contents(tmp_path / "other"), strict=True):
        assert mine != other


def test_a_finished_recording_is_opened_again(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    collect(tmp_path, SMALL, lambda done, total: progress.append((done, total)))
    assert progress == [(1, 3), (2, 3), (3, 3)]
    collect(tmp_path, SMALL, lambda done, total: progress.append((done, total)))
    assert len(progress) == 3
    with pytest.raises(ValueError, match="holds a recording of"):
        collect(tmp_path, replace(SMALL, episodes=4))


def test_a_collection_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    collect(tmp_path, SMALL)
    whole = contents(tmp_path)
    (tmp_path / "recording.json").unlink()
    (tmp_path / "frames.npy").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        Recording.open(tmp_path)
    collect(tmp_path, SMALL)
    assert contents(tmp_path) == whole


def test_an_unknown_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env: expected one of \['two-room'\], got 'chess'"):
        collect(tmp_path, replace(SMALL, environment="chess"))


def test_states_actions_and_frames_belong_together(recording: Recording) -> None:
    states, actions = torch.tensor(recording.states), torch.tensor(recording.actions)
    moved = two_room.move(states[:, :-1].flatten(0, 1), actions.flatten(0, 1))
    assert torch.equal(moved, states[:, 1:].flatten(0, 1))
    for episode in (0, 31):
        frames = resize(two_room.render(states[episode]), recording.spec.image_size)
        assert torch.equal(torch.tensor(recording.frames[episode]), frames)


def test_trajectories_cover_both_rooms_and_the_door(recording: Recording) -> None:
    x, y = recording.states[..., 0], recording.states[..., 1]
    left = x < two_room.WALL_X
    in_both = left.any(axis=1) & ~left.all(axis=1)
    # With one goal an episode it would be six in ten.
    assert in_both.mean() > 0.7
    assert 0.25 < left.mean() < 0.75
    in_door = (np.abs(x - two_room.WALL_X) < 12) & (np.abs(y - two_room.DOOR_Y) < 16)
    assert in_door.any(axis=1).mean() > 0.5
    directions = np.diff(left.astype(int), axis=1)
    assert (directions == 1).any()
    assert (directions == -1).any()


def test_a_window_is_frames_and_the_blocks_between_them() -> None:
    recording = counted()
    data = windows(recording)
    assert len(data) == 2 * (30 - 15 + 1)
    indices = np.array([0, 3, len(data) - 1])
    frames, blocks = data.batch(indices)
    assert frames.shape == (3, 4, 2, 2, 3)
    assert blocks.shape == (3, 3, 10)
    for first, frame, block in zip((0, 3, 115), frames, blocks, strict=True):
        assert frame[:, 0, 0, 0].tolist() == [first, first + 5, first + 10, first + 15]
        steps = first + torch.arange(15).view(3, 5)
        # Time-major: all dimensions of one step, then all of the next.
        assert torch.equal(block.view(3, 5, 2)[..., 0], steps.float())
        assert torch.equal(block.view(3, 5, 2)[..., 1], steps + 0.5)


def test_every_window_of_an_episode_is_there_once() -> None:
    data = windows(counted(episodes=2, steps=17))
    firsts = [int(frames[0, 0, 0, 0]) for frames in data.batch(np.arange(len(data)))[0]]
    assert firsts == [0, 1, 2, 100, 101, 102]


def test_actions_are_z_scored_and_missing_ones_become_zero() -> None:
    recording = counted(episodes=1, steps=15)
    recording.actions[0, 13:] = np.nan
    mean, std = recording.action_statistics()
    known = recording.actions[0, :13].astype(np.float64)
    np.testing.assert_allclose(mean, known.mean(axis=0))
    np.testing.assert_allclose(std, known.std(axis=0, ddof=0))
    _, blocks = Windows(recording, range(1), 3, 5, mean, std).batch(np.array([0]))
    steps = blocks.view(15, 2)
    np.testing.assert_allclose(steps[:13], (known - mean) / std, rtol=1e-5, atol=1e-6)
    assert not steps[13:].any()


def test_an_episode_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="steps: expected at least 15 a recorded episode, got 14"):
        windows(counted(steps=14))


def test_each_epoch_shows_each_sample_once_in_another_order() -> None:
    batches = list(islice(batch_order(10, 3, seed=1, first_step=0), 6))
    first, second = (np.concatenate(batches[part]) for part in (slice(0, 3), slice(3, 6)))
    assert len(set(first)) == len(set(second)) == 9
    assert first.tolist() != second.tolist()
    other = np.concatenate(list(islice(batch_order(10, 3, seed=2, first_step=0), 3)))
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("step", range(8))
def test_an_order_taken_up_later_goes_on_the_same(step: int) -> None:
    whole = list(islice(batch_order(10, 3, seed=1, first_step=0), 12))
    rest = islice(batch_order(10, 3, seed=1, first_step=step), 12 - step)
    assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[step:]]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match="batch: expected at most the 10 samples there are, got 11"
    ):
        next(batch_order(10, 11, seed=0, first_step=0))


def test_episodes_are_held_out_at_the_end() -> None:
    assert split(100) == (range(95), range(95, 100))
    assert split(2) == (range(1), range(1, 2))
    with pytest.raises(ValueError, match="episodes: expected more than 1, got 1"):
        split(1)
