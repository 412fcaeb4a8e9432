"""The PyTorch backend: eager on a CPU, CUDA graphs on a GPU; float32 or bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lewm_models.lewm import LeWM
from lewm_serve.backends.backend import goal_costs
from lewm_serve.backends.cuda_graph import CudaGraphs
from lewm_serve.backends.rollout import Rollout
from lewm_serve.backends.shards import Shards
from lewm_serve.backends.torch_kernel import TorchKernel
from lewm_serve.backends.warm_up import encode_rows, encodes_alike, run_rollouts

PROJECTOR_ROWS = 8
"""Rows of one product in the projector. Matrix libraries round a product of few rows otherwise
than one of many; a fixed number makes a frame's latent independent of its batch."""

GRAPH_ROWS = 32
"""Frames of one CUDA graph, at most."""

GRADIENT_ROWS = 64
"""Candidates whose roll-outs are kept in memory at once for their gradients."""


class TorchBackend:
    """A LeWM in PyTorch. Latents are float32 outside, whatever the precision inside."""

    name = "torch"

    def __init__(
        self, model: LeWM, device: torch.device, precision: torch.dtype = torch.float32
    ) -> None:
        self.model = in_precision(model.eval().requires_grad_(False), precision).to(device)
        self.device = str(device)
        self.precision = self.encode_precision = str(precision).removeprefix("torch.")
        self.threads = torch.get_num_threads()
        self._rollout = Rollout(TorchKernel(self.model), Shards(1))
        self._encode_rows = GRAPH_ROWS if device.type == "cuda" else encode_rows(model.config)
        self._graphs = device.type == "cuda"
        self._run_encode: Callable[..., Tensor] = self._encode
        self._run_rollout: Callable[..., Tensor] = self._rollout
        self._run_expect: Callable[..., Tensor] = self._rollout.expect
        if self._graphs:
            self._run_encode = CudaGraphs(self._encode, device)
            self._run_rollout = CudaGraphs(self._rollout, device)
            self._run_expect = CudaGraphs(self._rollout.expect, device)

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """See `Backend.encode`."""
        self._take_threads()
        if not self._graphs:
            return self._encode(frames)
        chunks = torch.split(frames, GRAPH_ROWS)
        return torch.cat([self._run_encode(_padded(chunk))[: len(chunk)] for chunk in chunks])

    def _encode(self, frames: Tensor) -> Tensor:
        chunks = torch.split(frames, self._encode_rows)
        return self._project(torch.cat([self.model.features(chunk) for chunk in chunks])).float()

    def _project(self, features: Tensor) -> Tensor:
        count = len(features)
        groups = torch.split(F.pad(features, (0, 0, 0, -count % PROJECTOR_ROWS)), PROJECTOR_ROWS)
        return torch.cat([self.model.projector(group) for group in groups])[:count]

    @torch.inference_mode()
    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`."""
        self._take_threads()
        return self._run_rollout(latents, past_actions, candidates)

    @torch.inference_mode()
    def expect(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.expect`."""
        self._take_threads()
        return self._run_expect(latents, past_actions)

    def gradients(
        self, latents: Tensor, past_actions: Tensor, candidates: Tensor, goals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`; what is kept for the way back bounds the candidates at once."""
        self._take_threads()
        chunks = torch.split(candidates, max(1, GRADIENT_ROWS // len(candidates)), dim=1)
        parts = [self._gradients(latents, past_actions, chunk, goals) for chunk in chunks]
        costs, gradients = zip(*parts, strict=True)
        return torch.cat(costs, dim=1), torch.cat(gradients, dim=1)

    @torch.enable_grad()
    def _gradients(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        # Latents come from inference mode, of which autograd takes nothing: a clone is outside it.
        parts = (part.clone().to(self.device) for part in inputs)
        latents, past_actions, candidates, goals = parts
        candidates.requires_grad_()
        costs = goal_costs(self._rollout(latents, past_actions, candidates), goals)
        (gradients,) = torch.autograd.grad(costs.sum(), candidates)
        return costs.detach().cpu(), gradients.cpu()

    def warm_up(self) -> None:
        """See `Backend.warm_up`."""
        if not self._graphs and not encodes_alike(self.encode, self.model.config):
            self._encode_rows = 1
        run_rollouts(self, self.model.config)

    def _take_threads(self) -> None:
        # Torch has one number for all models of the process.
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


def in_precision(model: LeWM, precision: torch.dtype) -> LeWM:
    """The model itself if it has this precision, else a copy; pixels are normalised in float32."""
    if next(model.parameters()).dtype == precision:
        return model
    model = copy.deepcopy(model)
    for part in model.children():
        part.to(precision)
    return model


def _padded(frames: Tensor) -> Tensor:
    """Frames up to the next power of two, so that few shapes occur."""
    size = 1 << (len(frames) - 1).bit_length()
    return torch.cat([frames, frames.new_zeros(size - len(frames), *frames.shape[1:])])
