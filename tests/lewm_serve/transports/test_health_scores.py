"""The embedded model's health as robots and operators get it, over the wire."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lewm_client import FallbackReport, Health, PlannerClient
from lewm_models.environments import two_room
from lewm_models.environments.two_room_policy import simulate_trajectories
from lewm_models.environments.two_room_waypoint import WaypointController
from lewm_models.evaluation.protocol import evaluation_generator
from lewm_serve.cli.local_server import LocalServer, local_server
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.drivers import Driver
from tests.lewm_serve.support.frames import ACTION_BLOCK, pixels, rows

Frames = NDArray[np.uint8]
Actions = NDArray[np.float32]

QUICK = {"name": "cem", "samples": 4, "iterations": 1, "elites": 2, "horizon": 1}


@pytest.fixture(scope="module")
def embedded() -> Iterator[LocalServer]:
    with local_server() as server:
        yield server


@pytest.fixture(scope="module")
def robot(embedded: LocalServer) -> Iterator[PlannerClient]:
    with PlannerClient(embedded.target) as client:
        yield client


@pytest.fixture(scope="module")
def moves() -> tuple[Frames, Actions]:
    """Three frames of a robot, one action block apart, one of a goal, and the actions between."""
    positions, actions = simulate_trajectories(1, 4 * ACTION_BLOCK, evaluation_generator(5))
    shown = two_room.render(positions[[0, ACTION_BLOCK, 2 * ACTION_BLOCK, 4 * ACTION_BLOCK], 0])
    return shown.numpy(), actions[: 2 * ACTION_BLOCK, 0].clamp(-1, 1).numpy()


def health(robot: PlannerClient, frames: Frames, goal: Frames, past: Actions) -> Health:
    answer = robot.plan(list(frames), goal=goal, past_actions=past, solver=QUICK, seed=0)
    return answer.health


def test_an_ordinary_history_is_ok(robot: PlannerClient, moves: tuple[Frames, Actions]) -> None:
    frames, past = moves
    told = health(robot, frames[:3], frames[3], past)
    assert (told.status, told.reasons) == ("ok", ())
    assert told.latent_mahalanobis is not None
    # The newest latent against that which the model itself predicts for those actions.
    names = [latent.latent_id for latent in robot.encode(list(frames[:3])).latents]
    predicted = robot.predict(names[:2], past_actions=past[:ACTION_BLOCK], actions=past[ACTION_BLOCK:])
    seen = robot.encode([names[2]]).latents[0]
    surprise = float(np.linalg.norm(seen.latent - predicted.latents[0]))
    assert told.surprise == pytest.approx(surprise, rel=1e-3)
    assert robot.predict(names, past_actions=past, actions=past[:ACTION_BLOCK]).health.surprise == (
        pytest.approx(surprise, rel=1e-3)
    )


def test_one_frame_cannot_surprise(robot: PlannerClient, moves: tuple[Frames, Actions]) -> None:
    frames, _ = moves
    answer = robot.encode(list(frames))
    assert (answer.health.status, answer.health.surprise) == ("ok", None)
    zscores = [latent.norm_zscore for latent in answer.latents]
    assert None not in zscores
    furthest = max(zscores, key=lambda score: abs(score or 0))
    assert answer.health.latent_norm_zscore == pytest.approx(furthest, rel=1e-5)


def test_a_dead_camera_a_jump_and_a_wrong_goal(
    embedded: LocalServer, robot: PlannerClient, moves: tuple[Frames, Actions]
) -> None:
    frames, past = moves
    black = health(robot, np.stack([*frames[:2], np.zeros_like(frames[0])]), frames[3], past)
    assert black.status == "anomalous"
    assert black.reasons[0].startswith("frames[2]: latent norm")

    elsewhere = two_room.render(torch.tensor([[190.0, 190.0]])).numpy()
    jumped = health(robot, np.concatenate([frames[:2], elsewhere]), frames[3], past)
    assert jumped.status == "anomalous"
    [reason] = jumped.reasons
    assert reason.startswith("frames[2]: distance of the latent from the predicted one")

    goal = health(robot, frames[:3], np.zeros_like(frames[0]), past)
    assert goal.status == "anomalous"
    assert all(reason.startswith("goal") for reason in goal.reasons)

    figures = httpx.get(f"{embedded.url}/metrics").text
    for kind, count in {"norm": 2, "mahalanobis": 2, "surprise": 2, "sigreg": 0}.items():
        assert f'lewm_anomalies_total{{kind="{kind}",model="two-room"}} {count}.0' in figures


def test_a_robot_with_a_dead_camera_drives_by_what_it_knows(
    embedded: LocalServer, robot: PlannerClient, moves: tuple[Frames, Actions]
) -> None:
    frames, _ = moves
    state = [50.0, 60.0, 180.0, 190.0]
    wanted = {"controller": "waypoint", "state": state}
    black = np.zeros_like(frames[0])
    answer = robot.plan([black], frames[3], solver=QUICK, seed=0, fallback=wanted)
    assert (answer.status, answer.health.status) == ("fallback", "anomalous")
    assert answer.fallback == FallbackReport("waypoint", "anomalous")
    assert answer.cost is None
    expected = WaypointController().actions(np.array(state, np.float32), ACTION_BLOCK)
    assert np.array_equal(answer.actions, expected)
    well = robot.plan([frames[2]], frames[3], solver=QUICK, seed=0, fallback=wanted)
    assert (well.status, well.fallback) == ("completed", None)

    figures = httpx.get(f"{embedded.url}/metrics").text
    labels = 'controller="waypoint",model="two-room",reason='
    for reason, count in {"anomalous": 1, "deadline": 0, "engine_failure": 0}.items():
        assert f'lewm_fallbacks_total{{{labels}"{reason}"}} {count}.0' in figures


def test_an_uncalibrated_model_says_so_and_is_surprised_all_the_same(driver: Driver) -> None:
    request = plan(frames=[pixels(0), pixels(1)], past_actions=rows(ACTION_BLOCK))
    told = driver.send("plan", request).document["health"]
    assert told["status"] == "uncalibrated"
    assert told["surprise"] > 0
    assert (told["latent_norm_zscore"], told["latent_mahalanobis"]) == (None, None)
