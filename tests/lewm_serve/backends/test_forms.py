"""Every backend runs every form of the model that checkpoints have: norms, activations, sizes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.backend import Backend
from lewm_serve.backends.native.backend import NativeBackend, NativeKernel, native_code
from lewm_serve.backends.native.build import NativeUnavailable
from lewm_serve.backends.native.library import load_library
from lewm_serve.backends.onnx import OnnxBackend
from lewm_serve.backends.rollout import RowThreads, SharedContextRollout
from lewm_serve.backends.torch import TorchBackend

CPU = torch.device("cpu")
FLOAT32_TOLERANCE, BFLOAT16_TOLERANCE = 2e-6, 0.015
"""The largest error, relative to the norm of what is expected."""

BASE = LeWMConfig(
    image_size=16,
    patch_size=8,
    encoder_width=24,
    encoder_depth=2,
    encoder_heads=3,
    encoder_mlp=40,
    latent_dim=24,
    projector_mlp=28,
    predictor_width=48,
    predictor_output=24,
    predictor_depth=2,
    predictor_heads=2,
    predictor_head_dim=16,
    predictor_mlp=40,
    pred_proj_mlp=48,
    action_dim=3,
    action_block=2,
    action_mlp=16,
)
"""Most widths are no multiples of the native code's blocks."""

FORMS: dict[str, LeWMConfig] = {
    "layer norms": replace(BASE, projector_norm="layernorm", pred_proj_norm="layernorm"),
    "layer norm and relu": replace(
        BASE, pred_proj_norm="layernorm", pred_proj_activation="relu", projector_activation="relu"
    ),
    "no norms": replace(BASE, projector_norm="none", pred_proj_norm="none"),
    "relu": replace(
        BASE,
        encoder_activation="relu",
        projector_activation="relu",
        pred_proj_activation="relu",
    ),
    "silu": replace(
        BASE,
        encoder_activation="silu",
        projector_activation="silu",
        pred_proj_activation="silu",
    ),
    "no projectors": replace(BASE, projector_mlp=0, pred_proj_mlp=0),
    "no projectors and no projections": replace(
        BASE,
        encoder_width=48,
        latent_dim=48,
        predictor_output=48,
        projector_mlp=0,
        pred_proj_mlp=0,
    ),
    "no multiple of the patch": replace(BASE, image_size=23),
}

BACKENDS: dict[str, tuple[Callable[[LeWM], Backend], float]] = {
    "torch": (lambda model: TorchBackend(model, CPU), FLOAT32_TOLERANCE),
    "onnx": (lambda model: OnnxBackend(model, CPU), FLOAT32_TOLERANCE),
    "native": (lambda model: NativeBackend(model, OnnxBackend(model, CPU)), BFLOAT16_TOLERANCE),
}


def error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to the norm of what is expected."""
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture(scope="module", params=FORMS)
def model(request: pytest.FixtureRequest) -> LeWM:
    return random_model(FORMS[request.param])


@pytest.fixture(params=BACKENDS)
def backend_and_tolerance(request: pytest.FixtureRequest, model: LeWM) -> tuple[Backend, float]:
    make, tolerance = BACKENDS[request.param]
    try:
        return make(model), tolerance
    except NativeUnavailable as reason:
        assert request.param == "native"
        pytest.skip(str(reason))


@torch.inference_mode()
def test_a_backend_gives_what_the_model_gives(
    model: LeWM, backend_and_tolerance: tuple[Backend, float]
) -> None:
    backend, tolerance = backend_and_tolerance
    config = model.config
    generator = torch.Generator().manual_seed(0)
    size = config.image_size
    frames = torch.randint(0, 256, (5, size, size, 3), generator=generator, dtype=torch.uint8)
    latents = model.encode(frames)
    assert error(backend.encode(frames), latents) < FLOAT32_TOLERANCE

    past = torch.randn(config.history - 1, config.block_width, generator=generator)
    candidates = torch.randn(37, 5, config.block_width, generator=generator)
    for context in range(1, config.history + 1):
        expected = model.rollout(latents[:context], past[: context - 1], candidates)
        predicted = backend.rollout(
            latents[None, :context], past[None, : context - 1], candidates[None]
        )
        assert error(predicted[0], expected) < tolerance


@torch.inference_mode()
def test_native_code_without_tiles_gives_what_the_model_gives(model: LeWM) -> None:
    try:
        kernel = NativeKernel(model, load_library(), use_tiles=False)
    except NativeUnavailable as reason:
        pytest.skip(str(reason))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, model.config.latent_dim, generator=generator)
    candidates = torch.randn(19, 4, model.config.block_width, generator=generator)
    past = torch.empty(0, model.config.block_width)
    predicted = SharedContextRollout(kernel, RowThreads(1))(
        latents[None], past[None], candidates[None]
    )
    assert error(predicted[0], model.rollout(latents, past, candidates)) < BFLOAT16_TOLERANCE


@pytest.mark.parametrize("width", [40, 4112])
def test_native_code_says_which_layer_norm_it_cannot_compute(width: int) -> None:
    config = replace(BASE, pred_proj_norm="layernorm", pred_proj_mlp=width)
    with pytest.raises(NativeUnavailable, match=rf"hidden width of pred_proj.*got {width}"):
        native_code(config, CPU)
