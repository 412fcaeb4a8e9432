"""The episodes of each protocol: their starts, goals, budgets and seeds."""

from collections.abc import Callable

import pytest
import torch

from lewm_models.environments import two_room
from lewm_models.evaluation.protocol import (
    PROTOCOLS,
    SEED_COUNT,
    Episodes,
    cross_room_episodes,
    evaluation_generator,
    paper_episodes,
)

each_protocol = pytest.mark.parametrize("draw", PROTOCOLS.values(), ids=PROTOCOLS)


def test_paper_goals_are_25_steps_from_their_starts() -> None:
    episodes = paper_episodes(600, seed=0)
    assert (episodes.protocol, episodes.budget, episodes.plan_steps) == ("paper", 50, 25)
    assert episodes.starts.shape == episodes.goals.shape == (600, 2)
    distances = two_room.distance(episodes.starts, episodes.goals)
    assert distances.min() >= two_room.GOAL_RADIUS
    # An agent can move by 5 px per axis and step; with noise it gets much less far.
    assert distances.max() < 25 * two_room.SPEED * 2**0.5
    assert 35 < distances.mean() < 50
    crossing = ~two_room.same_room(episodes.starts, episodes.goals)
    assert 0.1 < crossing.float().mean() < 0.3


def test_cross_room_goals_are_in_the_other_room() -> None:
    episodes = cross_room_episodes(600, seed=0)
    assert (episodes.protocol, episodes.budget, episodes.plan_steps) == ("cross-room", 150, 25)
    assert episodes.starts.shape == episodes.goals.shape == (600, 2)
    assert not two_room.same_room(episodes.starts, episodes.goals).any()
    rightwards = (episodes.starts[:, 0] < two_room.WALL_X).float().mean()
    assert 0.4 < rightwards < 0.6
    unmoved = two_room.move(episodes.goals, torch.zeros(600, 2))
    assert torch.equal(unmoved, episodes.goals)


@each_protocol
def test_episodes_depend_on_the_seed_only(draw: Callable[[int, int], Episodes]) -> None:
    few, many, other = draw(20, 7), draw(400, 7), draw(20, 8)
    assert torch.equal(few.starts, many.starts[:20])
    assert torch.equal(few.goals, many.goals[:20])
    assert not torch.isin(few.starts, other.starts).any()


@each_protocol
@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, -1), (1, SEED_COUNT)])
def test_impossible_counts_and_seeds_are_refused(
    draw: Callable[[int, int], Episodes], count: int, seed: int
) -> None:
    with pytest.raises(ValueError, match="expected"):
        draw(count, seed)


def test_no_evaluation_draws_the_numbers_of_a_training_seed() -> None:
    def first_numbers(generator: torch.Generator) -> list[float]:
        return torch.rand(4, generator=generator).tolist()

    seeds = (0, 1, 2, 1234, SEED_COUNT - 1)
    training = [first_numbers(torch.Generator().manual_seed(seed)) for seed in seeds]
    assert all(first_numbers(evaluation_generator(seed)) not in training for seed in seeds)
    # The two kinds of seeds share 32 bits, because torch uses no more of them.
    assert first_numbers(torch.Generator().manual_seed(1 + 2**32)) == training[1]
