"""The PyTorch backend: gradients, batches and threads."""

import logging
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.rollout import MAX_TRIAL_COST, SharedContextRollout
from lewm_serve.backends.torch import GRADIENT_CANDIDATES, TorchBackend
from lewm_serve.objectives.latent import LATENT

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
    return inputs, *backend.gradients(*inputs[:3], goals=inputs[3], objective=LATENT)


@pytest.mark.parametrize("context", [1, 3])
def test_gradients_are_those_of_finite_differences(context: int) -> None:
    backend = TorchBackend(random_model(CONFIG), CPU, torch.float64)
    inputs, costs, gradients = differentiated(backend, context, 3, torch.float64)
    latents, past, candidates, goals = inputs
    assert gradients.shape == candidates.shape
    assert torch.allclose(LATENT(backend.rollout(*inputs[:3]), goals), costs)
    step = 1e-5
    picked = torch.Generator().manual_seed(3)
    for _ in range(20):
        at = tuple(int(torch.randint(size, (), generator=picked)) for size in candidates.shape)
        moved = torch.zeros_like(candidates)
        moved[at] = step
        above, below = (
            LATENT(backend.rollout(latents, past, candidates + sign * moved), goals)
            for sign in (1, -1)
        )
        slope = (above - below)[at[:2]] / (2 * step)
        assert float(gradients[at]) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


def test_gradients_do_not_depend_on_the_other_candidates_and_do_not_change_the_model() -> None:
    backend = TorchBackend(random_model(PRESETS["edge"]), CPU)
    inputs, costs, gradients = differentiated(backend, 1, GRADIENT_CANDIDATES + 3, torch.float32)
    latents, past, candidates, goals = inputs
    last_two = backend.gradients(
        latents[1:], past[1:], candidates[1:, -2:], goals=goals[1:], objective=LATENT
    )
    assert torch.allclose(last_two[0], costs[1:, -2:], rtol=1e-4)
    assert torch.allclose(last_two[1], gradients[1:, -2:], rtol=1e-3, atol=1e-4)
    assert not gradients.requires_grad
    assert not any(parameter.requires_grad for parameter in backend.model.parameters())
    # Latents from the encoder are made in inference mode.
    size = CONFIG.image_size
    encoded = backend.encode(torch.zeros(2, size, size, 3, dtype=torch.uint8)).unsqueeze(1)
    _, of_encoded = backend.gradients(encoded, past, candidates, goals=goals, objective=LATENT)
    assert of_encoded.isfinite().all()


def test_frames_are_encoded_one_by_one_if_the_batch_changes_latents() -> None:
    class BatchDependent(LeWM):
        """Adds the batch's size to every latent."""

        def features(self, frames: Tensor) -> Tensor:
            return super().features(frames) + len(frames)

    model = BatchDependent(CONFIG)
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


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds of every roll-out by the number of threads, on a clock that only they move."""
    now = [0.0]
    by_threads = {1: 1.0, 3: 1.0}
    predict = SharedContextRollout.__call__

    def timed(rollout: SharedContextRollout[Any], *inputs: Tensor) -> Tensor:
        now[0] += by_threads[torch.get_num_threads()]
        return predict(rollout, *inputs)

    monkeypatch.setattr(SharedContextRollout, "__call__", timed)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return by_threads


def adapted_backend(threads: int) -> TorchBackend:
    backend = TorchBackend(random_model(CONFIG), CPU)
    backend.threads = threads
    backend.adapt_threads(3)
    return backend


def run_calls(backend: TorchBackend, calls: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 1, CONFIG.latent_dim, generator=generator)
    candidates = torch.randn(1, 5, 2, CONFIG.block_width, generator=generator)
    return [backend.rollout(latents, candidates[:, 0, :0], candidates) for _ in range(calls)]


def test_gradients_are_computed_once_and_on_one_thread(seconds: dict[int, float]) -> None:
    """On several threads they take seconds while other processes use the processor."""
    backend = adapted_backend(3)
    latents = torch.zeros(1, 1, CONFIG.latent_dim)
    candidates = torch.zeros(1, 5, 2, CONFIG.block_width)
    before_s = time.perf_counter()
    goals = latents[:, 0] + 1
    backend.gradients(latents, candidates[:, 0, :0], candidates, goals=goals, objective=LATENT)
    assert torch.get_num_threads() == 1
    assert time.perf_counter() == before_s + seconds[1]


@pytest.mark.parametrize(("chosen", "other"), [(1, 3), (3, 1)])
def test_a_wrong_number_of_threads_stays_and_is_warned_of_once(
    seconds: dict[int, float],
    caplog: pytest.LogCaptureFixture,
    chosen: int,
    other: int,
) -> None:
    backend = adapted_backend(chosen)
    seconds[other] = 0.5
    results = run_calls(backend, 100)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.get_num_threads() == backend.threads == chosen
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert f"faster on {other} threads than on {chosen}" in warning.getMessage()
    assert "LEWM_THREADS" in warning.getMessage()


def test_the_right_number_of_threads_causes_no_warning_and_few_trials(
    seconds: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    backend = adapted_backend(3)
    before_s = time.perf_counter()
    run_calls(backend, 300)
    assert time.perf_counter() - before_s <= 300 * (1 + 2 * MAX_TRIAL_COST)
    assert not caplog.records


def test_a_number_of_threads_that_is_set_is_not_reconsidered(
    seconds: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    backend = adapted_backend(1)
    backend.threads = 1
    seconds[3] = 0.5
    before_s = time.perf_counter()
    run_calls(backend, 100)
    assert time.perf_counter() - before_s == 100
    assert not caplog.records
