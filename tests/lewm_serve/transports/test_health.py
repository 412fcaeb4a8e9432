"""The health of the embedded model as robots and operators see it."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lewm_client import FallbackReport, Health, PlannerClient
from lewm_models.environments import two_room
from lewm_models.environments.two_room_policy import evaluation_generator, simulate_trajectories
from lewm_models.environments.two_room_waypoint import WaypointController
from lewm_serve.cli.local_server import LocalServer, local_server
from tests.lewm_serve.support.drivers import Driver
from tests.lewm_serve.support.frames import ACTION_BLOCK, pixels
from tests.lewm_serve.support.requests import plan, rows

Frames = NDArray[np.uint8]
Actions = NDArray[np.float32]

QUICK_SOLVER = {"name": "cem", "samples": 4, "iterations": 1, "elites": 2, "horizon": 1}


@pytest.fixture(scope="module")
def embedded() -> Iterator[LocalServer]:
    """A server of the embedded model."""
    with local_server() as server:
        yield server


@pytest.fixture(scope="module")
def robot(embedded: LocalServer) -> Iterator[PlannerClient]:
    with PlannerClient(embedded.target) as client:
        yield client


@pytest.fixture(scope="module")
def moves() -> tuple[Frames, Actions]:
    """Three frames of a robot, one action block apart, then its goal; and the actions between."""
    positions, actions = simulate_trajectories(1, 4 * ACTION_BLOCK, evaluation_generator(5))
    steps = [0, ACTION_BLOCK, 2 * ACTION_BLOCK, 4 * ACTION_BLOCK]
    frames = two_room.render(positions[steps, 0])
    return frames.numpy(), actions[: 2 * ACTION_BLOCK, 0].clamp(-1, 1).numpy()


def health_of(robot: PlannerClient, frames: Frames, goal: Frames, past_actions: Actions) -> Health:
    answer = robot.plan(
        list(frames), goal=goal, past_actions=past_actions, solver=QUICK_SOLVER, seed=0
    )
    return answer.health


def test_a_usual_history_is_ok(robot: PlannerClient, moves: tuple[Frames, Actions]) -> None:
    frames, past_actions = moves
    health = health_of(robot, frames[:3], frames[3], past_actions)
    assert (health.status, health.reasons) == ("ok", ())
    assert health.latent_mahalanobis is not None
    # The surprise is the distance of the newest latent from the model's own one-step prediction.
    ids = [latent.latent_id for latent in robot.encode(list(frames[:3])).latents]
    first_actions, last_actions = past_actions[:ACTION_BLOCK], past_actions[ACTION_BLOCK:]
    predicted = robot.predict(ids[:2], past_actions=first_actions, actions=last_actions)
    newest = robot.encode([ids[2]]).latents[0]
    surprise = float(np.linalg.norm(newest.latent - predicted.latents[0]))
    assert health.surprise == pytest.approx(surprise, rel=1e-3)
    predicting = robot.predict(ids, past_actions=past_actions, actions=first_actions)
    assert predicting.health.surprise == pytest.approx(surprise, rel=1e-3)


def test_encoded_frames_have_scores_but_no_surprise(
    robot: PlannerClient, moves: tuple[Frames, Actions]
) -> None:
    frames, _ = moves
    answer = robot.encode(list(frames))
    assert (answer.health.status, answer.health.surprise) == ("ok", None)
    zscores = [latent.norm_zscore for latent in answer.latents]
    assert None not in zscores
    most_unusual = max(zscores, key=lambda zscore: abs(zscore or 0))
    assert answer.health.latent_norm_zscore == pytest.approx(most_unusual, rel=1e-5)


def test_a_dead_camera_a_jump_and_a_wrong_goal_are_anomalous(
    embedded: LocalServer, robot: PlannerClient, moves: tuple[Frames, Actions]
) -> None:
    frames, past_actions = moves
    black = np.zeros_like(frames[0])
    dead_camera = health_of(robot, np.stack([*frames[:2], black]), frames[3], past_actions)
    assert dead_camera.status == "anomalous"
    assert dead_camera.reasons[0].startswith("frames[2]: latent norm")

    elsewhere = two_room.render(torch.tensor([[190.0, 190.0]])).numpy()
    jump = health_of(robot, np.concatenate([frames[:2], elsewhere]), frames[3], past_actions)
    assert jump.status == "anomalous"
    [reason] = jump.reasons
    assert reason.startswith("frames[2]: distance of the latent from the predicted one")

    wrong_goal = health_of(robot, frames[:3], black, past_actions)
    assert wrong_goal.status == "anomalous"
    assert all(reason.startswith("goal") for reason in wrong_goal.reasons)

    metrics = httpx.get(f"{embedded.url}/metrics").text
    for kind, count in {"norm": 2, "mahalanobis": 2, "surprise": 2, "sigreg": 0}.items():
        assert f'lewm_anomalies_total{{kind="{kind}",model="two-room"}} {count}.0' in metrics


def test_with_a_dead_camera_the_waypoint_controller_answers(
    embedded: LocalServer, robot: PlannerClient, moves: tuple[Frames, Actions]
) -> None:
    frames, _ = moves
    state = [50.0, 60.0, 180.0, 190.0]
    waypoint = {"controller": "waypoint", "state": state}
    black = np.zeros_like(frames[0])
    answer = robot.plan([black], frames[3], solver=QUICK_SOLVER, seed=0, fallback=waypoint)
    assert (answer.status, answer.health.status) == ("fallback", "anomalous")
    assert answer.fallback == FallbackReport("waypoint", "anomalous")
    assert answer.cost is None
    expected = WaypointController().actions(np.array(state, np.float32), ACTION_BLOCK)
    assert np.array_equal(answer.actions, expected)
    usual = robot.plan([frames[2]], frames[3], solver=QUICK_SOLVER, seed=0, fallback=waypoint)
    assert (usual.status, usual.fallback) == ("completed", None)

    metrics = httpx.get(f"{embedded.url}/metrics").text
    labels = 'controller="waypoint",model="two-room",reason='
    for reason, count in {"anomalous": 1, "deadline": 0, "engine_failure": 0}.items():
        assert f'lewm_fallbacks_total{{{labels}"{reason}"}} {count}.0' in metrics


def test_a_model_without_a_calibration_reports_its_surprise(driver: Driver) -> None:
    request = plan(frames=[pixels(0), pixels(1)], past_actions=rows(ACTION_BLOCK))
    health = driver.send("plan", request).document["health"]
    assert health["status"] == "uncalibrated"
    assert health["surprise"] > 0
    assert (health["latent_norm_zscore"], health["latent_mahalanobis"]) == (None, None)
