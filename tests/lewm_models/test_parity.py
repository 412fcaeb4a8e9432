"""The model against the figures of the field's own library: see `tests/parity/README.md`."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lewm_models.importing import import_checkpoint
from lewm_models.lewm import LeWM
from lewm_models.objective import sigreg, sigreg_per_direction
from tests.lewm_models.examples import PARITY

CARD = {
    "name": "parity",
    "action_dim": 2,
    "action_block": 7,
    "action_mean": [0.0, 0.0],
    "action_std": [1.0, 1.0],
    "action_low": [-1.0, -1.0],
    "action_high": [1.0, 1.0],
}

LATENTS = 1e-5
COSTS = 1e-4


def load(spelling: str = ".") -> LeWM:
    return import_checkpoint(PARITY / spelling, CARD)[0]


@pytest.fixture(scope="module", params=[".", "transformers4"])
def model(request: pytest.FixtureRequest) -> LeWM:
    return load(request.param)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(PARITY / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


def test_latents(model: LeWM, expected: dict[str, Tensor]) -> None:
    assert error(model.encode(expected["frames"]), expected["latents"]) < LATENTS
    assert error(model.encode(expected["goal"][None])[0], expected["goal_latent"]) < LATENTS


def test_predictions(model: LeWM, expected: dict[str, Tensor]) -> None:
    actions = torch.cat([expected["action_history"], expected["candidates"][0, :1]])
    predicted = model.predict(expected["latents"][None, :3], actions[None])
    assert error(predicted[0], expected["predict_context3"]) < LATENTS


@pytest.mark.parametrize("context", [1, 3])
def test_rollouts_and_their_costs(model: LeWM, expected: dict[str, Tensor], context: int) -> None:
    past = expected["action_history"][: context - 1]
    predicted = model.rollout(expected["latents"][:context], past, expected["candidates"])
    assert error(predicted, expected[f"rollout_context{context}"]) < LATENTS
    costs = (predicted[:, -1] - expected["goal_latent"]).square().sum(-1)
    assert error(costs, expected[f"cost_context{context}"]) < COSTS


def test_sigreg(expected: dict[str, Tensor]) -> None:
    latents, directions = expected["sigreg_z"], expected["sigreg_directions"]
    each = sigreg_per_direction(latents, directions)
    assert error(each, expected["sigreg_per_time_and_direction"]) < COSTS
    assert error(sigreg(latents, directions), expected["sigreg"]) < COSTS


def swapped_epsilons(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 1e-5 if norm.eps < 1e-5 else 1e-12


def encoder_epsilons(model: LeWM) -> None:
    swapped_epsilons(model.encoder)


def predictor_epsilons(model: LeWM) -> None:
    swapped_epsilons(model.predictor)


def approximate_gelu(model: LeWM) -> None:
    model.projector.net[2] = nn.GELU(approximate="tanh")


def forgotten_gate_bias(model: LeWM) -> None:
    model.get_parameter("predictor.transformer.layers.1.adaLN_modulation.1.bias").zero_()


def training_mode(model: LeWM) -> None:
    model.train()


@pytest.mark.parametrize(
    "mistake",
    [encoder_epsilons, predictor_epsilons, approximate_gelu, forgotten_gate_bias, training_mode],
)
def test_the_tolerance_tells_a_mistake(
    expected: dict[str, Tensor], mistake: Callable[[LeWM], None]
) -> None:
    wrong = load()
    mistake(wrong)
    latents = wrong.encode(expected["frames"])
    rollout = wrong.rollout(latents[:1], expected["action_history"][:0], expected["candidates"])
    assert error(rollout, expected["rollout_context1"]) > LATENTS
