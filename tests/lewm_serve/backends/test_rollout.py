"""The roll-out gives the results of `LeWM.rollout`, with every kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.onnx import OnnxKernel
from lewm_serve.backends.rollout import Kernel, RowThreads, SharedContextRollout
from lewm_serve.backends.torch import TorchKernel

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

KERNELS: dict[str, Callable[[LeWM], Kernel[Any]]] = {
    "torch": TorchKernel,
    "onnx": lambda model: OnnxKernel(model, torch.device("cpu")),
}


@pytest.fixture(scope="module", params=[ODD, LeWMConfig(predictor_depth=2, encoder_depth=1)])
def model(request: pytest.FixtureRequest) -> LeWM:
    return random_model(request.param)


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest, model: LeWM) -> Kernel[Any]:
    return KERNELS[request.param](model)


def two_plans(model: LeWM, context: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, past actions and candidates of two plans, seven blocks ahead."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, context, config.latent_dim, generator=generator),
        torch.randn(2, context - 1, config.block_width, generator=generator),
        torch.randn(2, 6, 7, config.block_width, generator=generator),
    )


@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("context", [1, 2, 3])
@torch.no_grad()
def test_results_are_those_of_the_model(
    model: LeWM, kernel: Kernel[Any], context: int, horizon: int
) -> None:
    latents, past, candidates = two_plans(model, context, seed=context)
    candidates = candidates[:, :, :horizon]
    plans = zip(latents, past, candidates, strict=True)
    expected = torch.stack([model.rollout(*plan) for plan in plans])
    for threads in (1, 3):
        predicted = SharedContextRollout(kernel, RowThreads(threads, min_rows=2))(
            latents, past, candidates
        )
        assert torch.allclose(predicted, expected, atol=TOLERANCE)


@torch.no_grad()
def test_past_actions_matter(model: LeWM, kernel: Kernel[Any]) -> None:
    config = model.config
    latents = torch.ones(1, 2, config.latent_dim)
    candidates = torch.zeros(1, 4, 2, config.block_width)
    rollout = SharedContextRollout(kernel, RowThreads(1))
    first, second = (
        rollout(latents, torch.full((1, 1, config.block_width), value), candidates)
        for value in (-1.0, 1.0)
    )
    assert (first - second).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("context", [2, 3])
@torch.no_grad()
def test_the_newest_latent_is_predicted_as_by_the_model(
    model: LeWM, kernel: Kernel[Any], context: int
) -> None:
    latents, past, _ = two_plans(model, context, seed=context)
    expected = torch.stack(
        [
            model.rollout(own[:-1], actions[:-1], actions[None, -1:])[0, 0]
            for own, actions in zip(latents, past, strict=True)
        ]
    )
    rollout = SharedContextRollout(kernel, RowThreads(1))
    assert torch.allclose(rollout.predict_newest(latents, past), expected, atol=TOLERANCE)


@torch.no_grad()
def test_the_shared_context_is_reused_only_for_the_same_plans(
    model: LeWM, kernel: Kernel[Any]
) -> None:
    one, other = two_plans(model, 3, seed=1), two_plans(model, 3, seed=2)
    other_past = (one[0], other[1], one[2])
    remembering = SharedContextRollout(kernel, RowThreads(1), remember=True)
    for latents, past, candidates in (one, one, other, one, other_past, one):
        for horizon in (1, 5, 2):
            asked = latents, past, candidates[:, :, :horizon]
            assert torch.equal(
                remembering(*asked), SharedContextRollout(kernel, RowThreads(1))(*asked)
            )
        expected = SharedContextRollout(kernel, RowThreads(1)).predict_newest(latents, past)
        assert torch.equal(remembering.predict_newest(latents, past), expected)


@torch.no_grad()
def test_the_iterations_of_a_plan_compute_the_shared_context_once(
    model: LeWM, kernel: Kernel[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    window_lengths: list[int] = []
    begin = kernel.begin

    def counting_begin(latents: Sequence[Tensor], actions: Tensor) -> Any:
        window_lengths.append(len(latents))
        return begin(latents, actions)

    monkeypatch.setattr(kernel, "begin", counting_begin)
    latents, past, candidates = two_plans(model, 3, seed=1)
    rollout = SharedContextRollout(kernel, RowThreads(1), remember=True)
    for _ in range(3):
        rollout(latents, past, candidates)
    rollout.predict_newest(latents, past)
    assert window_lengths == [2, 1]


@torch.no_grad()
def test_a_context_that_was_changed_in_place_is_computed_anew(
    model: LeWM, kernel: Kernel[Any]
) -> None:
    latents, past, candidates = two_plans(model, 3, seed=1)
    remembering = SharedContextRollout(kernel, RowThreads(1), remember=True)
    remembering(latents, past, candidates)
    latents += 1
    expected = SharedContextRollout(kernel, RowThreads(1))(latents, past, candidates)
    assert torch.equal(remembering(latents, past, candidates), expected)
