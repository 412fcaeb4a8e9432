"""From recorded frames to a distance on a model's card."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_models import checkpoint
from lewm_models.calibration.reference import sha256_of
from lewm_models.distance import latents as latents_module
from lewm_models.distance.latents import chosen_rows, encode_pieces
from lewm_models.distance.loop import TrainingReport
from lewm_models.distance.run import TooFewFrames, TrainedDistance, train_distance
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.lewm import LeWM
from lewm_models.training.prepared import PreparedData
from lewm_models.training.windows import split_episodes
from tests.lewm_models.examples import STATE_INPUT, example_card, tiny_model
from tests.lewm_models.training.sources import prepare, two_room

CONFIG = DistanceTraining(steps=20, width=8, batch=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(two_room(episodes=8, steps=120, image_size=16), tmp_path_factory.mktemp("data"))


@pytest.fixture
def model() -> LeWM:
    return tiny_model()


def train(model: LeWM, data: PreparedData, folder: Path, **changes: object) -> TrainedDistance:
    return train_distance(
        model,
        example_card(model),
        data,
        folder,
        pieces=split_episodes(data),
        config=CONFIG,
        **changes,  # type: ignore[arg-type]
    )


def test_a_model_that_takes_states_gets_those_of_the_frames(
    data: PreparedData, tmp_path: Path
) -> None:
    model = tiny_model(state_input=STATE_INPUT)
    encoded = encode_pieces(model, data, np.array([2]), cache=tmp_path / "latents.safetensors")
    [rows] = chosen_rows(data, np.array([2]), block=model.config.action_block)
    assert data.states is not None
    with torch.no_grad():
        expected = model.encode(
            torch.from_numpy(data.read_frames(rows)), torch.from_numpy(data.states[rows])
        )
    torch.testing.assert_close(encoded.latents, expected)


def test_frames_are_one_step_to_one_block_apart(data: PreparedData) -> None:
    [rows] = chosen_rows(data, np.array([2]), block=5)
    assert rows[0] == data.rows(2).start
    assert np.diff(rows[:9]).tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
    assert rows[-1] < data.rows(2).stop


def test_too_many_frames_are_taken_from_evenly_spaced_pieces(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = chosen_rows(data, np.arange(8), block=5)
    monkeypatch.setattr(latents_module, "MAX_FRAMES", 3 * len(every[0]))
    some = chosen_rows(data, np.arange(8), block=5)
    assert [int(rows[0]) for rows in some] == [data.rows(piece).start for piece in (0, 3, 7)]


def test_latents_are_those_of_the_frames_and_are_kept(
    model: LeWM, data: PreparedData, tmp_path: Path
) -> None:
    cache = tmp_path / "latents.safetensors"
    pieces = encode_pieces(model, data, np.array([1, 4]), cache=cache)
    rows = np.concatenate(chosen_rows(data, np.array([1, 4]), model.config.action_block))
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(data.read_frames(rows)))
    assert torch.allclose(pieces.latents, expected, atol=1e-6)
    assert pieces.times[:5].tolist() == pytest.approx([0.0, 0.2, 0.6, 1.2, 2.0])
    calls: list[tuple[int, int]] = []

    def encode(numbers: list[int], of: LeWM) -> None:
        encode_pieces(
            of, data, np.array(numbers), cache=cache, progress=lambda *done: calls.append(done)
        )

    encode([1, 4], model)
    assert calls == []
    encode([1, 5], model)
    encode([1, 5], tiny_model(seed=1))
    assert len(calls) == 2  # other frames, and another model


def test_a_distance_gets_on_the_card_and_into_the_folder(
    model: LeWM, data: PreparedData, tmp_path: Path
) -> None:
    reports: list[TrainingReport] = []
    trained = train(model, data, tmp_path / "run", on_report=reports.append)
    described = trained.described
    assert described.network == sha256_of(trained.network.to_bytes())
    of_distance, of_proposal = reports
    assert described.rank_correlation == round(of_distance.held_out["rank_correlation"], 4)
    assert described.proposal_cost == round(of_proposal.held_out["proposal_cost"], 4)
    for report in reports:
        [line] = (tmp_path / "run" / f"{report.part}.jsonl").read_text().splitlines()
        assert json.loads(line) == report.to_json()

    folder = tmp_path / "model"
    plain = example_card(model)
    checkpoint.save(folder, model, plain)
    before = checkpoint.version(folder)
    card = trained.on_card(plain, as_default=True)
    assert card.solver == replace(plain.solver, objective="distance")
    checkpoint.write_distance(folder, card, trained.network)
    loaded = checkpoint.load(folder)
    assert loaded.card == card
    assert loaded.version != before
    assert loaded.distance is not None
    assert loaded.distance.to_bytes() == trained.network.to_bytes()


def test_proposals_cost_less_after_training(
    model: LeWM, data: PreparedData, tmp_path: Path
) -> None:
    reports: list[TrainingReport] = []
    long = replace(CONFIG, steps=1000)
    train_distance(
        model,
        example_card(model),
        data,
        tmp_path,
        pieces=split_episodes(data),
        config=replace(long, batch=16),
        on_report=reports.append,
    )
    [last] = (report for report in reports if report.part == "proposal")
    assert last.held_out["proposal_cost"] < last.held_out["mean_action_cost"]


def test_the_same_call_gives_the_same_distance_and_does_not_train_again(
    model: LeWM, data: PreparedData, tmp_path: Path
) -> None:
    first = train(model, data, tmp_path / "a")
    assert train(model, data, tmp_path / "b").described == first.described
    reports: list[TrainingReport] = []
    assert train(model, data, tmp_path / "a", on_report=reports.append).described == first.described
    assert reports == []


def test_too_few_frames_are_refused(model: LeWM, data: PreparedData, tmp_path: Path) -> None:
    few = (np.array([0]), np.array([1]))
    with pytest.raises(TooFewFrames, match=r"training episodes have 40 pairs .* needs 200"):
        train_distance(model, example_card(model), data, tmp_path, pieces=few, config=CONFIG)
