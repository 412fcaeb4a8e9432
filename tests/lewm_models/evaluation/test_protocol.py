"""The episodes of each protocol: their starts, goals, budgets and seeds."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from lewm_models.environments import two_room
from lewm_models.environments.environment import (
    SEED_COUNT,
    Environment,
    EvaluationProtocol,
    FloatArray,
    RecordedEpisode,
    Simulation,
)
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.environments.two_room_policy import evaluation_generator
from lewm_models.evaluation.protocol import sample_episodes

each_protocol = pytest.mark.parametrize("protocol", TWO_ROOM.protocols)


def distances(starts: FloatArray, goals: FloatArray) -> FloatArray:
    lengths: FloatArray = np.linalg.norm(starts - goals, axis=-1)
    return lengths


class Counter(Environment):
    """A state is (episode, step, seed); an episode is left when its number differs."""

    name = "counter"
    action_low = (-1.0, 0.5)
    action_high = (1.0, 2.0)
    state_dim = 3

    def __init__(self, protocols: dict[str, EvaluationProtocol] | None = None) -> None:
        if protocols is not None:
            self.protocols = protocols

    def simulation(self) -> Simulation:
        raise AssertionError("no episode runs")

    def record(
        self, episodes: int, steps: int, seed: int, frame_every: int = 1
    ) -> Iterator[RecordedEpisode]:
        raise AssertionError("no frame is needed")

    def trajectories(self, episodes: int, steps: int, seed: int) -> FloatArray:
        states = np.empty((episodes, steps + 1, 3))
        states[..., 0], states[..., 1] = np.arange(episodes)[:, None], np.arange(steps + 1)
        states[..., 2] = seed
        return states

    def reached(self, state: FloatArray, goal: FloatArray) -> bool:
        return bool(state[0] % 3 == 0)


def test_paper_goals_are_25_steps_from_their_starts() -> None:
    episodes = sample_episodes(TWO_ROOM, "paper", 600, seed=0)
    assert (episodes.protocol, episodes.offset) == ("paper", 25)
    assert (episodes.budget, episodes.plan_steps) == (50, 25)
    assert episodes.starts.shape == episodes.goals.shape == (600, 2)
    lengths = distances(episodes.starts, episodes.goals)
    assert lengths.min() >= two_room.GOAL_RADIUS
    # An agent can move by 5 px per axis and step; with noise it gets much less far.
    assert lengths.max() < 25 * two_room.SPEED * 2**0.5
    assert 35 < lengths.mean() < 50
    crossing = (episodes.starts[:, 0] < two_room.WALL_X) != (episodes.goals[:, 0] < two_room.WALL_X)
    assert 0.1 < crossing.mean() < 0.3


def test_cross_room_goals_are_in_the_other_room() -> None:
    episodes = sample_episodes(TWO_ROOM, "cross-room", 600, seed=0)
    assert (episodes.protocol, episodes.offset) == ("cross-room", None)
    assert (episodes.budget, episodes.plan_steps) == (150, 25)
    assert episodes.starts.shape == episodes.goals.shape == (600, 2)
    starts_left, goals_left = (
        points[:, 0] < two_room.WALL_X for points in (episodes.starts, episodes.goals)
    )
    assert (starts_left != goals_left).all()
    assert 0.4 < starts_left.mean() < 0.6
    goals = torch.tensor(episodes.goals, dtype=torch.float32)
    assert torch.equal(two_room.move(goals, torch.zeros(600, 2)), goals)


@pytest.mark.parametrize(
    ("protocol", "start", "goal", "last_start"),
    [
        ("paper", (76.93925, 118.18661), (99.5, 111.61308), (72.70877, 56.73078)),
        ("cross-room", (138.92206, 175.54393), (88.20935, 117.74449), (96.96502, 133.86438)),
    ],
)
def test_seeds_give_the_episodes_of_published_figures(
    protocol: str,
    start: tuple[float, float],
    goal: tuple[float, float],
    last_start: tuple[float, float],
) -> None:
    episodes = sample_episodes(TWO_ROOM, protocol, 600, seed=0)
    assert episodes.starts[0] == pytest.approx(start, abs=1e-3)
    assert episodes.goals[0] == pytest.approx(goal, abs=1e-3)
    assert episodes.starts[-1] == pytest.approx(last_start, abs=1e-3)


@each_protocol
def test_episodes_depend_on_the_seed_only(protocol: str) -> None:
    few, many, other = (
        sample_episodes(TWO_ROOM, protocol, count, seed)
        for count, seed in ((20, 7), (400, 7), (20, 8))
    )
    assert np.array_equal(few.starts, many.starts[:20])
    assert np.array_equal(few.goals, many.goals[:20])
    assert not np.isin(few.starts, other.starts).any()


def test_goals_lie_on_trajectories_of_unseen_seeds() -> None:
    episodes = sample_episodes(Counter(), "paper", 100, seed=7)
    assert (episodes.goals - episodes.starts == [0, 25, 0]).all()
    seeds = np.unique(episodes.starts[:, 2])
    assert len(seeds) == 5  # 21 pairs of 32 trajectories are apart
    assert seeds.min() >= SEED_COUNT
    steps = episodes.starts[:, 1]
    assert (steps.min(), steps.max()) >= (0, 100)
    assert steps.max() <= 125
    other = sample_episodes(Counter(), "paper", 100, seed=8)
    assert not np.isin(other.starts[:, 2], seeds).any()


def test_starts_at_their_goals_are_left_out() -> None:
    episodes = sample_episodes(Counter(), "paper", 100, seed=7)
    assert (episodes.starts[:, 0] % 3 > 0).all()

    class Arrived(Counter):
        def reached(self, state: FloatArray, goal: FloatArray) -> bool:
            return True

    with pytest.raises(ValueError, match="counter, paper: every start is at its goal already"):
        sample_episodes(Arrived(), "paper", 1, seed=0)


@pytest.mark.parametrize(
    ("protocol", "changes", "name", "offset", "budget", "plan_steps"),
    [
        ("paper", {"offset": 100, "budget": 150}, "offset-100-budget-150", 100, 150, 25),
        ("paper", {"offset": 75}, "offset-75-budget-150", 75, 150, 25),
        ("paper", {"offset": 200}, "offset-200-budget-400", 200, 400, 25),
        ("paper", {"offset": 25, "budget": 50}, "paper", 25, 50, 25),
        ("paper", {"plan_steps": 10}, "offset-25-budget-50-plan-steps-10", 25, 50, 10),
        ("cross-room", {"budget": 100}, "cross-room-budget-100", None, 100, 25),
    ],
)
def test_what_is_replaced_is_in_the_name(
    protocol: str,
    changes: dict[str, int],
    name: str,
    offset: int | None,
    budget: int,
    plan_steps: int,
) -> None:
    episodes = sample_episodes(TWO_ROOM, protocol, 3, 0, **changes)
    assert episodes.protocol == name
    assert (episodes.offset, episodes.budget) == (offset, budget)
    assert episodes.plan_steps == plan_steps


@pytest.mark.parametrize(
    ("protocol", "count", "seed", "changes", "message"),
    [
        ("paper", 0, 0, {}, "episodes: expected at least 1, got 0"),
        ("paper", 1, -1, {}, "seed: expected 0 to 2147483647, got -1"),
        ("paper", 1, SEED_COUNT, {}, "seed: expected 0 to 2147483647"),
        ("chess", 1, 0, {}, "--protocol: two-room has paper, cross-room, got 'chess'"),
        ("paper", 1, 0, {"offset": 0}, "--offset: expected at least 1, got 0"),
        ("paper", 1, 0, {"budget": 0}, "--budget: expected at least 1, got 0"),
        ("paper", 1, 0, {"plan_steps": 0}, "--plan-steps: expected at least 1, got 0"),
        ("cross-room", 1, 0, {"offset": 9}, "--offset: cross-room draws its goals in another way"),
    ],
)
def test_impossible_episodes_are_refused(
    protocol: str, count: int, seed: int, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_episodes(TWO_ROOM, protocol, count, seed, **changes)


def test_a_protocol_without_an_offset_needs_pairs() -> None:
    environment = Counter({"far": EvaluationProtocol(budget=9)})
    with pytest.raises(NotImplementedError, match="counter: the protocol far has no offset"):
        sample_episodes(environment, "far", 1, 0)


def test_no_evaluation_draws_the_numbers_of_a_training_seed() -> None:
    def first_numbers(generator: torch.Generator) -> list[float]:
        return torch.rand(4, generator=generator).tolist()

    seeds = (0, 1, 2, 1234, SEED_COUNT - 1)
    training = [first_numbers(torch.Generator().manual_seed(seed)) for seed in seeds]
    assert all(first_numbers(evaluation_generator(seed)) not in training for seed in seeds)
    # The two kinds of seeds share 32 bits, because torch uses no more of them.
    assert first_numbers(torch.Generator().manual_seed(1 + 2**32)) == training[1]
