"""The backend whose roll-outs are code of our own, in bfloat16, on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_serve.backends.backend import ThreadedBackend
from lewm_serve.backends.native.kernel import NativeKernel, fits
from lewm_serve.backends.native.library import NoLibrary, keep_memory, library
from lewm_serve.backends.rollout import Rollout
from lewm_serve.backends.shards import Shards
from lewm_serve.backends.warm_up import run_rollouts


class NativeBackend:
    """A LeWM whose roll-outs are bfloat16; their rows are split among threads.

    Frames are encoded, and gradients taken, by a backend of float32: a plan encodes a frame or two
    and rolls hundreds of candidates out, and so a latent means the same in either precision.

    Raises:
        NoLibrary: there is no code for this model, or none for this machine.
    """

    name = "native"
    precision = "bfloat16"

    def __init__(self, model: LeWM, exact: ThreadedBackend) -> None:
        check(model.config, torch.device(exact.device))
        self._config = model.config
        self._exact = exact
        keep_memory()
        self._kernel = NativeKernel(model.eval(), library())
        self.device, self.encode_precision = exact.device, exact.encode_precision
        self.threads = 1

    @property
    def threads(self) -> int:
        """See `ThreadedBackend`."""
        return self._exact.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._exact.threads = count
        self._rollout = Rollout(self._kernel, Shards(count), remember=True)

    def encode(self, frames: Tensor) -> Tensor:
        """See `Backend.encode`."""
        return self._exact.encode(frames)

    @torch.inference_mode()
    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`."""
        _take_one_thread()
        return self._rollout(latents, past_actions, candidates)

    @torch.inference_mode()
    def expect(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.expect`."""
        _take_one_thread()
        return self._rollout.expect(latents, past_actions)

    def gradients(
        self, latents: Tensor, past_actions: Tensor, candidates: Tensor, goals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`."""
        return self._exact.gradients(latents, past_actions, candidates, goals)

    def warm_up(self) -> None:
        """See `Backend.warm_up`."""
        self._exact.warm_up()
        run_rollouts(self, self._config)


def _take_one_thread() -> None:
    """The little of a roll-out that is PyTorch's stays on the thread that asks."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def check(config: LeWMConfig, device: torch.device) -> None:
    """Compile the code, if that has not been done, and see that it can run a model.

    Raises:
        NoLibrary: it cannot, or there is no code.
    """
    if device.type != "cpu":
        raise NoLibrary(f"it runs on CPUs, not on {device}")
    if not fits(config):
        raise NoLibrary("it wants a predictor whose widths are multiples of 16")
    library()
