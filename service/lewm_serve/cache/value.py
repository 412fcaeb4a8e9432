"""A latent as bytes, and back; what is not one of ours is told apart.

A header of 12 bytes (magic, width, CRC-32 of the rest; little-endian), then float32 values,
little-endian.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from torch import Tensor

MAGIC = b"lwm1"
HEADER = struct.Struct("<4sII")


class ForeignValue(ValueError):
    """Bytes that hold no latent of the expected width: damaged, or written by somebody else."""


def pack(latent: Tensor) -> bytes:
    """A latent (D,) as bytes."""
    data = latent.detach().to("cpu", torch.float32).numpy().astype("<f4").tobytes()
    return HEADER.pack(MAGIC, len(latent), zlib.crc32(data)) + data


def unpack(value: bytes, width: int) -> Tensor:
    """The latent (``width``,) that bytes hold.

    Raises:
        ForeignValue: they do not.
    """
    data = value[HEADER.size :]
    if value[: HEADER.size] != HEADER.pack(MAGIC, width, zlib.crc32(data)):
        raise ForeignValue("not the header of such a latent")
    if len(data) != 4 * width:
        raise ForeignValue(f"{len(data)} bytes for a latent of width {width}")
    latent = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(latent).all():
        raise ForeignValue("not finite")
    return torch.from_numpy(latent)
