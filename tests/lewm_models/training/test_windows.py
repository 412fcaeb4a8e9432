"""Windows hold the right frames and actions, and each epoch shows every window once."""

from itertools import islice

import numpy as np
import pytest
import torch

from lewm_models.training.recording import Recording, RecordingSpec
from lewm_models.training.windows import Windows, batch_order, split_episodes


def numbered_recording(episodes: int = 2, steps: int = 30, size: int = 2) -> Recording:
    """A recording whose frames and actions hold the number 100 · episode + step."""
    numbers = 100 * np.arange(episodes)[:, None] + np.arange(steps + 1)
    frames = np.broadcast_to(numbers[..., None, None, None], (*numbers.shape, size, size, 3))
    actions = np.stack([numbers[:, :-1], numbers[:, :-1] + 0.5], axis=-1).astype(np.float32)
    return Recording(
        spec=RecordingSpec("numbered", episodes, steps, image_size=size, seed=0),
        states=np.zeros((*numbers.shape, 2), np.float32),
        actions=actions,
        frames=np.ascontiguousarray(frames, dtype=np.uint8),
    )


def windows_of(recording: Recording) -> Windows:
    """Windows of three blocks of five actions, without a change by z-scoring."""
    return Windows(
        recording,
        range(recording.spec.episodes),
        history=3,
        action_block=5,
        mean=np.zeros(2),
        std=np.ones(2),
    )


def test_a_window_is_frames_and_the_blocks_between_them() -> None:
    windows = windows_of(numbered_recording())
    assert len(windows) == 2 * (30 - 15 + 1)
    frames, blocks = windows.batch(np.array([0, 3, len(windows) - 1]))
    assert frames.shape == (3, 4, 2, 2, 3)
    assert blocks.shape == (3, 3, 10)
    for first, window, window_blocks in zip((0, 3, 115), frames, blocks, strict=True):
        assert window[:, 0, 0, 0].tolist() == [first, first + 5, first + 10, first + 15]
        steps = first + torch.arange(15).view(3, 5)
        # A block holds all dimensions of one action, then all of the next.
        assert torch.equal(window_blocks.view(3, 5, 2)[..., 0], steps.float())
        assert torch.equal(window_blocks.view(3, 5, 2)[..., 1], steps + 0.5)


def test_there_is_one_window_for_each_possible_start() -> None:
    windows = windows_of(numbered_recording(episodes=2, steps=17))
    frames, _ = windows.batch(np.arange(len(windows)))
    assert frames[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]


def test_actions_are_z_scored_and_missing_ones_become_zero() -> None:
    recording = numbered_recording(episodes=1, steps=15)
    recording.actions[0, 13:] = np.nan
    mean, std = recording.action_statistics()
    windows = Windows(recording, range(1), history=3, action_block=5, mean=mean, std=std)
    _, blocks = windows.batch(np.array([0]))
    actions = blocks.view(15, 2)
    known = recording.actions[0, :13].astype(np.float64)
    np.testing.assert_allclose(actions[:13], (known - mean) / std, rtol=1e-5, atol=1e-6)
    assert not actions[13:].any()


def test_episodes_shorter_than_a_window_are_refused() -> None:
    with pytest.raises(
        ValueError, match="steps: expected at least 15 per recorded episode, got 14"
    ):
        windows_of(numbered_recording(steps=14))


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


def test_the_last_episodes_are_held_out() -> None:
    assert split_episodes(100) == (range(95), range(95, 100))
    assert split_episodes(2) == (range(1), range(1, 2))
    with pytest.raises(ValueError, match="episodes: expected more than 1, got 1"):
        split_episodes(1)
