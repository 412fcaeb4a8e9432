"""The content of a safetensors file that holds a small network: written, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def network_to_bytes(network: nn.Module) -> bytes:
    """The tensors of a network, in the order of their names."""
    tensors = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    return save(dict(sorted(tensors.items())))


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        ValueError: the content is no safetensors file.
    """
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"cannot be read: {error}") from error


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare tensors with those of a network: their names, types and shapes.

    Raises:
        ValueError: they differ, or a value is not finite; the message names the tensor.
    """
    if set(tensors) != set(expected):
        raise ValueError(f"expected the tensors {sorted(expected)}, got {sorted(tensors)}")
    for name, tensor in sorted(tensors.items()):
        shape = tuple(expected[name].shape)
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name}: expected float32 of shape {shape}, got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: holds values that are not finite")


def load_tensors(
    network: NetworkT, tensors: Mapping[str, Tensor], *, deviations: Sequence[str]
) -> NetworkT:
    """The network with these tensors; without gradients, in ``eval()`` mode.

    Raises:
        ValueError: they are not those of the network; see `check_tensors`. Or one of
            ``deviations``, by which values are divided, is not above 0.
    """
    check_tensors(tensors, network.state_dict())
    for name in deviations:
        if bool((tensors[name] <= 0).any()):
            raise ValueError(f"{name}: expected deviations above 0")
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
