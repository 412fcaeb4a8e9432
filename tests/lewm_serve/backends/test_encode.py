"""A frame's latent has the same bits in every batch and, with ONNX, on any number of threads."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.onnx import OnnxBackend
from lewm_serve.backends.torch import TorchBackend

CPU = torch.device("cpu")
Backend = TorchBackend | OnnxBackend
BACKENDS: dict[str, Callable[[LeWM], Backend]] = {
    "torch": lambda model: TorchBackend(model, CPU),
    "onnx": lambda model: OnnxBackend(model, CPU),
}


@pytest.fixture(scope="module")
def model() -> LeWM:
    return random_model(PRESETS["edge"])


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, model: LeWM) -> Backend:
    backend = BACKENDS[request.param](model)
    backend.warm_up()
    return backend


@pytest.fixture(scope="module")
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = PRESETS["edge"].image_size
    return torch.randint(0, 256, (37, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def latents_alone(backend: Backend, frames: Tensor) -> Tensor:
    return torch.cat([backend.encode(frame[None]) for frame in frames])


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 11, 32, 37])
def test_a_latent_has_the_same_bits_in_every_batch(
    backend: Backend, frames: Tensor, latents_alone: Tensor, rows: int
) -> None:
    assert torch.equal(backend.encode(frames[:rows]), latents_alone[:rows])


def test_latents_are_those_of_the_model(model: LeWM, frames: Tensor, latents_alone: Tensor) -> None:
    with torch.no_grad():
        assert torch.allclose(latents_alone, model.encode(frames), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 11])
def test_with_onnx_threads_change_no_bit_of_a_latent(
    model: LeWM, frames: Tensor, rows: int
) -> None:
    backend = OnnxBackend(model, CPU)
    expected = backend.encode(frames[:rows])
    backend.threads = 3
    assert torch.equal(backend.encode(frames[:rows]), expected)


@pytest.mark.parametrize("samples", [1, 7, 24, 95])
def test_with_onnx_threads_change_no_bit_of_a_rollout(model: LeWM, samples: int) -> None:
    config = model.config
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 2, config.latent_dim, generator=generator)
    past = torch.randn(1, 1, config.block_width, generator=generator)
    candidates = torch.randn(1, samples, 5, config.block_width, generator=generator)
    backend = OnnxBackend(model, CPU)
    expected = backend.rollout(latents, past, candidates)
    backend.threads = 3
    assert torch.equal(backend.rollout(latents, past, candidates), expected)
