"""Plans to goals that are given by states, and around regions of states."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lewm_models import checkpoint
from lewm_models.card import read_card
from lewm_serve.api.responses import PlanResponse
from lewm_serve.errors import InvalidRequest
from tests.lewm_serve.support.frames import ACTION_BLOCK
from tests.lewm_serve.support.random_model import STATES, random_probe, write_random_model
from tests.lewm_serve.support.requests import SMALL_SOLVER, rows
from tests.lewm_serve.support.running_planner import running_planner

GOAL: dict[str, Any] = {"state": {"y": 130.0, "angle": 10.0}}
EVERYWHERE: dict[str, Any] = {"state": {"x": [-1e6, 1e6]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a probe and a learned distance."""
    path = tmp_path_factory.mktemp("models") / "random"
    return write_random_model(path, distance=True, probe=True)


async def plans(folder: Path, *requests: dict[str, Any]) -> list[PlanResponse]:
    async with running_planner(folder) as running:
        return [await running.plan(include=["trajectory"], **request) for request in requests]


def states_of(latents: torch.Tensor) -> torch.Tensor:
    probe = random_probe(latents.shape[-1]).eval()
    with torch.inference_mode():
        return probe.in_units(probe(latents))


@pytest.mark.parametrize("solver", ["cem", "icem", "mppi", "random", "gradient"])
async def test_the_answer_has_the_cost_and_the_states_of_its_own_trajectory(
    folder: Path, solver: str
) -> None:
    settings = {"name": solver, "samples": 16, "iterations": 2, "objective": "state"}
    [answer] = await plans(folder, {"goal": GOAL, "solver": settings})
    assert answer.trajectory is not None
    assert answer.states is not None
    trajectory = torch.from_numpy(answer.trajectory)
    probe = random_probe(trajectory.shape[-1]).eval()
    with torch.inference_mode():
        values = probe(trajectory)
        target = probe.standardise(torch.tensor([0.0, 130.0, 10.0]))
    errors = (values - target)[:, 1:].square().sum(dim=-1)
    assert answer.cost == pytest.approx(float(errors[-1] + errors.mean()), rel=1e-3)
    end = dict(zip(STATES.states, states_of(trajectory)[-1].tolist(), strict=True))
    assert answer.states.end == pytest.approx(end, rel=1e-3, abs=1e-2)
    assert answer.states.start != answer.states.end
    assert (answer.violations, answer.distance) == ((), None)
    assert answer.solver["objective"] == "state"
    assert answer.latent_ids is not None
    assert answer.latent_ids.goal == ""


async def test_a_search_gets_nearer_to_the_states_than_the_mean_action(folder: Path) -> None:
    one = {"samples": 1, "iterations": 1, "elites": 1}
    nothing, searched = await plans(
        folder,
        {"goal": GOAL, "solver": one},
        {"goal": GOAL, "solver": {"samples": 128, "iterations": 4, "elites": 8}},
    )
    assert nothing.cost is not None
    assert searched.cost is not None
    assert searched.cost < nothing.cost


async def test_a_seeded_plan_is_the_same_whatever_else_is_planned(folder: Path) -> None:
    requests: list[dict[str, Any]] = [
        {"goal": GOAL},
        {"goal": GOAL, "avoid": [EVERYWHERE]},
        {"avoid": [EVERYWHERE]},
        {"goal": {"state": {"x": 20.0}}, "seed": 8},
        {},
    ]
    alone = await plans(folder, *requests)
    async with running_planner(folder) as running:
        together = await asyncio.gather(*(running.plan(**request) for request in requests * 2))
    for first, second in zip(alone * 2, together, strict=True):
        assert np.array_equal(first.actions, second.actions)
        assert (first.cost, first.states, first.violations) == (
            second.cost,
            second.states,
            second.violations,
        )


@pytest.mark.parametrize("objective", ["latent", "distance"])
async def test_regions_are_avoided_on_the_way_to_a_frame_too(folder: Path, objective: str) -> None:
    solver = {"objective": objective, **SMALL_SOLVER}
    free, inside = await plans(
        folder, {"solver": solver}, {"solver": solver, "avoid": [EVERYWHERE]}
    )
    assert free.states is None
    assert free.violations == ()
    assert inside.violations == (0, 1, 2, 3, 4)
    assert inside.distance is not None
    assert free.cost is not None
    assert inside.cost is not None
    assert inside.cost > free.cost + 5 * 10


