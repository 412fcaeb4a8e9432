"""The economical roll-out gives the numbers of the plain one, whichever kernel runs it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.config import LeWMConfig
from models.lewm import LeWM
from models.random_weights import random_model
from service.backends.onnx_kernel import OnnxKernel
from service.backends.rollout import Kernel, Rollout
from service.backends.shards import Shards
from service.backends.torch_kernel import TorchKernel

TOLERANCE = 1e-5

ODD = LeWMConfig(
    image_size=28,
    patch_size=14,
    encoder_width=24,
    encoder_depth=1,
    encoder_heads=2,
    encoder_mlp=32,
    latent_dim=16,
    projector_mlp=32,
    history=4,
    predictor_width=24,
    predictor_output=20,
    predictor_depth=3,
    predictor_heads=1,
    predictor_head_dim=24,
    predictor_mlp=32,
    pred_proj_mlp=32,
    action_dim=3,
    action_block=2,
    action_mlp=16,
)

KERNELS: dict[str, Callable[[LeWM], Kernel[Any, Any]]] = {
    "torch": TorchKernel,
    "onnx": lambda model: OnnxKernel(model, torch.device("cpu")),
}

Setup = tuple[LeWM, Kernel[Any, Any]]


@pytest.fixture(scope="module", params=[ODD, LeWMConfig(predictor_depth=2, encoder_depth=1)])
def model(request: pytest.FixtureRequest) -> LeWM:
    return random_model(request.param)


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest, model: LeWM) -> Kernel[Any, Any]:
    return KERNELS[request.param](model)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("context", [1, 2, 3])
@torch.no_grad()
def test_it_agrees_with_the_model(
    model: LeWM, kernel: Kernel[Any, Any], context: int, horizon: int
) -> None:
    config = model.config
    generator = torch.Generator().manual_seed(context)
    latents = torch.randn(2, context, config.latent_dim, generator=generator)
    past = torch.randn(2, context - 1, config.block_width, generator=generator)
    candidates = torch.randn(2, 6, horizon, config.block_width, generator=generator)
    plans = zip(latents, past, candidates, strict=True)
    expected = torch.stack([model.rollout(*plan) for plan in plans])
    for threads in (1, 3):
        predicted = Rollout(kernel, Shards(threads, smallest=2))(latents, past, candidates)
        assert torch.allclose(predicted, expected, atol=TOLERANCE)


@torch.no_grad()
def test_past_actions_matter(model: LeWM, kernel: Kernel[Any, Any]) -> None:
    config = model.config
    latents = torch.ones(1, 2, config.latent_dim)
    candidates = torch.zeros(1, 4, 2, config.block_width)
    rollout = Rollout(kernel, Shards(1))
    first, second = (
        rollout(latents, torch.full((1, 1, config.block_width), value), candidates)
        for value in (-1.0, 1.0)
    )
    assert (first - second).abs().max() > 100 * TOLERANCE
