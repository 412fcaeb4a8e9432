"""CUDA graphs give the same results as the CPU. Needs a GPU."""

import pytest
import torch

from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends import cuda_graph
from lewm_serve.backends.cuda_graph import CudaGraphs
from lewm_serve.backends.torch import TorchBackend

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CONFIG = PRESETS["edge"]
TOLERANCE = 1e-3  # float32 products on a GPU are rounded differently from those on a CPU


@pytest.fixture(scope="module")
def model() -> LeWM:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def backend(model: LeWM) -> TorchBackend:
    backend = TorchBackend(model, torch.device("cuda"))
    backend.warm_up()
    return backend


@pytest.mark.parametrize("plans", [1, 3])
@pytest.mark.parametrize("context", [1, 2, 3])
def test_rollouts(model: LeWM, backend: TorchBackend, context: int, plans: int) -> None:
    reference = TorchBackend(random_model(CONFIG), torch.device("cpu"))
    for seed in (0, 1):  # the second call replays the graph that the first one recorded
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(plans, context, CONFIG.latent_dim, generator=generator)
        past = torch.randn(plans, context - 1, CONFIG.block_width, generator=generator)
        candidates = torch.randn(plans, 24, 5, CONFIG.block_width, generator=generator)
        expected = reference.rollout(latents, past, candidates)
        assert torch.allclose(backend.rollout(latents, past, candidates), expected, atol=TOLERANCE)
        if context > 1:
            expected = reference.predict_newest(latents, past)
            assert torch.allclose(backend.predict_newest(latents, past), expected, atol=TOLERANCE)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_encodes(backend: TorchBackend, rows: int) -> None:
    reference = TorchBackend(random_model(CONFIG), torch.device("cpu"))
    size = CONFIG.image_size
    generator = torch.Generator().manual_seed(rows)
    frames = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, generator=generator)
    assert torch.allclose(backend.encode(frames), reference.encode(frames), atol=TOLERANCE)


@torch.inference_mode()
def test_shapes_beyond_the_maximum_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "MAX_CUDA_GRAPHS", 1)
    double = CudaGraphs(lambda x: 2 * x, torch.device("cuda"))
    for count in (3, 4, 3):
        assert double(torch.arange(count)).tolist() == [2 * value for value in range(count)]