async def test_a_higher_weight_costs_more(folder: Path) -> None:
    one = {"samples": 1, "iterations": 1, "elites": 1}
    light, heavy = await plans(
        folder,
        *({"goal": GOAL, "solver": one, "avoid": [EVERYWHERE | {"weight": w}]} for w in (1, 3)),
    )
    assert light.cost is not None
    assert heavy.cost is not None
    assert heavy.cost - light.cost == pytest.approx(2 * 5 * 1.9, rel=0.1)


async def test_the_way_begins_after_the_committed_actions(folder: Path) -> None:
    committed = rows(2 * ACTION_BLOCK, 0.5)
    first, later = await plans(
        folder, {"goal": GOAL}, {"goal": GOAL, "committed_actions": committed}
    )
    async with running_planner(folder) as running:
        rolled_out = await running.plan(
            goal=GOAL,
            include=["trajectory"],
            warm_start=committed,
            solver={"samples": 1, "iterations": 1, "elites": 1},
        )
    assert rolled_out.trajectory is not None
    after_two_blocks = states_of(torch.from_numpy(rolled_out.trajectory[1]))
    assert first.states is not None
    assert later.states is not None
    assert list(later.states.start.values()) == pytest.approx(after_two_blocks.tolist(), rel=1e-3)
    assert later.states.start != first.states.start


@pytest.mark.parametrize(
    ("request_fields", "field", "expected"),
    [
        ({"goal": {"state": {"z": 1.0}}}, "goal.state", "one of x, y, angle"),
        ({"goal": {"state": {"x": 211.0}}}, "goal.state.x", "within [0, 200]"),
        ({"avoid": [{"state": {"z": [0, 1.0]}}]}, "avoid[0].state", "one of x, y, angle"),
        (
            {"avoid": [EVERYWHERE, {"centre": {"angle": 0.0}, "radius": 180.0}]},
            "avoid[1].radius",
            "a width of less than 360, the period of angle",
        ),
        (
            {"goal": GOAL, "solver": {"objective": "distance"}},
            "solver.objective",
            "state or nothing, since the goal is given by states",
        ),
        (
            {"solver": {"objective": "state"}},
            "solver.objective",
            "latent or distance, since the goal is not given by states",
        ),
    ],
)
async def test_what_cannot_be_is_refused_with_its_field(
    folder: Path, request_fields: dict[str, Any], field: str, expected: str
) -> None:
    async with running_planner(folder) as running:
        with pytest.raises(InvalidRequest) as refused:
            await running.plan(**request_fields)
    (problem,) = refused.value.errors
    assert problem.field == field
    assert expected in problem.expected


async def test_a_goal_may_lie_a_little_outside_of_what_the_probe_has_seen(folder: Path) -> None:
    [answer] = await plans(folder, {"goal": {"state": {"x": 209.0}}})
    assert answer.status == "completed"


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [({"goal": GOAL}, "goal.state"), ({"avoid": [EVERYWHERE]}, "avoid")],
)
async def test_a_model_without_a_probe_refuses_states_by_its_name(
    tmp_path: Path, request_fields: dict[str, Any], field: str
) -> None:
    async with running_planner(write_random_model(tmp_path / "blind", "blind")) as running:
        with pytest.raises(InvalidRequest) as refused:
            await running.plan(**request_fields)
    (problem,) = refused.value.errors
    assert problem.field == field
    assert "blind has no probe" in problem.expected


async def test_a_probe_of_an_earlier_version_has_no_range(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "old", probe=True)
    card_file = folder / checkpoint.CARD_FILE
    card = read_card(card_file)
    assert card.probe is not None
    body = card.to_json()
    del body["probe"]["low"], body["probe"]["high"]
    old = type(card).from_json(body)
    assert "low" not in old.to_json()["probe"]
    checkpoint.write_card(folder, old)
    [answer] = await plans(folder, {"goal": {"state": {"x": 500.0}}})
    assert answer.status == "completed"
