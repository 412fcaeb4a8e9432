"""Where a model's latents lie: their mean and covariance, kept beside the card."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import linear

FLOOR = 1e-4
"""Added to each direction's variance, in units of the mean one.

A latent's narrowest directions, in which ordinary frames hardly differ, tell most about frames that
are not ordinary; but below a hundredth of the mean deviation they hold rounding, not pictures.
"""


@dataclass(frozen=True)
class LatentReference:
    """The ``mean`` (D,) of ordinary latents and the ``whitening`` (D, D) of their covariance."""

    mean: Tensor
    whitening: Tensor

    @classmethod
    def fit(cls, latents: Tensor) -> LatentReference:
        """Of latents (N, D), N ≥ 2. In float64, since the variances span five decades."""
        samples = latents.double()
        covariance = torch.cov(samples.T).reshape(samples.shape[1], -1)
        covariance.diagonal().add_(FLOOR * covariance.diagonal().mean())
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        return cls(samples.mean(dim=0).float(), whitening.float())

    def distances(self, latents: Tensor) -> Tensor:
        """Mahalanobis distances (N,) of latents (N, D): about √D where they are ordinary."""
        lengths: Tensor = torch.linalg.vector_norm(
            linear(latents - self.mean, self.whitening), dim=-1
        )
        return lengths

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return save({"mean": self.mean, "whitening": self.whitening.contiguous()})

    @classmethod
    def from_bytes(cls, content: bytes, latent_dim: int) -> LatentReference:
        """Read a file's content.

        Raises:
            ValueError: it is no safetensors file, or holds other tensors than these.
        """
        try:
            tensors = load(content)
        except Exception as error:  # safetensors' own error is no ValueError
            raise ValueError(f"cannot be read: {error}") from error
        expected = {"mean": (latent_dim,), "whitening": (latent_dim, latent_dim)}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected or not all(
            tensor.dtype == torch.float32 and bool(tensor.isfinite().all())
            for tensor in tensors.values()
        ):
            raise ValueError(f"expected finite float32 tensors {expected}, got {found}")
        return cls(**tensors)


def digest(content: bytes) -> str:
    """The name by which a card knows its reference."""
    return hashlib.sha256(content).hexdigest()
