"""The native backend: roll-outs in bfloat16, latents in float32."""

import pytest
import torch

from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card, random_model
from lewm_serve.backends.choice import REQUIRED_OVERLAP
from lewm_serve.backends.comparison import ranking_overlap
from lewm_serve.backends.native.backend import NativeBackend
from lewm_serve.backends.native.build import NativeUnavailable
from lewm_serve.backends.torch import TorchBackend

CPU = torch.device("cpu")
CONFIG = PRESETS["edge"]


@pytest.fixture(scope="module")
def float32() -> TorchBackend:
    return TorchBackend(random_model(CONFIG), CPU)


@pytest.fixture(scope="module")
def backend(float32: TorchBackend) -> NativeBackend:
    try:
        return NativeBackend(float32.model, TorchBackend(float32.model, CPU))
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


def test_latents_are_those_of_float32(backend: NativeBackend, float32: TorchBackend) -> None:
    backend.threads = float32.threads
    generator = torch.Generator().manual_seed(0)
    shape = (3, CONFIG.image_size, CONFIG.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    assert torch.equal(backend.encode(frames), float32.encode(frames))


def test_candidates_are_ranked_like_in_float32(
    backend: NativeBackend, float32: TorchBackend
) -> None:
    card = random_card("edge", CONFIG, {})
    assert ranking_overlap(backend, float32, card, frames=None) >= REQUIRED_OVERLAP


def test_rollouts_keep_torch_on_one_thread(backend: NativeBackend) -> None:
    backend.threads = 2
    before = torch.get_num_threads()
    candidates = torch.zeros(1, 32, 2, CONFIG.block_width)
    backend.rollout(torch.zeros(1, 1, CONFIG.latent_dim), candidates[:, 0, :0], candidates)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_the_precision_of_latents_is_reported(backend: NativeBackend) -> None:
    lower = TorchBackend(random_model(CONFIG), CPU, torch.bfloat16)
    assert (backend.precision, backend.encode_precision) == ("bfloat16", "float32")
    assert (lower.precision, lower.encode_precision) == ("bfloat16", "bfloat16")
