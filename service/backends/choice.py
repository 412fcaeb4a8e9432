"""Which backend runs a model."""

from __future__ import annotations

import torch

from models.lewm import LeWM
from service.backends.backend import ThreadedBackend
from service.backends.onnx import OnnxBackend
from service.backends.torch import TorchBackend


def make_backend(name: str, model: LeWM, device: torch.device) -> ThreadedBackend:
    """The backend of a name; `auto` is torch."""
    return OnnxBackend(model, device) if name == "onnx" else TorchBackend(model, device)
