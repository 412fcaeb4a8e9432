"""Frames and numbers as messages."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lewm.v1 import planner_pb2 as pb

FrameLike = NDArray[Any] | bytes | str
"""Pixels (H, W, 3) of uint8, the bytes of a PNG or JPEG, a latent (D,), or a `latent_id`."""


def tensor(values: ArrayLike) -> pb.Tensor:
    """Numbers as a message: little-endian float32, row-major."""
    array = np.asarray(values, "<f4")
    return pb.Tensor(shape=array.shape, data=array.tobytes())


def frame(source: FrameLike) -> pb.Frame:
    """A frame as a message; `TypeError` or `ValueError` for what is none."""
    if isinstance(source, str):
        return pb.Frame(latent_id=source)
    if isinstance(source, bytes):
        return pb.Frame(image=source)
    array = np.asarray(source)
    if array.ndim == 1:
        return pb.Frame(latent=tensor(array))
    if array.dtype != np.uint8:
        raise TypeError(f"frame has dtype {array.dtype}, expected uint8 pixels")
    return pb.Frame(pixels=pb.Pixels(shape=array.shape, data=array.tobytes()))
