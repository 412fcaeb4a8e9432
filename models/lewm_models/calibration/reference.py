"""The distribution of ordinary latents, and the Mahalanobis distance from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import linear

VARIANCE_FLOOR = 1e-4
"""Added to the variance of each dimension, as a share of the mean variance.

The directions in which ordinary latents vary least detect unusual frames best. But a deviation
below a hundredth of the mean one is rounding and says nothing about the frames.
"""


@dataclass(frozen=True)
class LatentReference:
    """The mean of ordinary latents and the whitening matrix of their covariance.

    Args:
        mean: (D,) float32.
        whitening: (D, D) float32, the inverse of the covariance's Cholesky factor.
    """

    mean: Tensor
    whitening: Tensor

    @classmethod
    def fit(cls, latents: Tensor) -> LatentReference:
        """Fit to latents (N, D), N ≥ 2."""
        samples = latents.double()  # the variances span five orders of magnitude
        covariance = torch.cov(samples.T).reshape(samples.shape[1], -1)
        covariance.diagonal().add_(VARIANCE_FLOOR * covariance.diagonal().mean())
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        return cls(samples.mean(dim=0).float(), whitening.float())

    def distances(self, latents: Tensor) -> Tensor:
        """Mahalanobis distances (N,) of latents (N, D); for ordinary latents about √D."""
        lengths: Tensor = torch.linalg.vector_norm(
            linear(latents - self.mean, self.whitening), dim=-1
        )
        return lengths

    def to_bytes(self) -> bytes:
        """The content of `calibration.safetensors`."""
        return save({"mean": self.mean, "whitening": self.whitening.contiguous()})

    @classmethod
    def from_bytes(cls, content: bytes, latent_dim: int) -> LatentReference:
        """Read the content of `calibration.safetensors`.

        Raises:
            ValueError: the content is not a safetensors file or holds other tensors.
        """
        try:
            tensors = load(content)
        except Exception as error:  # the exception of safetensors is not a ValueError
            raise ValueError(f"cannot be read: {error}") from error
        expected = {"mean": (latent_dim,), "whitening": (latent_dim, latent_dim)}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != expected or not all(
            tensor.dtype == torch.float32 and bool(tensor.isfinite().all())
            for tensor in tensors.values()
        ):
            raise ValueError(f"expected finite float32 tensors {expected}, got {shapes}")
        return cls(**tensors)


def sha256_of(content: bytes) -> str:
    """The hash by which a card refers to the content of its `calibration.safetensors`."""
    return hashlib.sha256(content).hexdigest()
