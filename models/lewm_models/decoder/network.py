"""The network of a decoder and the file that holds it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm_models.network_file import load_tensors, network_to_bytes, read_tensors

FRAME_SIDE = 64
"""The side of the decoded frames, in pixels."""

COARSE_SIDE = 4
"""The side of the grid that the latent becomes first."""

MAX_WIDTH, MIN_WIDTH = 128, 8
"""The channels of that grid."""

MAX_FIRST_VALUES = 600_000
"""The most weights of the first layer, so that the file has at most 4 MB for any latent."""

MIDDLE_CHANNELS = (96, 64, 48)
"""The channels of the grids with sides of 8, 16 and 32 pixels."""

MIN_STD = 1e-6


class FrameDecoder(nn.Module):
    """Frames of 64 × 64 pixels from latents: what differs from the mean frame.

    Args:
        latent_mean: (D,), with which latents are standardised, as is ``latent_std``.
        latent_std: (D,).
        mean_frame: (3, 64, 64), 0 to 1.
        width: the channels of the first grid; None: as many as fit in the file.
    """

    latent_mean: Tensor
    latent_std: Tensor
    mean_frame: Tensor

    def __init__(
        self,
        latent_mean: Tensor,
        latent_std: Tensor,
        *,
        mean_frame: Tensor,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("latent_mean", latent_mean.float())
        self.register_buffer("latent_std", latent_std.float().clamp_min(MIN_STD))
        self.register_buffer("mean_frame", mean_frame.float())
        cells = COARSE_SIDE**2
        if width is None:
            fitting = MAX_FIRST_VALUES // (cells * len(latent_mean))
            width = max(MIN_WIDTH, min(MAX_WIDTH, fitting))
        self.width = width
        self.first = nn.Linear(len(latent_mean), cells * width)
        channels = (width, *MIDDLE_CHANNELS)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip(channels, MIDDLE_CHANNELS, strict=False)
        )
        self.last = nn.Conv2d(MIDDLE_CHANNELS[-1], 12, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, D) → frames (N, 3, 64, 64), about 0 to 1."""
        standardised = (latents - self.latent_mean) / self.latent_std
        grid = self.first(standardised).view(-1, self.width, COARSE_SIDE, COARSE_SIDE)
        for layer in self.layers:
            grid = F.gelu(layer(F.interpolate(F.gelu(grid), scale_factor=2)))
        difference: Tensor = F.pixel_shuffle(self.last(grid), 2)
        frames: Tensor = self.mean_frame + difference
        return frames

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> Tensor:
        """Latents (N, D) → pictures (N, 64, 64, 3) uint8."""
        frames = self(latents).clamp(0, 1).mul(255).round().to(torch.uint8)
        pictures: Tensor = frames.permute(0, 2, 3, 1).contiguous()
        return pictures

    def to_bytes(self) -> bytes:
        """The content of `decoder.safetensors`."""
        return network_to_bytes(self)

    @classmethod
    def from_bytes(cls, content: bytes, latent_dim: int) -> FrameDecoder:
        """Read the content of `decoder.safetensors`; without gradients, in ``eval()`` mode.

        Raises:
            ValueError: the content is no safetensors file, or holds other tensors than those of a
                decoder of latents (latent_dim,).
        """
        tensors = read_tensors(content)
        first = tensors.get("first.bias")
        cells = COARSE_SIDE**2
        values = 0 if first is None else first.numel()
        if values % cells or not MIN_WIDTH * cells <= values <= MAX_WIDTH * cells:
            raise ValueError(
                f"first.bias: expected {MIN_WIDTH} to {MAX_WIDTH} times {cells} values, "
                f"got {values}"
            )
        network = cls(
            torch.zeros(latent_dim),
            torch.ones(latent_dim),
            mean_frame=torch.zeros(3, FRAME_SIDE, FRAME_SIDE),
            width=values // cells,
        )
        return load_tensors(network, tensors, deviations=["latent_std"])
