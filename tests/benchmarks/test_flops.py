"""The arithmetic that speed is measured against."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import least_plan_flops, least_rollout_flops, plain_plan_flops
from benchmarks.flops import plain_rollout_flops as plain_flops
from benchmarks.plain_rollout import plain_rollout
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_model
from lewm_serve.backends.rollout import Rollout
from lewm_serve.backends.shards import Shards
from lewm_serve.backends.torch_kernel import TorchKernel


def test_the_papers_plan_is_known() -> None:
    paper = PRESETS["paper"]
    assert least_plan_flops(paper, 300, 30, 5) == pytest.approx(1.65e12, rel=0.005)
    assert plain_plan_flops(paper, 300, 30, 5) == pytest.approx(2.5e12, rel=0.02)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5])
def test_the_plain_count_is_what_torch_counts(horizon: int) -> None:
    config = PRESETS["edge"]
    candidates = torch.zeros(2, horizon, config.block_width)
    # torch does not count what its fused attention does on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        plain_rollout(random_model(config), torch.zeros(1, config.latent_dim), candidates)
    assert counter.get_total_flops() == 2 * plain_flops(config, horizon)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_least_count_is_what_the_savings_leave(context: int) -> None:
    config = PRESETS["edge"]
    samples, horizon = 512, 5
    latents = torch.zeros(1, context, config.latent_dim)
    past = torch.zeros(1, context - 1, config.block_width)
    candidates = torch.zeros(1, samples, horizon, config.block_width)
    rollout = Rollout(TorchKernel(random_model(config)), Shards(1))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        rollout(latents, past, candidates)
    # torch sees matrix products alone; attention is written out, and what is shared comes once.
    products = counter.get_total_flops() / samples
    assert products == pytest.approx(least_rollout_flops(config, horizon, context), rel=0.03)


def test_the_plain_rollout_is_the_reference() -> None:
    config = PRESETS["edge"]
    model = random_model(config)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, config.latent_dim, generator=generator)
    candidates = torch.randn(3, 5, config.block_width, generator=generator)
    with torch.inference_mode():
        expected = model.rollout(latents, torch.empty(0, config.block_width), candidates)[:, -1]
    assert torch.allclose(plain_rollout(model, latents, candidates), expected, atol=1e-5)
