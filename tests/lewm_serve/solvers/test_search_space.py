"""The search space: bounds, and the largest change from one time step to the next."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import SearchSpace
from tests.lewm_serve.solvers.toy_searches import HIGH, LOW, bowl, run

MAX_CHANGE = torch.tensor([0.2, 0.4])
PREVIOUS = torch.tensor([-1.0, 0.5])


def limited(previous: Tensor | None = PREVIOUS, blocks: int = 3, steps: int = 2) -> SearchSpace:
    """Blocks of several time steps with two action dimensions each."""
    start = torch.zeros(blocks, 2 * steps)
    unlimited = SearchSpace(LOW.repeat(steps), HIGH.repeat(steps), start, action_dim=2)
    space = SearchSpace(
        unlimited.low,
        unlimited.high,
        start,
        action_dim=2,
        max_change=MAX_CHANGE,
        previous_action=previous,
    )
    return SearchSpace(**vars(space) | {"start": space.clip(start)})


def changes(sequences: Tensor, previous: Tensor | None) -> Tensor:
    """The changes (…, steps, 2) from one time step to the next."""
    rows = sequences.reshape(*sequences.shape[:-2], -1, 2)
    if previous is not None:
        rows = torch.cat([previous.expand_as(rows[..., :1, :]), rows], dim=-2)
    return rows.diff(dim=-2).abs()


@pytest.mark.parametrize("previous", [None, PREVIOUS])
def test_changes_are_limited_from_the_action_before(previous: Tensor | None) -> None:
    sequences = 5 * torch.randn(100, 3, 4, generator=torch.Generator().manual_seed(0))
    clipped = limited(previous).clip(sequences)
    assert (changes(clipped, previous) <= MAX_CHANGE + 1e-6).all()
    assert (clipped >= LOW.repeat(2)).all()
    assert (clipped <= HIGH.repeat(2)).all()
    assert torch.allclose(limited(previous).clip(clipped), clipped)


def test_the_first_change_is_free_without_an_action_before() -> None:
    high = HIGH.repeat(2).expand(3, 4)
    assert torch.equal(limited(None).clip(high), high)
    first = limited().clip(high)[0, :2]
    assert torch.allclose(first, torch.tensor([-0.8, 0.9]))


def test_without_a_limit_only_the_bounds_count() -> None:
    space = SearchSpace(LOW, HIGH, torch.zeros(3, 2), action_dim=2)
    wide = torch.tensor([[-9.0, 9.0], [9.0, -9.0], [0.25, 0.5]])
    assert space.clip(wide).tolist() == [[-1.5, 1.0], [1.0, -1.5], [0.25, 0.5]]


@pytest.mark.parametrize("name", SOLVERS)
def test_every_candidate_of_every_solver_respects_the_limit(name: str) -> None:
    settings = SolverConfig(name, samples=64, iterations=6, elites=6, horizon=3)
    solver = SOLVERS[name](settings, limited(), 1)
    for candidates in run(solver, bowl(1.0)):
        assert (changes(candidates, PREVIOUS) <= MAX_CHANGE + 1e-5).all()
    assert solver.best is not None
    best = solver.best.actions.reshape(-1, 2).numpy()
    assert np.all(np.diff(best[:, 0]) > 0)  # towards 1, as fast as is allowed
