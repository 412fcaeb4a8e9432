"""A frame's latent has the same bits in every batch and, with ONNX, on any number of threads."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lewm_models.config import PRESETS, StateInput
from lewm_models.export.encoder import encoder_graph
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.choice import native_problem
from lewm_serve.backends.native.backend import NativeBackend
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


STATE_INPUT = StateInput(names=("x", "y"), mean=(100.0, -3.0), std=(50.0, 0.25))


@pytest.fixture(scope="module")
def seeing() -> LeWM:
    return random_model(replace(PRESETS["edge"], state_input=STATE_INPUT))


@pytest.fixture(scope="module")
def states() -> Tensor:
    noise = torch.randn(37, 2, generator=torch.Generator().manual_seed(2))
    states = torch.tensor(STATE_INPUT.mean) + torch.tensor(STATE_INPUT.std) * noise
    states[::3] = torch.nan
    return states


@pytest.mark.parametrize("name", BACKENDS)
def test_states_have_the_same_effect_in_every_batch(
    seeing: LeWM, frames: Tensor, states: Tensor, name: str
) -> None:
    backend = BACKENDS[name](seeing)
    backend.warm_up()
    latents = backend.encode(frames, states)
    with torch.no_grad():
        assert torch.allclose(latents, seeing.encode(frames, states), atol=1e-5)
        assert torch.allclose(backend.encode(frames), seeing.encode(frames), atol=1e-5)
    for rows in (1, 2, 3, 8, 11):
        assert torch.equal(backend.encode(frames[:rows], states[:rows]), latents[:rows])
    hidden = backend.encode(frames)
    assert torch.equal(hidden[::3], latents[::3])
    assert ((hidden - latents).abs().amax(dim=1) > 1e-3).sum() == len(frames) - len(frames[::3])


def test_the_native_backend_encodes_states_as_onnx_does(
    seeing: LeWM, frames: Tensor, states: Tensor
) -> None:
    problem = native_problem(seeing.config, CPU)
    if problem is not None:
        pytest.skip(problem)
    onnx = OnnxBackend(seeing, CPU)
    native = NativeBackend(seeing, onnx)
    assert torch.equal(native.encode(frames, states), onnx.encode(frames, states))


def test_a_model_of_pixels_has_the_graph_that_it_always_had(model: LeWM) -> None:
    inputs = [value.name for value in encoder_graph(model).model.graph.input]
    assert inputs == ["frames"]
