"""Plans by the learned distance, and how far the goal is in answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lewm_models import checkpoint
from lewm_serve.api.fields import parse
from lewm_serve.api.requests import Frame
from lewm_serve.api.responses import PlanResponse
from lewm_serve.errors import InvalidRequest
from tests.lewm_serve.support.frames import ACTION_BLOCK, pixels
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.requests import SMALL_SOLVER
from tests.lewm_serve.support.running_planner import running_planner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a learned distance, which is not its default objective."""
    return write_random_model(tmp_path_factory.mktemp("models") / "random", distance=True)


def solver(objective: str | None = None, **settings: Any) -> dict[str, Any]:
    given = {} if objective is None else {"objective": objective}
    return {"name": "icem", **SMALL_SOLVER, **given, **settings}


async def plans(folder: Path, *requests: dict[str, Any]) -> list[PlanResponse]:
    async with running_planner(folder) as running:
        return [await running.plan(include=["trajectory"], **request) for request in requests]


def distances(folder: Path, answer: PlanResponse) -> tuple[float, float]:
    """What the model itself says, in steps, before and after the answer's trajectory."""
    loaded = checkpoint.load(folder)
    assert loaded.distance is not None
    assert answer.trajectory is not None
    with torch.inference_mode():
        start, goal = loaded.model.encode(torch.from_numpy(np.stack([frame_of(0), frame_of(1)])))
        end = torch.from_numpy(answer.trajectory)[-1]
        blocks = loaded.distance(torch.stack([start, end]), goal)
    return float(ACTION_BLOCK * blocks[0]), float(ACTION_BLOCK * blocks[1])


def goal_latent(folder: Path) -> torch.Tensor:
    """The latent (D,) of the small request's goal."""
    with torch.inference_mode():
        return checkpoint.load(folder).model.encode(torch.from_numpy(frame_of(1)[None].copy()))[0]


def frame_of(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of the small request's frames, at the model's size."""
    frame = parse(Frame, pixels(seed))
    assert frame.pixels is not None
    return frame.pixels


@pytest.mark.parametrize(
    "settings", [solver("latent"), solver("distance"), solver("distance", name="mppi", elites=...)]
)
async def test_answers_say_how_far_the_goal_is_before_and_after_the_plan(
    folder: Path, settings: dict[str, Any]
) -> None:
    settings = {name: value for name, value in settings.items() if value is not ...}
    [answer] = await plans(folder, {"solver": settings})
    assert answer.distance is not None
    expected = distances(folder, answer)
    assert (answer.distance.start, answer.distance.end) == pytest.approx(expected, rel=1e-3)
    assert answer.solver["objective"] == settings["objective"]


async def test_the_cost_is_the_mean_distance_on_the_way_and_lower_than_by_the_latent(
    folder: Path,
) -> None:
    by_latent, by_distance, again = await plans(
        folder,
        {"solver": solver("latent")},
        {"solver": solver("distance")},
        {"solver": solver("distance")},
    )
    network = checkpoint.load(folder).distance
    assert network is not None

    def mean_distance(answer: PlanResponse) -> float:
        assert answer.trajectory is not None
        return float(network(torch.from_numpy(answer.trajectory), goal_latent(folder)).mean())

    assert by_distance.cost == pytest.approx(mean_distance(by_distance), rel=1e-3)
    assert mean_distance(by_distance) < mean_distance(by_latent)
    assert np.array_equal(again.actions, by_distance.actions)
    assert again.distance == by_distance.distance


@pytest.mark.parametrize("horizon", [2, 5, 7])
async def test_a_search_by_the_distance_starts_at_the_proposal(folder: Path, horizon: int) -> None:
    """The first candidate is the start; one candidate is the whole plan."""
    one = solver("distance", samples=1, iterations=1, elites=1, horizon=horizon)
    mean_action = [[0.0, 0.0]]
    proposed, warm, by_latent = await plans(
        folder,
        {"solver": one},
        {"solver": one, "warm_start": mean_action},
        {"solver": one | {"objective": "latent"}},
    )
    loaded = checkpoint.load(folder)
    assert loaded.distance is not None
    with torch.inference_mode():
        start = loaded.model.encode(torch.from_numpy(frame_of(0)[None].copy()))[0]
        blocks = loaded.distance.propose(start, goal_latent(folder))
    assert blocks is not None
    mean, std = np.array(loaded.card.action_mean), np.array(loaded.card.action_std)
    rows = blocks[:horizon].reshape(-1, len(mean)).numpy() * std + mean
    expected = np.clip(rows, loaded.card.action_low, loaded.card.action_high)
    assert proposed.actions[: len(expected)] == pytest.approx(expected, abs=1e-4)
    rest = np.clip(mean, loaded.card.action_low, loaded.card.action_high)
    assert proposed.actions[len(expected) :] == pytest.approx(
        np.tile(rest, (len(proposed.actions) - len(expected), 1)), abs=1e-4
    )
    assert warm.actions[0] == pytest.approx(np.zeros(2), abs=1e-5)
    assert by_latent.actions == pytest.approx(np.tile(rest, (horizon * ACTION_BLOCK, 1)), abs=1e-4)


async def test_gradients_descend_the_distance(folder: Path) -> None:
    settings = {"name": "gradient", "samples": 4, "iterations": 4}
    short, by_distance, by_latent = await plans(
        folder,
        {"solver": settings | {"iterations": 1, "objective": "distance"}},
        {"solver": settings | {"objective": "distance"}},
        {"solver": settings | {"objective": "latent"}},
    )
    assert by_distance.cost is not None
    assert short.cost is not None
    assert by_distance.cost < short.cost
    for answer in (by_distance, by_latent):
        assert answer.distance is not None
        expected = distances(folder, answer)
        assert (answer.distance.start, answer.distance.end) == pytest.approx(expected, rel=1e-3)


async def test_the_card_says_the_default(folder: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(folder)
    card = replace(loaded.card, solver=replace(loaded.card.solver, objective="distance"))
    checkpoint.save(tmp_path, loaded.model, card, distance=loaded.distance)
    [answer] = await plans(tmp_path, {"solver": SMALL_SOLVER})
    assert answer.solver["objective"] == "distance"
    [named] = await plans(folder, {"solver": SMALL_SOLVER | {"objective": "distance"}})
    assert np.array_equal(answer.actions, named.actions)


async def test_without_a_distance_there_is_none_in_answers_and_it_cannot_be_the_objective(
    model_folder: Path,
) -> None:
    [answer] = await plans(model_folder, {})
    assert answer.distance is None
    assert answer.solver["objective"] == "latent"
    with pytest.raises(InvalidRequest) as caught:
        await plans(model_folder, {"solver": solver("distance")})
    assert caught.value.detail == (
        "solver.objective: received 'distance', expected latent: random has no learned distance; "
        "`lewm models distance MODEL DATA` trains one"
    )


async def test_the_actions_of_a_fallback_have_no_distance(folder: Path) -> None:
    async with running_planner(folder) as running:
        answer = await running.plan(deadline_ms=0.001, fallback={"controller": "hold"})
    assert answer.status == "fallback"
    assert answer.distance is None
