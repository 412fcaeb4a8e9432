"""The torch backend: what it promises beyond the model it runs."""

import pytest
import torch
from torch import Tensor

from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.backend import goal_costs
from lewm_serve.backends.torch import GRADIENT_ROWS, TorchBackend

CPU = torch.device("cpu")
CONFIG = PRESETS["edge"]


def differentiated(
    backend: TorchBackend, context: int, samples: int, dtype: torch.dtype
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """Inputs (two plans' latents, past actions, candidates, goals), costs and gradients."""
    config = backend.model.config
    generator = torch.Generator().manual_seed(2)
    shapes = (
        (2, context, config.latent_dim),
        (2, context - 1, config.block_width),
        (2, samples, 4, config.block_width),
        (2, config.latent_dim),
    )
    inputs = tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return inputs, *backend.gradients(*inputs)


@pytest.mark.parametrize("context", [1, 3])
def test_gradients_are_those_of_finite_differences(context: int) -> None:
    backend = TorchBackend(random_model(CONFIG), CPU, torch.float64)
    inputs, costs, gradients = differentiated(backend, context, 3, torch.float64)
    latents, past, candidates, goals = inputs
    assert gradients.shape == candidates.shape
    assert torch.allclose(goal_costs(backend.rollout(*inputs[:3]), goals), costs)
    step = 1e-5
    picked = torch.Generator().manual_seed(3)
    for _ in range(20):
        at = tuple(int(torch.randint(size, (), generator=picked)) for size in candidates.shape)
        moved = torch.zeros_like(candidates)
        moved[at] = step
        above, below = (
            goal_costs(backend.rollout(latents, past, candidates + sign * moved), goals)
            for sign in (1, -1)
        )
        slope = (above - below)[at[:2]] / (2 * step)
        assert float(gradients[at]) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


def test_gradients_do_not_depend_on_how_many_are_asked_for_and_leave_the_model_alone() -> None:
    backend = TorchBackend(random_model(PRESETS["edge"]), CPU)
    inputs, costs, gradients = differentiated(backend, 1, GRADIENT_ROWS + 3, torch.float32)
    latents, past, candidates, goals = inputs
    some = backend.gradients(latents[1:], past[1:], candidates[1:, -2:], goals[1:])
    assert torch.allclose(some[0], costs[1:, -2:], rtol=1e-4)
    assert torch.allclose(some[1], gradients[1:, -2:], rtol=1e-3, atol=1e-4)
    assert not gradients.requires_grad
    assert not any(parameter.requires_grad for parameter in backend.model.parameters())
    # FrameLatents as the encoder gives them come from inference mode.
    size = CONFIG.image_size
    seen = backend.encode(torch.zeros(2, size, size, 3, dtype=torch.uint8)).unsqueeze(1)
    assert backend.gradients(seen, past, candidates, goals)[1].isfinite().all()


def test_batches_are_given_up_where_they_would_change_a_latent() -> None:
    class Entangled(LeWM):
        """Adds the batch's size to every latent."""

        def features(self, frames: Tensor) -> Tensor:
            return super().features(frames) + len(frames)

    model = Entangled(CONFIG)
    model.load_state_dict(random_model(CONFIG).state_dict())
    backend = TorchBackend(model, CPU)
    backend.warm_up()
    frames = torch.zeros(3, CONFIG.image_size, CONFIG.image_size, 3, dtype=torch.uint8)
    assert torch.equal(backend.encode(frames)[:1], backend.encode(frames[:1]))


def test_each_backend_runs_on_its_own_number_of_threads() -> None:
    one, three = (TorchBackend(random_model(CONFIG), CPU) for _ in range(2))
    one.threads, three.threads = 1, 3
    frames = torch.zeros(1, CONFIG.image_size, CONFIG.image_size, 3, dtype=torch.uint8)
    for backend in (one, three, one):
        backend.encode(frames)
        assert torch.get_num_threads() == backend.threads
