"""A distance that is trained on random walks knows about the wall between two rooms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_models.distance.latents import PieceLatents
from lewm_models.distance.loop import TrainingReport
from lewm_models.distance.quality import measure_quality, rank_correlation
from lewm_models.distance.trainer import DistanceTrainer, DistanceTraining
from tests.lewm_models.distance.walled_rooms import (
    latents_of,
    random_walks,
    shortest_steps,
)

CPU = torch.device("cpu")
SHORT = DistanceTraining(steps=60, width=16, batch=64)
LEARNING = DistanceTraining(steps=1500, width=64, batch=256, learning_rate=3e-3, averaging=0.02)


@pytest.fixture(scope="module")
def walks() -> PieceLatents:
    return random_walks(300, 40, seed=0)


@pytest.fixture(scope="module")
def held_out() -> PieceLatents:
    return random_walks(20, 40, seed=1)


@pytest.fixture(scope="module")
def trained(walks: PieceLatents, held_out: PieceLatents) -> DistanceTrainer:
    trainer = DistanceTrainer(walks, held_out, LEARNING, CPU)
    trainer.run()
    return trainer


def make(walks: PieceLatents, config: DistanceTraining = SHORT) -> DistanceTrainer:
    return DistanceTrainer(walks, walks, config, CPU)


def same_weights(a: DistanceTrainer, b: DistanceTrainer) -> bool:
    weights = b.network.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in a.network.state_dict().items())


def test_a_goal_behind_the_wall_is_as_far_as_the_way_through_the_door(
    trained: DistanceTrainer,
) -> None:
    """From (2, 6), the cell (4, 6) behind the wall is 2 cells away and 14 steps, (0, 6) 2 steps."""
    start = latents_of(np.array([2, 6]))
    goals = latents_of(np.array([[0, 6], [4, 6], [2, 5], [2, 6]]))
    same_room, behind_wall, next_cell, same_cell = trained.network(start, goals).tolist()
    assert shortest_steps((2, 6))[4, 6] == 14
    assert behind_wall > 3 * same_room
    assert next_cell == pytest.approx(1, abs=0.5)
    assert same_cell < 0.4


def test_it_ranks_goals_as_the_shortest_ways_do(trained: DistanceTrainer) -> None:
    steps = shortest_steps((1, 5))
    cells, shortest = np.array(list(steps)), np.array(list(steps.values()), np.float64)
    start = latents_of(np.array([1, 5]))
    distances = trained.network(start, latents_of(cells)).double().detach().numpy()
    straight = np.abs(cells - [1, 5]).sum(axis=1).astype(np.float64)
    assert rank_correlation(distances, shortest) > 0.95
    assert rank_correlation(straight, shortest) < 0.85


def test_the_quality_is_that_of_held_out_pieces(
    trained: DistanceTrainer, held_out: PieceLatents
) -> None:
    quality = trained.quality()
    assert quality == measure_quality(trained.network, held_out)
    assert quality.frames == 20 * 41
    assert quality.rank_correlation > 0.3
    assert 0.3 < quality.next_frame < 1.2
    assert quality.same_frame < 0.5


def test_a_seed_gives_the_same_distance_and_another_seed_another_one(walks: PieceLatents) -> None:
    first, again = make(walks), make(walks)
    other = make(walks, DistanceTraining(**{**SHORT.__dict__, "seed": 1}))
    for trainer in (first, again, other):
        trainer.run()
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_an_interrupted_training_continues_as_if_it_had_not_been(
    walks: PieceLatents, tmp_path: Path
) -> None:
    whole = make(walks)
    whole.run()
    begun = make(walks)
    begun.run(tmp_path / "checkpoint.pt", until=25)
    continued = make(walks)
    continued.resume(tmp_path / "checkpoint.pt")
    assert continued.step == 25
    continued.run()
    assert same_weights(whole, continued)


@pytest.mark.parametrize("damage", ["cut off", "other settings", "other latents", "missing"])
def test_a_checkpoint_that_does_not_belong_to_the_run_is_ignored(
    walks: PieceLatents, held_out: PieceLatents, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "checkpoint.pt"
    make(walks).run(path, until=5)
    trainer = make(walks)
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other settings":
        trainer = make(walks, DistanceTraining(**{**SHORT.__dict__, "batch": 32}))
    elif damage == "other latents":
        trainer = make(held_out)
    else:
        path.unlink()
    trainer.resume(path)
    assert trainer.step == 0


def test_reports_hold_the_loss_and_the_held_out_quality(walks: PieceLatents) -> None:
    reports: list[TrainingReport] = []
    trainer = make(walks)
    trainer.run(on_report=reports.append)
    [report] = reports
    assert report.step == 60
    assert report.held_out == trainer.measure()
    line = report.to_json()
    assert line["held_out_rank_correlation"] == trainer.quality().rank_correlation
    assert line["loss"] > 0


def test_a_loss_that_is_not_finite_ends_the_training(walks: PieceLatents) -> None:
    trainer = make(walks)
    with torch.no_grad():
        trainer.network.output.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 60: the loss is nan"):
        trainer.run()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([1.0, 1.0, 2.0, 2.0], [1.0, 2.0, 1.0, 2.0], 0.0),
        ([1.0, 1.0], [1.0, 2.0], 0.0),
    ],
)
def test_rank_correlations(a: list[float], b: list[float], expected: float) -> None:
    assert rank_correlation(np.array(a), np.array(b)) == pytest.approx(expected)
