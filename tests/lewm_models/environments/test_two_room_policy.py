"""The data policy against the public expert's actions, and the trajectories that it gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.environments.two_room import (
    VectorTwoRoom,
    move,
    same_room,
    sample_goals,
    sample_positions,
)
from lewm_models.environments.two_room_policy import (
    DataPolicy,
    simulate_trajectories,
    waypoint_actions,
)

REFERENCE = Path(__file__).with_name("two_room_reference.npz")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_positions_and_goals(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    return sample_positions(count, generator), sample_goals(count, generator)


def test_actions_equal_the_public_expert_s() -> None:
    with np.load(REFERENCE) as arrays:
        positions, goals, expected = (
            torch.from_numpy(arrays[f"policy_{name}"]) for name in ("positions", "goals", "actions")
        )
    torch.testing.assert_close(waypoint_actions(positions, goals), expected, rtol=0, atol=1e-6)


def test_an_agent_at_its_goal_rests() -> None:
    position = torch.tensor([[60.0, 60.0]])
    assert waypoint_actions(position, position).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("noise_std", [0.0, 2.0])
def test_agents_reach_goals_in_the_other_room(noise_std: float) -> None:
    positions, goals = random_positions_and_goals(400)
    across = ~same_room(positions, goals)
    environment = VectorTwoRoom(positions[across], goals[across])
    policy = DataPolicy(seeded(1), noise_std=noise_std)
    reached = torch.zeros(len(environment.goals), dtype=torch.bool)
    for _ in range(100 if noise_std == 0 else 400):
        actions = policy.actions(environment.positions, environment.goals)
        reached |= environment.step(actions)
    assert len(reached) > 100
    assert reached.float().mean() > 0.99


def test_the_same_seed_gives_the_same_actions() -> None:
    positions, goals = random_positions_and_goals(50)

    def run(seed: int) -> list[Tensor]:
        policy = DataPolicy(seeded(seed), repeat_probability=0.05)
        return [policy.actions(positions, goals) for _ in range(5)]

    first, again, other = torch.stack(run(3)), torch.stack(run(3)), torch.stack(run(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_has_the_given_deviation_and_is_clipped() -> None:
    positions, goals = random_positions_and_goals(20_000)
    assert DataPolicy(seeded()).actions(positions, goals).abs().max() == 1.0
    directions = waypoint_actions(positions, goals)
    resting = waypoint_actions(goals, goals)
    assert torch.equal(DataPolicy(seeded(), noise_std=0.0).actions(goals, goals), resting)
    # 38.3 % of N(0, 2²) are within ±1.
    unclipped = DataPolicy(seeded()).actions(goals, goals).abs() < 1
    assert unclipped.float().mean() == pytest.approx(0.383, abs=0.01)
    noise = DataPolicy(seeded(), noise_std=0.01).actions(positions, goals) - directions
    far_from_bounds = directions.abs() < 0.9
    assert noise[far_from_bounds].std() == pytest.approx(0.01, rel=0.05)


def test_actions_repeat_with_the_given_probability_and_never_by_default() -> None:
    positions, goals = random_positions_and_goals(20_000)

    def repeated_share(policy: DataPolicy) -> Tensor:
        before, after = policy.actions(positions, goals), policy.actions(positions, goals)
        # Clipped actions are often equal by chance, so only the others count.
        unclipped = (before.abs() < 1).all(dim=-1)
        return (before == after).all(dim=-1)[unclipped].float().mean()

    assert repeated_share(DataPolicy(seeded())) == 0.0
    assert repeated_share(DataPolicy(seeded(), repeat_probability=0.05)) == pytest.approx(
        0.05, abs=0.01
    )
    assert repeated_share(DataPolicy(seeded(), repeat_probability=1.0)) == 1.0


def test_after_a_reset_nothing_is_repeated_and_the_count_may_change() -> None:
    positions, goals = random_positions_and_goals(50)
    policy = DataPolicy(seeded(), repeat_probability=1.0)
    first = policy.actions(positions, goals)
    with pytest.raises(ValueError, match="expected 50 agents, got 49; reset"):
        policy.actions(positions[:49], goals[:49])
    policy.reset()
    assert not torch.equal(policy.actions(positions, goals), first)
    policy.reset()
    assert policy.actions(positions[:49], goals[:49]).shape == (49, 2)


@pytest.mark.parametrize("wrong", [{"noise_std": -1.0}, {"repeat_probability": 1.5}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataPolicy(seeded(), **wrong)


def test_each_simulated_position_follows_from_the_one_before() -> None:
    positions, actions = simulate_trajectories(16, 40, seeded(0))
    assert positions.shape == (41, 16, 2)
    assert actions.shape == (40, 16, 2)
    for before, action, after in zip(positions, actions, positions[1:], strict=False):
        assert torch.equal(move(before, action), after)


def test_the_trajectories_of_a_seed_never_change() -> None:
    # Recordings and evaluation episodes are identified by their seeds.
    positions, actions = simulate_trajectories(3, 60, seeded(7))
    again, _ = simulate_trajectories(3, 60, seeded(7))
    assert torch.equal(positions, again)
    torch.testing.assert_close(
        positions[-1], torch.tensor([[84.9849, 32.955], [123.6583, 57.2108], [92.826, 55.4102]])
    )
    torch.testing.assert_close(
        actions[-1],
        torch.tensor([[1.0, -0.4291], [0.8317, -1.0], [1.0, -0.3814]]),
        atol=1e-4,
        rtol=0,
    )
