"""The embedded model tells faults from ordinary frames: the targets, on a few requests."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.in_process import load_like_server
from benchmarks.latent_health import faults
from benchmarks.latent_health.__main__ import RESULTS_FILE, markdown_tables
from benchmarks.latent_health.cost import measure_cost
from benchmarks.latent_health.measure import count_false_alarms, detect
from benchmarks.latent_health.pictures import draw
from benchmarks.latent_health.requests import (
    Requests,
    encode,
    encode_motion,
    make_requests,
    training_motion,
)
from benchmarks.results import ROOT
from lewm_models.environments import two_room
from lewm_models.evaluation.faults import CAMERA_FAULTS
from lewm_serve.registry.registry import LoadedModel

SEED = 800_000
EPISODES, STEPS, SAMPLE_SIZE = 8, 40, 80


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """The embedded model."""
    return load_like_server(backend="onnx", threads=1)


@pytest.fixture(scope="module")
def ordinary(model: LoadedModel) -> Requests:
    """Requests of robots that move as in the training data."""
    motion = training_motion(EPISODES, STEPS, SEED)
    return make_requests(model, motion, encode_motion(model, motion))


@pytest.fixture(scope="module")
def sample(ordinary: Requests) -> Requests:
    """A few of them."""
    return ordinary.select(torch.randperm(len(ordinary), generator=generator())[:SAMPLE_SIZE])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_ordinary_requests_are_ok(model: LoadedModel, ordinary: Requests) -> None:
    alarms = count_false_alarms(model, "ordinary", ordinary, episodes=EPISODES, robots=4)
    assert (alarms.requests, alarms.alarms) == (EPISODES * (STEPS - 9), 0)
    assert not any(alarms.by_kind.values())


@pytest.mark.parametrize("name", ["black", "pure noise"])
def test_a_camera_that_shows_nothing_is_detected(
    model: LoadedModel, sample: Requests, name: str
) -> None:
    frames = CAMERA_FAULTS[name](two_room.render(sample.positions[:, -1]), generator())
    detection = detect(model, name, sample.with_newest(encode(model, frames)))
    assert detection.rates["all"] == 1


def test_surprise_alone_detects_teleports(model: LoadedModel, sample: Requests) -> None:
    *_, (name, far) = faults.teleports(model, sample, generator())
    detection = detect(model, name, far)
    assert name == "teleport of 50 px and more"
    assert detection.rates["all"] == detection.rates["surprise"] >= 0.95


def test_surprise_detects_robots_that_pass_through_the_wall(model: LoadedModel) -> None:
    stopped, through = faults.wall_crossings(model, SAMPLE_SIZE, generator())
    assert detect(model, "stopped", stopped).rates["all"] == 0
    assert detect(model, "through", through).rates["all"] >= 0.95


def test_the_cost_of_the_monitor_is_a_part_of_the_plan(
    model: LoadedModel, sample: Requests
) -> None:
    ordinary, with_fallback = measure_cost(model, sample, series=1)
    assert (ordinary.kind, with_fallback.kind) == ("ordinary", "with a fallback named")
    for cost in (ordinary, with_fallback):
        # How much longer it takes than a bare plan depends on the machine, but its parts do not.
        assert cost.share == pytest.approx(cost.plan_ms / cost.bare_ms - 1)
        assert 0 < cost.assess_ms < cost.plan_ms
        assert 0 < cost.predict_ms < cost.plan_ms
        assert cost.runs == 10


def test_the_results_of_the_repository_can_be_shown(tmp_path: Path) -> None:
    results = json.loads(RESULTS_FILE.read_text())
    text = markdown_tables(results)
    for part in ("ordinary", "faults"):
        assert all(f"| {row['name']} |" in text for row in results[part])
    draw(results, tmp_path)
    sizes = {path.name: picture_size(path) for path in tmp_path.iterdir()}
    published = ROOT / "docs" / "latent-health"
    assert sizes == {path.name: picture_size(path) for path in published.iterdir()}
