"""The ONNX Runtime backend, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from lewm_models.export.encoder import encoder_graph
from lewm_models.lewm import LeWM
from lewm_serve.backends.onnx_kernel import OnnxKernel
from lewm_serve.backends.onnx_session import Session
from lewm_serve.backends.rollout import Rollout
from lewm_serve.backends.shards import Shards
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.backends.warm_up import encode_rows, encodes_alike, run_rollouts


class OnnxBackend:
    """A LeWM in float32, on graphs written from its weights; rows are split among threads.

    Gradients, which ONNX Runtime does not give, are PyTorch's.
    """

    name = "onnx"
    precision = encode_precision = "float32"

    def __init__(self, model: LeWM, device: torch.device) -> None:
        self._torch = TorchBackend(model, device)
        self.model = model
        self.device = str(device)
        self._encoder = Session(encoder_graph(model), device)
        self._kernel = OnnxKernel(model, device)
        self._encode_rows = encode_rows(model.config)
        self.threads = 1

    @property
    def threads(self) -> int:
        """See `ThreadedBackend`."""
        return self._encodes.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._encodes = Shards(count, smallest=1)
        self._rollout = Rollout(self._kernel, Shards(count), remember=True)
        self._torch.threads = count

    def encode(self, frames: Tensor) -> Tensor:
        """See `Backend.encode`."""

        def part(rows: slice) -> Tensor:
            chunks = torch.split(frames[rows], self._encode_rows)
            return torch.cat([self._encode(chunk) for chunk in chunks])

        return torch.cat(self._encodes.map(part, len(frames)))

    def _encode(self, frames: Tensor) -> Tensor:
        return torch.from_numpy(self._encoder({"frames": frames.numpy()})["latents"])

    @torch.inference_mode()
    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`."""
        return self._rollout(latents, past_actions, candidates)

    @torch.inference_mode()
    def expect(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.expect`."""
        return self._rollout.expect(latents, past_actions)

    def gradients(
        self, latents: Tensor, past_actions: Tensor, candidates: Tensor, goals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`."""
        return self._torch.gradients(latents, past_actions, candidates, goals)

    def warm_up(self) -> None:
        """See `Backend.warm_up`."""
        if not encodes_alike(self.encode, self.model.config):
            self._encode_rows = 1
        run_rollouts(self, self.model.config)
