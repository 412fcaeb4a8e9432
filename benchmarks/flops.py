"""The arithmetic of a plan, counted from the model's widths.

Counted are the multiplications and additions of matrix products and attention, two for each
weight that an input meets; norms, activations and the solver are left out.
"""

from __future__ import annotations

from lewm_models.config import LeWMConfig


def least_plan_flops(
    config: LeWMConfig, samples: int, iterations: int, horizon: int, context: int = 1
) -> int:
    """A plan with every exact saving: what no implementation in this precision can go below.

    Keys and values are reused while the window grows; modulations are computed once for each block
    of actions; the last block needs only keys and values of all tokens but the last one. What a
    plan's candidates share is computed once, and is not counted.
    """
    return samples * iterations * least_rollout_flops(config, horizon, context)


def plain_plan_flops(
    config: LeWMConfig, samples: int, iterations: int, horizon: int, context: int = 1
) -> int:
    """A plan with the whole window computed anew in each step."""
    return samples * iterations * plain_rollout_flops(config, horizon, context)


def least_rollout_flops(config: LeWMConfig, horizon: int, context: int = 1) -> int:
    """One candidate, see `least_plan_flops`."""
    width, inner = config.predictor_width, _inner(config)
    tokens = pairs = last_pairs = 0
    for step in range(horizon):
        first = max(0, context + step - config.history)
        grows = first == 0 and step > 0
        fresh = 1 if grows else step + 1 - max(0, first - (context - 1))
        window = context + step - first
        tokens += fresh
        pairs += sum(range(window - fresh + 1, window + 1))
        last_pairs += window
    keys_values, query = 4 * width * inner, 2 * width * inner
    rest = 2 * inner * width + 4 * width * config.predictor_mlp
    attention = 4 * inner
    inside = config.predictor_depth - 1
    blocks = inside * (tokens * (keys_values + query + rest) + pairs * attention)
    last = tokens * keys_values + horizon * (query + rest) + last_pairs * attention
    projected = tokens * _input_projection(config) + horizon * _output(config)
    return blocks + last + projected + horizon * _conditioning(config)


def plain_rollout_flops(config: LeWMConfig, horizon: int, context: int = 1) -> int:
    """One candidate, see `plain_plan_flops`."""
    width, inner = config.predictor_width, _inner(config)
    windows = [min(config.history, context + step) for step in range(horizon)]
    # A causal mask does not spare a fused attention the masked half.
    tokens, pairs = sum(windows), sum(window * window for window in windows)
    block = 8 * width * inner + 4 * width * config.predictor_mlp
    blocks = config.predictor_depth * (tokens * block + pairs * 4 * inner)
    each = _input_projection(config) + _output(config) + _conditioning(config)
    return blocks + tokens * each


def _inner(config: LeWMConfig) -> int:
    return config.predictor_heads * config.predictor_head_dim


def _input_projection(config: LeWMConfig) -> int:
    """A latent to a token, where their widths differ."""
    narrow, wide = config.latent_dim, config.predictor_width
    return 2 * narrow * wide if narrow != wide else 0


def _output(config: LeWMConfig) -> int:
    """A hidden state to a predicted latent."""
    wide, out = config.predictor_width, config.predictor_output
    projection = 2 * wide * out if wide != out else 0
    return projection + 2 * config.pred_proj_mlp * (out + config.latent_dim)


def _conditioning(config: LeWMConfig) -> int:
    """A block of actions to the modulations of all layers."""
    encoder = 2 * config.block_width * config.action_smoothed
    encoder += 2 * config.action_mlp * (config.action_smoothed + config.latent_dim)
    modulations = config.predictor_depth * 2 * config.predictor_width * 6 * config.predictor_width
    return encoder + _input_projection(config) + modulations
