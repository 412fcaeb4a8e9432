"""The arithmetic that the speed of a plan is compared with."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import (
    large_product,
    large_product_flops,
    least_plan_flops,
    least_rollout_flops,
    plain_plan_flops,
    plain_rollout_flops,
)
from benchmarks.in_process import plain_rollout
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_model
from lewm_serve.backends.rollout import RowThreads, SharedContextRollout
from lewm_serve.backends.torch import TorchKernel


def test_the_flops_of_the_paper_plan() -> None:
    shape = {"samples": 300, "iterations": 30, "horizon": 5}
    assert least_plan_flops(PRESETS["paper"], **shape) == pytest.approx(1.65e12, rel=0.005)
    assert plain_plan_flops(PRESETS["paper"], **shape) == pytest.approx(2.5e12, rel=0.02)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5])
def test_the_plain_count_is_what_torch_counts(horizon: int) -> None:
    config = PRESETS["edge"]
    candidates = torch.zeros(2, horizon, config.block_width)
    latents, past_actions = torch.zeros(1, config.latent_dim), candidates[0, :0]
    # torch does not count what its fused attention does on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        plain_rollout(random_model(config), latents, past_actions, candidates)
    assert counter.get_total_flops() == 2 * plain_rollout_flops(config, horizon)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_least_count_is_what_a_rollout_with_all_savings_needs(context: int) -> None:
    config = PRESETS["edge"]
    samples, horizon = 512, 5
    latents = torch.zeros(1, context, config.latent_dim)
    past_actions = torch.zeros(1, context - 1, config.block_width)
    candidates = torch.zeros(1, samples, horizon, config.block_width)
    rollout = SharedContextRollout(TorchKernel(random_model(config)), RowThreads(1))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        rollout(latents, past_actions, candidates)
    # torch counts matrix products only. Attention is written out here, and what candidates share
    # is added once.
    products = counter.get_total_flops() / samples
    assert products == pytest.approx(least_rollout_flops(config, horizon, context), rel=0.03)


def test_a_large_product_runs_on_its_threads() -> None:
    before = torch.get_num_threads()
    large_product(1, size=8)()
    assert torch.get_num_threads() == before
    assert large_product_flops(2) == 16
