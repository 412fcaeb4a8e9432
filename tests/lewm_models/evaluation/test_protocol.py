"""The protocols' episodes: what the figures are figures of."""

from collections.abc import Callable

import pytest
import torch

from lewm_models.environments import two_room
from lewm_models.evaluation.protocol import (
    PROTOCOLS,
    SEEDS,
    Episodes,
    cross_room_episodes,
    evaluation_generator,
    paper_episodes,
)

both = pytest.mark.parametrize("draw", PROTOCOLS.values(), ids=PROTOCOLS)


def test_paper_episodes_lie_along_trajectories() -> None:
    episodes = paper_episodes(600, seed=0)
    assert (episodes.protocol, episodes.budget, episodes.plan_steps) == ("paper", 50, 25)
    assert episodes.starts.shape == episodes.goals.shape == (600, 2)
    distances = two_room.distance(episodes.starts, episodes.goals)
    assert distances.min() >= two_room.GOAL_RADIUS
    # 25 steps of 5 px on both axes are the most there is; the noise makes the way far shorter.
    assert distances.max() < 25 * two_room.SPEED * 2**0.5
    assert 35 < distances.mean() < 50
    crossing = ~two_room.same_room(episodes.starts, episodes.goals)
    assert 0.1 < crossing.float().mean() < 0.3


def test_cross_room_episodes_lead_through_the_door() -> None:
    episodes = cross_room_episodes(600, seed=0)
    assert (episodes.protocol, episodes.budget, episodes.plan_steps) == ("cross-room", 150, 25)
    assert episodes.starts.shape == episodes.goals.shape == (600, 2)
    assert not two_room.same_room(episodes.starts, episodes.goals).any()
    rightwards = (episodes.starts[:, 0] < two_room.WALL_X).float().mean()
    assert 0.4 < rightwards < 0.6
    standing = two_room.move(episodes.goals, torch.zeros(600, 2))
    assert torch.equal(standing, episodes.goals)


@both
def test_a_seed_fixes_the_episodes(draw: Callable[[int, int], Episodes]) -> None:
    few, many, other = draw(20, 7), draw(400, 7), draw(20, 8)
    assert torch.equal(few.starts, many.starts[:20])
    assert torch.equal(few.goals, many.goals[:20])
    assert not torch.isin(few.starts, other.starts).any()


@both
@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, -1), (1, SEEDS)])
def test_other_counts_and_seeds_are_refused(
    draw: Callable[[int, int], Episodes], count: int, seed: int
) -> None:
    with pytest.raises(ValueError, match="expected"):
        draw(count, seed)


def test_no_evaluation_repeats_the_draws_of_training() -> None:
    def first(generator: torch.Generator) -> list[float]:
        return torch.rand(4, generator=generator).tolist()

    seeds = (0, 1, 2, 1234, SEEDS - 1)
    training = [first(torch.Generator().manual_seed(seed)) for seed in seeds]
    assert all(first(evaluation_generator(seed)) not in training for seed in seeds)
    # Why the two kinds of seed share 32 bits: torch looks at no more of them.
    assert first(torch.Generator().manual_seed(1 + 2**32)) == training[1]
