"""The roll-out by code of our own against the model in float32."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lewm_models.config import LeWMConfig
from lewm_models.importing import import_checkpoint
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.native.kernel import NativeKernel, fits
from lewm_serve.backends.native.library import NoLibrary, library
from lewm_serve.backends.rollout import Rollout
from lewm_serve.backends.shards import Shards
from tests.lewm_models.examples import PARITY, TINY, statistics

NEAR = 0.015
"""What bfloat16's eight bits leave of the figures, relative to their norm."""

ODD = LeWMConfig(
    image_size=16,
    patch_size=8,
    encoder_width=12,
    encoder_depth=1,
    encoder_heads=3,
    encoder_mlp=24,
    latent_dim=24,
    projector_mlp=16,
    predictor_width=48,
    predictor_output=20,
    predictor_depth=3,
    predictor_heads=1,
    predictor_head_dim=64,
    predictor_mlp=40,
    pred_proj_mlp=32,
    action_dim=3,
    action_block=2,
    action_mlp=16,
)
"""Widths that are no whole blocks, and projections wherever the model may have some."""

MODELS: dict[str, Callable[[], LeWM]] = {
    "parity": lambda: import_checkpoint(PARITY, statistics(action_block=7))[0],
    "odd": lambda: random_model(ODD),
    "paper": lambda: random_model(LeWMConfig(predictor_depth=2, encoder_depth=1)),
    "long memory": lambda: random_model(replace(ODD, history=5)),
    "no memory": lambda: random_model(replace(ODD, history=1)),
}


@pytest.fixture(scope="module")
def code() -> ctypes.CDLL:
    try:
        return library()
    except NoLibrary as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> LeWM:
    return MODELS[request.param]()


@pytest.fixture(scope="module", params=["tiles", "pairs"])
def kernel(request: pytest.FixtureRequest, code: ctypes.CDLL, model: LeWM) -> NativeKernel:
    if request.param == "tiles" and not code.tiles_available():
        pytest.skip("the processor has no tile registers")
    return NativeKernel(model, code, tiles=request.param == "tiles")


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative to the norm of the figures."""
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


def plans(
    config: LeWMConfig, count: int, context: int, samples: int, horizon: int
) -> tuple[Tensor, Tensor, Tensor]:
    """FrameLatents, past actions and candidates."""
    generator = torch.Generator().manual_seed(context)
    shapes = (
        (count, context, config.latent_dim),
        (count, context - 1, config.block_width),
        (count, samples, horizon, config.block_width),
    )
    latents, past, candidates = (torch.randn(shape, generator=generator) for shape in shapes)
    return latents, past, candidates


@pytest.mark.parametrize("horizon", [1, 2, 5, 7])
@torch.inference_mode()
def test_it_agrees_with_the_model(model: LeWM, kernel: NativeKernel, horizon: int) -> None:
    for context in range(1, model.config.history + 1):
        inputs = plans(model.config, 2, context, 37, horizon)
        expected = torch.stack([model.rollout(*plan) for plan in zip(*inputs, strict=True)])
        predicted = Rollout(kernel, Shards(1))(*inputs)
        assert predicted.dtype == torch.float32
        assert 0 < error(predicted, expected) < NEAR


@torch.inference_mode()
def test_it_agrees_with_the_fields_own_library(code: ctypes.CDLL) -> None:
    kernel = NativeKernel(MODELS["parity"](), code)
    with np.load(PARITY / "expected.npz") as arrays:
        expected = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for context in (1, 3):
        inputs = (
            expected["latents"][:context],
            expected["action_history"][: context - 1],
            expected["candidates"],
        )
        predicted = Rollout(kernel, Shards(1))(*(part.unsqueeze(0) for part in inputs))[0]
        assert error(predicted, expected[f"rollout_context{context}"]) < NEAR


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 33, 64, 75])
@torch.inference_mode()
def test_threads_and_company_change_no_bit(model: LeWM, kernel: NativeKernel, samples: int) -> None:
    context = min(2, model.config.history)
    latents, past, candidates = plans(model.config, 1, context, 75, 4)
    together = Rollout(kernel, Shards(1))(latents, past, candidates)[:, :samples]
    for threads in (1, 3):
        some = Rollout(kernel, Shards(threads, smallest=2))(latents, past, candidates[:, :samples])
        assert torch.equal(some, together)


@torch.inference_mode()
def test_it_expects_what_the_model_predicts(model: LeWM, kernel: NativeKernel) -> None:
    for context in range(2, model.config.history + 1):
        latents, past, _ = plans(model.config, 2, context, 1, 1)
        predicted = [
            model.rollout(own[:-1], actions[:-1], actions[None, -1:])[0, 0]
            for own, actions in zip(latents, past, strict=True)
        ]
        expected = Rollout(kernel, Shards(1)).expect(latents, past)
        assert 0 < error(expected, torch.stack(predicted)) < NEAR


@torch.inference_mode()
def test_a_model_run_after_another_is_none_the_worse(code: ctypes.CDLL) -> None:
    # Threads keep their memory from one call to the next, whatever model is run.
    kernels = {name: NativeKernel(make(), code) for name, make in MODELS.items()}
    configs = {name: make().config for name, make in MODELS.items()}
    inputs = {name: plans(config, 1, config.history, 20, 3) for name, config in configs.items()}
    first = {name: Rollout(kernels[name], Shards(1))(*inputs[name]) for name in MODELS}
    broken = [part.clone() for part in inputs["paper"]]
    broken[0][:] = float("nan")
    Rollout(kernels["paper"], Shards(1))(*broken)
    for name in MODELS:
        assert torch.equal(Rollout(kernels[name], Shards(1))(*inputs[name]), first[name])


def test_which_models_it_runs() -> None:
    assert fits(LeWMConfig())
    assert fits(ODD)
    assert not fits(TINY)
