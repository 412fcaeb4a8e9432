"""The arithmetic of a plan, and how fast this machine multiplies large matrices.

Together they give the arithmetic floor: the least time of a plan at the rate of large products.

Flops are the multiplications and additions of matrix products and attention: two for each weight
that an input meets. Norms, activations and the solver are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.comparison import with_threads
from lewm_models.card import SolverConfig
from lewm_models.config import LeWMConfig

PAPER_CEM = SolverConfig("cem", samples=300, iterations=30, elites=30, horizon=5)
"""The search of the paper: CEM, 300 candidates × 30 iterations over 5 action blocks."""

PRODUCT_SIZE = 2048
"""Rows and columns of a large matrix."""


def least_plan_flops(
    config: LeWMConfig, *, samples: int, iterations: int, horizon: int, context: int = 1
) -> int:
    """Flops of a plan with every exact saving. No exact implementation needs fewer.

    The savings: keys and values are reused while the window grows. Modulations are computed once
    for each action block. The last block needs only keys and values of all tokens but the last
    one. What all candidates of a plan share is computed once and is not counted.
    """
    return samples * iterations * least_rollout_flops(config, horizon, context)


def plain_plan_flops(
    config: LeWMConfig, *, samples: int, iterations: int, horizon: int, context: int = 1
) -> int:
    """Flops of a plan that computes the whole window anew in each step."""
    return samples * iterations * plain_rollout_flops(config, horizon, context)


def least_rollout_flops(config: LeWMConfig, horizon: int, context: int = 1) -> int:
    """Flops of one candidate, see `least_plan_flops`."""
    width, inner = config.predictor_width, _attention_width(config)
    tokens = pairs = last_pairs = 0
    for step in range(horizon):
        first = max(0, context + step - config.history)
        window_grows = first == 0 and step > 0
        new_tokens = 1 if window_grows else step + 1 - max(0, first - (context - 1))
        window = context + step - first
        tokens += new_tokens
        pairs += sum(range(window - new_tokens + 1, window + 1))
        last_pairs += window
    keys_values, query = 4 * width * inner, 2 * width * inner
    output_and_mlp = 2 * inner * width + 4 * width * config.predictor_mlp
    attention = 4 * inner
    whole_block = keys_values + query + output_and_mlp
    inner_blocks = (config.predictor_depth - 1) * (tokens * whole_block + pairs * attention)
    last_block = tokens * keys_values + horizon * (query + output_and_mlp) + last_pairs * attention
    projections = tokens * _input_projection(config) + horizon * _output(config)
    return inner_blocks + last_block + projections + horizon * _conditioning(config)


def plain_rollout_flops(config: LeWMConfig, horizon: int, context: int = 1) -> int:
    """Flops of one candidate, see `plain_plan_flops`."""
    width, inner = config.predictor_width, _attention_width(config)
    windows = [min(config.history, context + step) for step in range(horizon)]
    # A causal mask does not spare a fused attention the masked half.
    tokens, pairs = sum(windows), sum(window * window for window in windows)
    block = 8 * width * inner + 4 * width * config.predictor_mlp
    blocks = config.predictor_depth * (tokens * block + pairs * 4 * inner)
    per_token = _input_projection(config) + _output(config) + _conditioning(config)
    return blocks + tokens * per_token


def _attention_width(config: LeWMConfig) -> int:
    return config.predictor_heads * config.predictor_head_dim


def _input_projection(config: LeWMConfig) -> int:
    """A latent to a token, where their widths differ."""
    latent, width = config.latent_dim, config.predictor_width
    return 2 * latent * width if latent != width else 0


def _output(config: LeWMConfig) -> int:
    """A hidden state to a predicted latent."""
    width, output = config.predictor_width, config.predictor_output
    projection = 2 * width * output if width != output else 0
    return projection + 2 * config.pred_proj_mlp * (output + config.latent_dim)


def _conditioning(config: LeWMConfig) -> int:
    """An action block to the modulations of all layers."""
    encoder = 2 * config.block_width * config.action_smoothed
    encoder += 2 * config.action_mlp * (config.action_smoothed + config.latent_dim)
    modulations = config.predictor_depth * 2 * config.predictor_width * 6 * config.predictor_width
    return encoder + _input_projection(config) + modulations


def large_product(
    threads: int, size: int = PRODUCT_SIZE, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """A task that multiplies two square matrices on this many of PyTorch's threads."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(dtype) for _ in range(2))
    product = torch.empty(size, size, dtype=dtype)
    return with_threads(threads, partial(torch.mm, left, right, out=product))


def large_product_flops(size: int = PRODUCT_SIZE) -> int:
    """Flops of `large_product`."""
    return 2 * size**3
