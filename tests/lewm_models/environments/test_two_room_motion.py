"""Agents in motion: whole steps, from goal to goal, fixed by the seed."""

import torch

from lewm_models.environments.two_room import move
from lewm_models.environments.two_room_motion import simulate


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_position_follows_from_the_one_before() -> None:
    positions, actions = simulate(16, 40, seeded(0))
    assert positions.shape == (41, 16, 2)
    assert actions.shape == (40, 16, 2)
    for before, action, after in zip(positions, actions, positions[1:], strict=False):
        assert torch.equal(move(before, action), after)


def test_the_numbers_of_a_seed_never_change() -> None:
    # Recordings and evaluation episodes are named by their seeds.
    positions, actions = simulate(3, 60, seeded(7))
    again, _ = simulate(3, 60, seeded(7))
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
