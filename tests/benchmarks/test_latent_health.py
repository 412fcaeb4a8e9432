"""The embedded model tells faults from ordinary frames: the targets, on a few requests."""

import pytest
import torch

from benchmarks.latent_health import faults
from benchmarks.latent_health.cost import cost
from benchmarks.latent_health.measure import detection, false_alarms
from benchmarks.latent_health.requests import (
    Requests,
    data_motion,
    encode,
    encode_motion,
)
from benchmarks.served import load_served
from lewm_models.checkpoint import PRETRAINED
from lewm_models.environments import two_room
from lewm_models.evaluation.faults import CAMERA_FAULTS
from lewm_serve.registry.registry import LoadedModel

SEED = 800_000
EPISODES, STEPS, SAMPLE = 8, 40, 80


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_served(PRETRAINED / "two-room", backend="onnx", threads=1)


@pytest.fixture(scope="module")
def ordinary(model: LoadedModel) -> Requests:
    motion = data_motion(EPISODES, STEPS, SEED)
    latents = encode_motion(model, motion)
    alarms, asked = false_alarms(model, "ordinary", motion, latents, robots=4, every=1)
    assert (alarms.requests, alarms.alarms) == (EPISODES * (STEPS - 9), 0)
    return asked


@pytest.fixture(scope="module")
def sample(ordinary: Requests) -> Requests:
    chosen = torch.randperm(len(ordinary), generator=generator())[:SAMPLE]
    return Requests(ordinary.latents[chosen], ordinary.actions[chosen], ordinary.positions[chosen])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


@pytest.mark.parametrize("name", ["black", "pure noise"])
def test_a_camera_that_shows_nothing(model: LoadedModel, sample: Requests, name: str) -> None:
    frames = CAMERA_FAULTS[name](two_room.render(sample.positions[:, -1]), generator())
    found = detection(model, name, sample.with_newest(encode(model, frames)))
    assert found.rates["all"] == 1


def test_what_surprise_alone_can_see(model: LoadedModel, sample: Requests) -> None:
    *_, (name, far) = faults.teleports(model, sample, generator())
    found = detection(model, name, far)
    assert name == "teleport of 50 px and more"
    assert found.rates["all"] == found.rates["surprise"] >= 0.95
    stopped, through = faults.wall_crossings(model, SAMPLE, generator())
    assert detection(model, "stopped", stopped).rates["all"] == 0
    assert detection(model, "through", through).rates["all"] >= 0.95


def test_the_monitor_takes_a_part_of_the_plan(model: LoadedModel, sample: Requests) -> None:
    ordinary, guarded = cost(model, sample, 1)
    assert (ordinary.kind, guarded.kind) == ("ordinary", "with a fallback named")
    for spent in (ordinary, guarded):
        # How much longer it takes than a bare plan is the machine's business; its parts are not.
        assert spent.share == pytest.approx(spent.plan_ms / spent.bare_ms - 1)
        assert 0 < spent.assess_ms < spent.plan_ms
        assert 0 < spent.predict_ms < spent.plan_ms
        assert spent.runs == 10
