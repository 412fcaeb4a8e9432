"""Every backend against the results of the public library: see `tests/parity/README.md`."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.importing import import_checkpoint
from lewm_models.lewm import LeWM
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.onnx import OnnxBackend
from lewm_serve.backends.torch import TorchBackend
from tests.lewm_models.examples import PARITY_FOLDER, import_card

LATENT_TOLERANCE = 1e-5
COST_TOLERANCE = 1e-4
CPU = torch.device("cpu")

BACKENDS: dict[str, Callable[[LeWM], Backend]] = {
    "torch": lambda model: TorchBackend(model, CPU),
    "onnx": lambda model: OnnxBackend(model, CPU),
}


@pytest.fixture(scope="module")
def model() -> LeWM:
    return import_checkpoint(PARITY_FOLDER, import_card(action_block=7))[0]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, model: LeWM) -> Backend:
    backend = BACKENDS[request.param](model)
    backend.warm_up()
    return backend


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(PARITY_FOLDER / "expected.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


def test_latents(backend: Backend, expected: dict[str, Tensor]) -> None:
    assert error(backend.encode(expected["frames"]), expected["latents"]) < LATENT_TOLERANCE
    assert (
        error(backend.encode(expected["goal"][None])[0], expected["goal_latent"]) < LATENT_TOLERANCE
    )


@pytest.mark.parametrize("context", [1, 2, 3])
def test_rollouts_and_their_costs(
    backend: Backend, model: LeWM, expected: dict[str, Tensor], context: int
) -> None:
    plan = (
        expected["latents"][:context],
        expected["action_history"][: context - 1],
        expected["candidates"],
    )
    # The library's results are of contexts 1 and 3; for 2, the model is the reference.
    with torch.no_grad():
        reference = expected.get(f"rollout_context{context}", model.rollout(*plan))
    predicted = backend.rollout(*(part.unsqueeze(0) for part in plan))[0]
    assert error(predicted, reference) < LATENT_TOLERANCE
    costs, reference_costs = (
        (latents[:, -1] - expected["goal_latent"]).square().sum(-1)
        for latents in (predicted, reference)
    )
    assert error(costs, expected.get(f"cost_context{context}", reference_costs)) < COST_TOLERANCE


@pytest.mark.parametrize("context", [1, 2, 3])
def test_plans_rolled_out_together_keep_their_own_context(
    backend: Backend, expected: dict[str, Tensor], context: int
) -> None:
    latents = torch.stack([expected["latents"][start : start + context] for start in (0, 1)])
    past = torch.stack([expected["action_history"][: context - 1]] * 2)
    past[1] *= -1
    candidates = torch.stack([expected["candidates"], expected["candidates"].flip(0)])
    together = backend.rollout(latents, past, candidates)
    for plan in (0, 1):
        alone = backend.rollout(*(part[plan : plan + 1] for part in (latents, past, candidates)))
        assert error(together[plan], alone[0]) < LATENT_TOLERANCE
