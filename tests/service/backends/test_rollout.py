"""The economical roll-out gives the numbers of the plain one."""

import pytest
import torch

from models.config import LeWMConfig
from models.random_weights import random_model
from service.backends.rollout import Rollout

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


@pytest.fixture(scope="module", params=[ODD, LeWMConfig(predictor_depth=2, encoder_depth=1)])
def rollout(request: pytest.FixtureRequest) -> Rollout:
    return Rollout(random_model(request.param))


@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("context", [1, 2, 3])
@torch.inference_mode()
def test_it_agrees_with_the_model(rollout: Rollout, context: int, horizon: int) -> None:
    config = rollout.model.config
    generator = torch.Generator().manual_seed(context)
    latents = torch.randn(2, context, config.latent_dim, generator=generator)
    past = torch.randn(2, context - 1, config.block_width, generator=generator)
    candidates = torch.randn(2, 6, horizon, config.block_width, generator=generator)
    plans = zip(latents, past, candidates, strict=True)
    expected = torch.stack([rollout.model.rollout(*plan) for plan in plans])
    assert torch.allclose(rollout(latents, past, candidates), expected, atol=TOLERANCE)


@torch.inference_mode()
def test_past_actions_matter(rollout: Rollout) -> None:
    config = rollout.model.config
    latents = torch.ones(1, 2, config.latent_dim)
    candidates = torch.zeros(1, 4, 2, config.block_width)
    first, second = (
        rollout(latents, torch.full((1, 1, config.block_width), value), candidates)
        for value in (-1.0, 1.0)
    )
    assert (first - second).abs().max() > 100 * TOLERANCE
