"""Windows hold the right frames and actions, and each epoch shows every window once."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_models.training.prepared import PreparedData
from lewm_models.training.windows import Windows, batch_order, split_episodes


def numbered(
    folder: Path,
    steps: Sequence[int] = (31, 31),
    episodes: Sequence[int] | None = None,
    frame_every: int = 1,
    with_states: bool = False,
) -> PreparedData:
    """Data whose frames, actions and states hold the number 100 · piece + step, modulo 256 in
    frames."""
    data = PreparedData.create(
        folder,
        {} if frame_every == 1 else {"frame_every": frame_every},
        steps=steps,
        episodes=range(len(steps)) if episodes is None else episodes,
        image_size=2,
        action_dim=2,
        state_dim=1 if with_states else None,
    )
    for piece, count in enumerate(steps):
        rows, numbers = data.rows(piece), 100 * piece + np.arange(count)
        if data.states is not None:
            data.states[rows.start : rows.stop, 0] = numbers
        data.actions[rows.start : rows.stop - 1] = numbers[:-1, None] + [0, 0.5]
        shown = numbers[::frame_every, None, None, None] % 256
        frames = np.broadcast_to(shown, (len(shown), 2, 2, 3)).astype(np.uint8)
        data.frames.write(data.frame_indices(piece).start, frames)
    data.finish(folder)
    return PreparedData.open(folder)


def windows_of(data: PreparedData, *, with_states: bool = False) -> Windows:
    """Windows of three blocks of five actions, without a change by z-scoring."""
    return Windows(
        data,
        np.arange(len(data.episodes)),
        history=3,
        action_block=5,
        mean=np.zeros(2),
        std=np.ones(2),
        with_states=with_states,
    )


def test_a_window_is_frames_and_the_blocks_between_them(tmp_path: Path) -> None:
    windows = windows_of(numbered(tmp_path))
    assert len(windows) == 2 * (30 - 15 + 1)
    frames, blocks, _ = windows.batch(np.array([0, 3, len(windows) - 1]))
    assert frames.shape == (3, 4, 2, 2, 3)
    assert blocks.shape == (3, 3, 10)
    for first, window, window_blocks in zip((0, 3, 115), frames, blocks, strict=True):
        assert window[:, 0, 0, 0].tolist() == [first, first + 5, first + 10, first + 15]
        steps = first + torch.arange(15).view(3, 5)
        # A block holds all dimensions of one action, then all of the next.
        assert torch.equal(window_blocks.view(3, 5, 2)[..., 0], steps.float())
        assert torch.equal(window_blocks.view(3, 5, 2)[..., 1], steps + 0.5)


def test_there_is_one_window_for_each_possible_start(tmp_path: Path) -> None:
    """No window reaches from one piece into the next, and a short piece has none."""
    windows = windows_of(numbered(tmp_path, steps=[18, 15, 16]))
    frames, _, _ = windows.batch(np.arange(len(windows)))
    assert frames[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 200]


@pytest.mark.parametrize("frame_every", [1, 5])
def test_states_are_those_of_the_frames(tmp_path: Path, frame_every: int) -> None:
    data = numbered(tmp_path, frame_every=frame_every, with_states=True)
    assert windows_of(data).batch(np.array([0])).states is None  # not asked for
    batch = windows_of(data, with_states=True).batch(np.array([0, 3]))
    assert batch.states is not None
    assert batch.states.shape == (2, 4, 1)
    assert torch.equal(batch.states[..., 0] % 256, batch.frames[..., 0, 0, 0].float())


def test_windows_start_only_where_there_are_frames(tmp_path: Path) -> None:
    """With one frame a block, windows are those of complete data that start at a frame."""
    steps = [18, 31, 15, 16, 26]
    complete = windows_of(numbered(tmp_path / "complete", steps))
    sparse = windows_of(numbered(tmp_path / "sparse", steps, frame_every=5))
    assert sparse.starts.tolist() == [0, 18, 23, 28, 33, 64, 80, 85, 90]
    same = np.flatnonzero(np.isin(complete.starts, sparse.starts))
    ours, expected = sparse.batch(np.arange(len(sparse))), complete.batch(same)
    assert torch.equal(ours.frames, expected.frames)
    assert torch.equal(ours.actions, expected.actions)
    with pytest.raises(ValueError, match="only one row in 5 has a frame"):
        sparse.data.read_frames(np.array([0, 17]))


def test_a_block_between_frames_is_refused(tmp_path: Path) -> None:
    data = numbered(tmp_path, frame_every=4)
    with pytest.raises(ValueError, match=r"action block: expected a multiple of 4, .* got 5"):
        windows_of(data)


def test_only_the_chosen_pieces_are_used(tmp_path: Path) -> None:
    data = numbered(tmp_path, steps=[18, 17, 17, 18])
    zero, one = np.zeros(2), np.ones(2)
    windows = Windows(data, np.array([0, 2]), history=3, action_block=5, mean=zero, std=one)
    frames, _, _ = windows.batch(np.arange(len(windows)))
    assert frames[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 200, 201]


def test_actions_are_z_scored_and_missing_ones_become_zero(tmp_path: Path) -> None:
    numbered(tmp_path, steps=[16])
    actions = np.load(tmp_path / "actions.npy")
    actions[13:] = np.nan
    np.save(tmp_path / "actions.npy", actions)
    data = PreparedData.open(tmp_path)
    mean, std = data.action_statistics()
    windows = Windows(data, np.array([0]), history=3, action_block=5, mean=mean, std=std)
    _, blocks, _ = windows.batch(np.array([0]))
    scored = blocks.view(15, 2)
    known = actions[:13].astype(np.float64)
    np.testing.assert_allclose(scored[:13], (known - mean) / std, rtol=1e-5, atol=1e-6)
    assert not scored[13:].any()


def test_episodes_shorter_than_a_window_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="steps: expected at least 16 in a row in some episode, got 15"
    ):
        windows_of(numbered(tmp_path, steps=[15, 12]))


def test_each_epoch_shows_each_sample_once_in_another_order() -> None:
    batches = list(islice(batch_order(10, 3, seed=1, first_step=0), 6))
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    assert len(set(first)) == len(set(second)) == 9
    assert first.tolist() != second.tolist()
    other_seed = np.concatenate(list(islice(batch_order(10, 3, seed=2, first_step=0), 3)))
    assert first.tolist() != other_seed.tolist()


@pytest.mark.parametrize("step", range(8))
def test_an_order_that_starts_later_continues_in_the_same_way(step: int) -> None:
    complete = list(islice(batch_order(10, 3, seed=1, first_step=0), 12))
    rest = islice(batch_order(10, 3, seed=1, first_step=step), 12 - step)
    assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in complete[step:]]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match="batch: expected at most the number of samples, 10, got 11"
    ):
        next(batch_order(10, 11, seed=0, first_step=0))


@pytest.mark.parametrize(
    ("episodes", "steps", "held_out"),
    [
        (2, 20, [0]),
        (40, 5, [10, 29]),  # too few for a calibration whatever is held out
        (80, 83, [2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57, 62, 67, 72, 77]),  # 1,328 steps
        (40, 200, [2, 7, 12, 17, 22, 27, 32, 37]),  # eight give 1,600 steps
        (100, 2000, [10, 30, 50, 69, 89]),
    ],
)
def test_held_out_episodes_are_spread_over_the_data(
    tmp_path: Path, episodes: int, steps: int, held_out: list[int]
) -> None:
    training, chosen = split_episodes(numbered(tmp_path, steps=[steps] * episodes))
    assert chosen.tolist() == held_out
    assert sorted([*training, *chosen]) == list(range(episodes))


def test_whole_episodes_are_held_out(tmp_path: Path) -> None:
    data = numbered(tmp_path, steps=[20] * 6, episodes=[3, 3, 3, 7, 9, 9])
    training, held_out = split_episodes(data)
    assert held_out.tolist() == [3]
    assert training.tolist() == [0, 1, 2, 4, 5]


def test_a_single_episode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="episodes: expected at least 2, one of them held out"):
        split_episodes(numbered(tmp_path, steps=[20, 20], episodes=[4, 4]))
