"""Samples of recorded steps, from prepared data and from recordings."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lewm_models.recorded_sample import (
    PreparedPieces,
    RecordedSample,
    RecordingPieces,
    encode_sample,
    split_pieces,
)
from lewm_models.recordings.recording import open_recording
from lewm_models.recordings.usable import usable_episodes
from lewm_models.training.prepared import PreparedData
from lewm_models.training.windows import split_episodes
from tests.lewm_models.examples import STATE_INPUT, example_card, tiny_model
from tests.lewm_models.training.sources import prepare, two_room

MODEL = tiny_model()
CARD = replace(example_card(MODEL), action_mean=(0.5, -0.5), action_std=(2.0, 0.5), name="rooms")
BLOCK = CARD.config.action_block


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(two_room(episodes=5, steps=33, image_size=16), tmp_path_factory.mktemp("rooms"))


def sample(
    data: PreparedData, max_frames: int, numbers: tuple[int, ...] = (0, 2)
) -> RecordedSample:
    pieces = PreparedPieces(data, 16)
    return encode_sample(MODEL, CARD, pieces, np.array(numbers), max_frames=max_frames)


def test_frames_are_one_block_apart_and_blocks_belong_to_them(rooms: PreparedData) -> None:
    found = sample(rooms, max_frames=14)
    assert rooms.states is not None
    assert found.states is not None
    rows = np.concatenate([34 * piece + np.arange(0, 34, BLOCK) for piece in (0, 2)])
    assert len(found) == len(rows) == 14
    assert torch.allclose(
        found.latents, MODEL.encode(torch.from_numpy(rooms.read_frames(rows))), atol=1e-5
    )
    assert np.array_equal(found.states, rooms.states[rows])
    assert found.left.tolist() == [6, 5, 4, 3, 2, 1, 0] * 2
    assert found.before.tolist() == [0, 1, 2, 3, 4, 5, 6] * 2
    assert found.episodes.tolist() == [0] * 7 + [2] * 7
    taken = (rooms.actions[rows[8] : rows[8] + BLOCK] - np.array([0.5, -0.5])) / [2.0, 0.5]
    assert np.allclose(found.blocks[8].numpy(), taken.reshape(-1), atol=1e-6)
    assert not found.blocks[[6, 13]].any()
    assert found.rows_before(5).tolist() == [0, 1, 7, 8]
    following = found.blocks_from(found.rows_before(5), 5)
    assert torch.equal(following[2], found.blocks[7:12])


def test_a_model_that_takes_states_gets_those_of_the_frames(rooms: PreparedData) -> None:
    model = tiny_model(state_input=STATE_INPUT)
    pieces = PreparedPieces(rooms, 16)
    found = encode_sample(model, example_card(model), pieces, np.array([0, 2]), max_frames=1000)
    assert rooms.states is not None
    assert found.states is not None
    starts = np.flatnonzero(found.before == 0)
    rows = np.concatenate(  # of the sequences, which begin at different steps of two pieces
        [
            np.arange(34 * piece + first, 34 * piece + 34, BLOCK)
            for piece in (0, 2)
            for first in range(BLOCK)
        ]
    )
    assert len(starts) == 2 * BLOCK
    with torch.no_grad():
        expected = model.encode(
            torch.from_numpy(rooms.read_frames(rows)), torch.from_numpy(rooms.states[rows])
        )
    torch.testing.assert_close(found.latents, expected, atol=1e-5, rtol=1e-5)


def test_few_frames_give_sequences_that_begin_at_different_steps(rooms: PreparedData) -> None:
    found = sample(rooms, max_frames=1000)
    starts = np.flatnonzero(found.before == 0)
    assert len(starts) == 2 * BLOCK
    assert len(found) == 2 * 34
    assert rooms.states is not None
    assert found.states is not None
    assert np.array_equal(found.states[starts[:BLOCK]], rooms.states[:BLOCK])
    assert np.array_equal(found.states[starts[BLOCK:]], rooms.states[68 : 68 + BLOCK])


def test_many_frames_are_those_of_evenly_spaced_pieces(rooms: PreparedData) -> None:
    found = sample(rooms, max_frames=15, numbers=(0, 1, 2, 3, 4))
    assert sorted(set(found.episodes.tolist())) == [0, 4]
    assert len(found) == 14
    one = sample(rooms, max_frames=4, numbers=(0, 1, 2))
    assert len(one) == 4


def test_few_episodes_are_divided_into_units(rooms: PreparedData) -> None:
    found = sample(rooms, max_frames=1000)
    assert len(set(found.units.tolist())) >= 10
    assert not set(found.units[found.episodes == 0]) & set(found.units[found.episodes == 2])


def test_the_same_episodes_are_held_out_as_in_training(rooms: PreparedData) -> None:
    for found, expected in zip(
        split_pieces(PreparedPieces(rooms, 16)), split_episodes(rooms), strict=True
    ):
        assert np.array_equal(found, expected)


def test_a_recording_gives_what_prepared_data_give(rooms: PreparedData, tmp_path: Path) -> None:
    assert rooms.states is not None
    with h5py.File(tmp_path / "rooms.h5", "w") as file:
        file["pixels"] = rooms.read_frames(np.arange(5 * 34))
        file["action"], file["state"] = rooms.actions, rooms.states
        file["ep_len"], file["ep_offset"] = np.full(5, 34), np.arange(5) * 34
    with open_recording(tmp_path / "rooms.h5") as recording:
        contents = recording.contents
        usable = usable_episodes(recording, action="action", min_steps=16)
        pieces = RecordingPieces(
            recording=recording,
            camera=contents.cameras[0],
            action=contents.actions[0],
            state=contents.states[0],
            ranges=usable.ranges,
            image_size=16,
            crop=None,
        )
        found = encode_sample(MODEL, CARD, pieces, np.array([0, 2]), max_frames=40)
    expected = sample(rooms, max_frames=40)
    assert torch.equal(found.latents, expected.latents)
    assert torch.equal(found.blocks, expected.blocks)
    assert torch.equal(found.thumbnails, expected.thumbnails)
    assert found.states is not None
    assert expected.states is not None
    assert np.array_equal(found.states, expected.states)
    assert np.array_equal(found.units, expected.units)


def test_frames_that_are_not_there_are_refused(tmp_path: Path) -> None:
    source = replace(two_room(episodes=2, steps=30, image_size=16), frame_every=3)
    with pytest.raises(ValueError, match="action block of 5 is no multiple of 3, the steps from"):
        sample(prepare(source, tmp_path / "every-third"), 100, numbers=(0,))
    short = prepare(two_room(episodes=2, steps=4, image_size=16), tmp_path / "short")
    with pytest.raises(ValueError, match="steps: expected at least 6 in a row"):
        sample(short, 100, numbers=(0,))
