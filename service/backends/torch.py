"""The eager PyTorch backend, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from models.lewm import LeWM
from service.backends.backend import goal_costs
from service.backends.rollout import Rollout
from service.backends.shards import Shards
from service.backends.torch_kernel import TorchKernel
from service.backends.warm_up import encodes_alike, run_rollouts

PROJECTOR_ROWS = 8
"""Rows of one product in the projector. Matrix libraries round a product of few rows otherwise
than one of many; a fixed number makes a frame's latent independent of its batch."""

ENCODE_ROWS = 32
"""Frames in one pass through the encoder; more gain nothing."""

GRADIENT_ROWS = 64
"""Candidates whose roll-outs are kept in memory at once for their gradients."""


class TorchBackend:
    """A LeWM in float32, eager."""

    name = "torch"
    precision = "float32"

    def __init__(self, model: LeWM, device: torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = str(device)
        self._rollout = Rollout(TorchKernel(self.model), Shards(1))
        self._encode_rows = ENCODE_ROWS

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> Tensor:
        """See `Backend.encode`."""
        chunks = torch.split(frames.to(self.device), self._encode_rows)
        return self._project(torch.cat([self.model.features(chunk) for chunk in chunks])).cpu()

    def _project(self, features: Tensor) -> Tensor:
        count = len(features)
        padding = features.new_zeros(-count % PROJECTOR_ROWS, features.shape[1])
        chunks = torch.split(torch.cat([features, padding]), PROJECTOR_ROWS)
        return torch.cat([self.model.projector(chunk) for chunk in chunks])[:count]

    @torch.inference_mode()
    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`."""
        parts = (part.to(self.device) for part in (latents, past_actions, candidates))
        return self._rollout(*parts).cpu()

    def gradients(
        self, latents: Tensor, past_actions: Tensor, candidates: Tensor, goals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`; what is kept for the way back bounds the candidates at once."""
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
        if self.device == "cpu" and not encodes_alike(self.encode, self.model.config):
            self._encode_rows = 1
        run_rollouts(self.rollout, self.model.config)

    @property
    def threads(self) -> int:
        """See `ThreadedBackend`; torch has one number for the whole process."""
        return torch.get_num_threads()

    @threads.setter
    def threads(self, count: int) -> None:
        torch.set_num_threads(count)
