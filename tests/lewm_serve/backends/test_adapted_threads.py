"""Backends whose number of threads changes in service give the same bits throughout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lewm_models.config import PRESETS
from lewm_models.lewm import LeWM
from lewm_models.random_weights import random_model
from lewm_serve.backends.backend import ThreadedBackend, threads_change_rollouts
from lewm_serve.backends.native.backend import NativeBackend
from lewm_serve.backends.native.build import NativeUnavailable
from lewm_serve.backends.onnx import OnnxBackend
from lewm_serve.backends.rollout import ThreadPolicy
from lewm_serve.backends.torch import TorchBackend

CPU = torch.device("cpu")
CONFIG = PRESETS["edge"]
ALL_THREADS = 3
BACKENDS: dict[str, Callable[[LeWM], ThreadedBackend]] = {
    "onnx": lambda model: OnnxBackend(model, CPU),
    "native": lambda model: NativeBackend(model, OnnxBackend(model, CPU)),
}


@pytest.fixture(scope="module")
def model() -> LeWM:
    return random_model(CONFIG)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, model: LeWM) -> ThreadedBackend:
    try:
        return BACKENDS[request.param](model)
    except NativeUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of each call: one and all in turns, whatever the calls take."""
    calls: list[int] = []

    def alternate(_policy: ThreadPolicy, _call: str, _rows: int) -> int:
        calls.append(1 if len(calls) % 2 else ALL_THREADS)
        return calls[-1]

    monkeypatch.setattr(ThreadPolicy, "threads", alternate)
    monkeypatch.setattr(ThreadPolicy, "observe", lambda *_, **__: False)
    return calls


def inputs(samples: int, context: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, past actions and candidates of one plan."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, context, CONFIG.latent_dim, generator=generator)
    past_actions = torch.randn(1, context - 1, CONFIG.block_width, generator=generator)
    candidates = torch.randn(1, samples, 5, CONFIG.block_width, generator=generator)
    return latents, past_actions, candidates


@pytest.mark.parametrize("context", [1, 3])
def test_rollouts_have_the_same_bits(
    backend: ThreadedBackend, calls: list[int], context: int
) -> None:
    expected = backend.rollout(*inputs(96, context))
    backend.adapt_threads(ALL_THREADS)
    for _ in range(4):
        assert torch.equal(backend.rollout(*inputs(96, context)), expected)
    assert calls == [ALL_THREADS, 1] * 2


def test_latents_have_the_same_bits(backend: ThreadedBackend, calls: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (7, CONFIG.image_size, CONFIG.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    expected = backend.encode(frames)
    backend.adapt_threads(ALL_THREADS)
    for _ in range(4):
        assert torch.equal(backend.encode(frames), expected)
    assert calls == [ALL_THREADS, 1] * 2


def test_a_number_that_is_set_holds(backend: ThreadedBackend, calls: list[int]) -> None:
    backend.adapt_threads(ALL_THREADS)
    backend.threads = 2
    backend.rollout(*inputs(96, 1))
    assert (backend.threads, calls) == (2, [])


class ThreadDependent(OnnxBackend):
    """Rounds differently on several threads."""

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        predicted = super().rollout(latents, past_actions, candidates)
        return predicted + 1e-7 * self.threads


def test_a_number_on_which_bits_depend_stays(model: LeWM, calls: list[int]) -> None:
    assert not threads_change_rollouts(OnnxBackend(model, CPU), CONFIG, ALL_THREADS)
    backend = ThreadDependent(model, CPU)
    assert threads_change_rollouts(backend, CONFIG, ALL_THREADS)
    assert backend.threads == 1
    backend.adapt_threads(ALL_THREADS)
    backend.rollout(*inputs(96, 1))
    assert calls == []


@pytest.mark.parametrize("threads", [1, 2])
def test_the_comparison_leaves_the_number_as_it_was(model: LeWM, threads: int) -> None:
    backend = TorchBackend(model, CPU)
    backend.threads = threads
    threads_change_rollouts(backend, CONFIG, ALL_THREADS)
    assert backend.threads == threads
