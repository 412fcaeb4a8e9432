"""The model against the results of the field's own library, see `tests/parity/README.md`."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lewm_models.importing import import_checkpoint
from lewm_models.lewm import LeWM, Projector
from lewm_models.loss import sigreg, sigreg_per_direction
from tests.lewm_models.examples import PARITY_FOLDER

CARD = {
    "name": "parity",
    "action_dim": 2,
    "action_block": 7,
    "action_mean": [0.0, 0.0],
    "action_std": [1.0, 1.0],
    "action_low": [-1.0, -1.0],
    "action_high": [1.0, 1.0],
}

LATENT_TOLERANCE = 1e-5
COST_TOLERANCE = 1e-4


def load(folder: str = ".") -> LeWM:
    return import_checkpoint(PARITY_FOLDER / folder, CARD)[0]


@pytest.fixture(scope="module", params=[".", "transformers4"])
def model(request: pytest.FixtureRequest) -> LeWM:
    return load(request.param)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(PARITY_FOLDER / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def largest_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


def test_latents(model: LeWM, expected: dict[str, Tensor]) -> None:
    assert largest_error(model.encode(expected["frames"]), expected["latents"]) < LATENT_TOLERANCE
    assert (
        largest_error(model.encode(expected["goal"][None])[0], expected["goal_latent"])
        < LATENT_TOLERANCE
    )


def test_predictions(model: LeWM, expected: dict[str, Tensor]) -> None:
    actions = torch.cat([expected["action_history"], expected["candidates"][0, :1]])
    predicted = model.predict(expected["latents"][None, :3], actions[None])
    assert largest_error(predicted[0], expected["predict_context3"]) < LATENT_TOLERANCE


@pytest.mark.parametrize("context", [1, 3])
def test_rollouts_and_costs(model: LeWM, expected: dict[str, Tensor], context: int) -> None:
    past = expected["action_history"][: context - 1]
    predicted = model.rollout(expected["latents"][:context], past, expected["candidates"])
    assert largest_error(predicted, expected[f"rollout_context{context}"]) < LATENT_TOLERANCE
    costs = (predicted[:, -1] - expected["goal_latent"]).square().sum(-1)
    assert largest_error(costs, expected[f"cost_context{context}"]) < COST_TOLERANCE


def test_sigreg(expected: dict[str, Tensor]) -> None:
    latents, directions = expected["sigreg_z"], expected["sigreg_directions"]
    statistics = sigreg_per_direction(latents, directions)
    assert largest_error(statistics, expected["sigreg_per_time_and_direction"]) < COST_TOLERANCE
    assert largest_error(sigreg(latents, directions), expected["sigreg"]) < COST_TOLERANCE


def swap_epsilons(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 1e-5 if norm.eps < 1e-5 else 1e-12


def wrong_encoder_epsilons(model: LeWM) -> None:
    swap_epsilons(model.encoder)


def wrong_predictor_epsilons(model: LeWM) -> None:
    swap_epsilons(model.predictor)


def approximate_gelu(model: LeWM) -> None:
    assert isinstance(model.projector, Projector)
    model.projector.net[2] = nn.GELU(approximate="tanh")


def forgotten_gate_bias(model: LeWM) -> None:
    model.get_parameter("predictor.transformer.layers.1.adaLN_modulation.1.bias").zero_()


def training_mode(model: LeWM) -> None:
    model.train()


@pytest.mark.parametrize(
    "mistake",
    [
        wrong_encoder_epsilons,
        wrong_predictor_epsilons,
        approximate_gelu,
        forgotten_gate_bias,
        training_mode,
    ],
)
def test_a_small_mistake_exceeds_the_tolerance(
    expected: dict[str, Tensor], mistake: Callable[[LeWM], None]
) -> None:
    wrong = load()
    mistake(wrong)
    latents = wrong.encode(expected["frames"])
    rollout = wrong.rollout(latents[:1], expected["action_history"][:0], expected["candidates"])
    assert largest_error(rollout, expected["rollout_context1"]) > LATENT_TOLERANCE
