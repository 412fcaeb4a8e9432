"""The data-collecting policy against the public expert's actions, in simulation and by seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.environments.two_room import (
    VectorTwoRoom,
    same_room,
    sample_goals,
    sample_positions,
)
from lewm_models.environments.two_room_policy import DataPolicy, waypoint_actions

REFERENCE = Path(__file__).with_name("two_room_reference.npz")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def agents(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    return sample_positions(count, generator), sample_goals(count, generator)


def test_waypoints_equal_the_public_ones() -> None:
    with np.load(REFERENCE) as arrays:
        positions, goals, expected = (
            torch.from_numpy(arrays[f"policy_{name}"]) for name in ("positions", "goals", "actions")
        )
    torch.testing.assert_close(waypoint_actions(positions, goals), expected, rtol=0, atol=1e-6)


def test_an_agent_on_its_waypoint_rests() -> None:
    here = torch.tensor([[60.0, 60.0]])
    assert waypoint_actions(here, here).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("noise_std", [0.0, 2.0])
def test_agents_cross_to_goals_in_the_other_room(noise_std: float) -> None:
    positions, goals = agents(400)
    other = ~same_room(positions, goals)
    rooms = VectorTwoRoom(positions[other], goals[other])
    policy = DataPolicy(seeded(1), noise_std=noise_std)
    reached = torch.zeros(len(rooms.goals), dtype=torch.bool)
    for _ in range(100 if noise_std == 0 else 400):
        reached |= rooms.step(policy.actions(rooms.positions, rooms.goals))
    assert len(reached) > 100
    assert reached.float().mean() > 0.99


def test_the_same_seed_gives_the_same_actions() -> None:
    def run(seed: int) -> list[Tensor]:
        policy = DataPolicy(seeded(seed), repeat_probability=0.05)
        return [policy.actions(*agents(50)) for _ in range(5)]

    first, again, other = torch.stack(run(3)), torch.stack(run(3)), torch.stack(run(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_has_the_asked_deviation_and_is_clipped() -> None:
    positions, goals = agents(20_000)
    assert DataPolicy(seeded()).actions(positions, goals).abs().max() == 1.0
    directions = waypoint_actions(positions, goals)
    rested = waypoint_actions(goals, goals)
    assert torch.equal(DataPolicy(seeded(), noise_std=0.0).actions(goals, goals), rested)
    # Of N(0, 2), 38.3 % lie within the bounds of 1.
    inside = DataPolicy(seeded()).actions(goals, goals).abs() < 1
    assert inside.float().mean() == pytest.approx(0.383, abs=0.01)
    small = DataPolicy(seeded(), noise_std=0.01).actions(positions, goals) - directions
    free = directions.abs() < 0.9
    assert small[free].std() == pytest.approx(0.01, rel=0.05)


def test_actions_repeat_as_often_as_asked_and_never_by_default() -> None:
    positions, goals = agents(20_000)

    def repeated(policy: DataPolicy) -> Tensor:
        before, after = policy.actions(positions, goals), policy.actions(positions, goals)
        # Clipped actions often equal each other by chance: count those that were not clipped.
        kept = (before.abs() < 1).all(dim=-1)
        return (before == after).all(dim=-1)[kept].float().mean()

    assert repeated(DataPolicy(seeded())) == 0.0
    assert repeated(DataPolicy(seeded(), repeat_probability=0.05)) == pytest.approx(0.05, abs=0.01)
    assert repeated(DataPolicy(seeded(), repeat_probability=1.0)) == 1.0


def test_a_reset_policy_repeats_nothing_and_takes_another_count() -> None:
    policy = DataPolicy(seeded(), repeat_probability=1.0)
    first = policy.actions(*agents(50))
    with pytest.raises(ValueError, match="reset"):
        policy.actions(*agents(49))
    policy.reset()
    assert not torch.equal(policy.actions(*agents(50)), first)
    policy.reset()
    assert policy.actions(*agents(49)).shape == (49, 2)


@pytest.mark.parametrize("wrong", [{"noise_std": -1.0}, {"repeat_probability": 1.5}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataPolicy(seeded(), **wrong)
