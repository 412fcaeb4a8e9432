"""bfloat16: how close its results are, and whether it ranks candidates as float32 does."""

import pytest
import torch
from torch import Tensor

from lewm_models.lewm import LeWM
from lewm_serve.backends.comparison import RANKED_PAIRS, ranking_overlap, synthetic_frames
from lewm_serve.backends.torch import TorchBackend
from tests.lewm_models.examples import TINY, example_card, tiny_model

CPU = torch.device("cpu")
CONFIG = TINY


@pytest.fixture(scope="module")
def model() -> LeWM:
    return tiny_model()


@pytest.fixture(scope="module")
def full(model: LeWM) -> TorchBackend:
    return TorchBackend(model, CPU)


@pytest.fixture(scope="module")
def lower(model: LeWM) -> TorchBackend:
    return TorchBackend(model, CPU, torch.bfloat16)


def test_bfloat16_results_are_close_and_given_in_float32(
    full: TorchBackend, lower: TorchBackend
) -> None:
    frames = synthetic_frames(CONFIG.image_size)
    latents, expected = lower.encode(frames), full.encode(frames)
    assert latents.dtype == torch.float32
    error = (latents - expected).norm() / expected.norm()
    assert 0 < error < 0.02
    candidates = torch.randn(
        1, 16, 5, CONFIG.block_width, generator=torch.Generator().manual_seed(0)
    )
    plan = (expected[None, :1], candidates[:, 0, :0], candidates)
    predicted, reference = lower.rollout(*plan), full.rollout(*plan)
    assert predicted.dtype == torch.float32
    assert 0 < (predicted - reference).norm() / reference.norm() < 0.02


def test_the_model_itself_is_not_converted(model: LeWM, lower: TorchBackend) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in lower.model.parameters()} == {torch.bfloat16}


def test_a_backend_ranks_like_itself(full: TorchBackend) -> None:
    card = example_card(full.model)
    assert ranking_overlap(full, full, card, frames=None) == 1.0


def test_bfloat16_ranks_like_float32_and_noise_does_not(
    full: TorchBackend, lower: TorchBackend
) -> None:
    card = example_card(full.model)
    frames = synthetic_frames(CONFIG.image_size)
    overlap = ranking_overlap(lower, full, card, frames=frames)

    class Noisy(TorchBackend):
        def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
            predicted = super().rollout(latents, past_actions, candidates)
            return predicted + torch.randn(
                predicted.shape, generator=torch.Generator().manual_seed(0)
            )

    noisy_overlap = ranking_overlap(Noisy(full.model, CPU), full, card, frames=frames)
    assert overlap > 0.8 > noisy_overlap


def test_synthetic_frames_are_different_scenes() -> None:
    frames = synthetic_frames(32)
    assert (frames.shape, frames.dtype) == ((RANKED_PAIRS + 1, 32, 32, 3), torch.uint8)
    assert all((frames[0] != other).float().mean() > 0.5 for other in frames[1:])
