"""The predictor on ONNX Runtime: one small graph for each kind of window that occurs."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.export.predictor import extension_graph, last_token_modulations, modulation_graph
from lewm_models.export.weights import PredictorWeights
from lewm_models.lewm import LeWM
from lewm_serve.backends.onnx_session import Session
from lewm_serve.backends.stepwise import StepwiseKernel

Array = NDArray[np.float32]

Window = dict[str, Array]
"""Keys and values (R, heads, head width) by layer and token."""

Modulations = dict[str, Array]
"""Shifts, scales and gates (T · R, width) by layer."""


class OnnxKernel(StepwiseKernel[Modulations, Window]):
    """Graphs are built when they are first needed."""

    def __init__(self, model: LeWM, device: torch.device) -> None:
        self.history = model.config.history
        self._weights = PredictorWeights(model)
        self._device = device
        self._layers = model.config.predictor_depth
        self._of_last_token = set(last_token_modulations(model.config))
        self._modulate = Session(modulation_graph(self._weights), device)
        self._extensions: dict[tuple[int, int], Session] = {}
        self._building = Lock()

    def modulations(self, actions: Tensor) -> Modulations:
        """See `StepwiseKernel`."""
        return self._modulate({"actions": actions.flatten(0, 1).numpy()})

    def extend(
        self, window: Window | None, latents: Sequence[Tensor], modulations: Modulations, step: int
    ) -> tuple[Tensor, Window]:
        """See `StepwiseKernel`."""
        before = window or {}
        tokens, count, rows = self.tokens(before), len(latents), len(latents[0])
        begin, last, end = (rows * at for at in (step, step + count - 1, step + count))
        feed = dict(before)
        for token, latent in enumerate(latents, tokens):
            feed[f"latent.{token}"] = latent.numpy()
        for name, values in modulations.items():
            feed[name] = values[last if name in self._of_last_token else begin : end]
        out = self._extension(tokens, count)(feed)
        return torch.from_numpy(out.pop("latent")), before | out

    def tokens(self, window: Window) -> int:
        """See `StepwiseKernel`."""
        return len(window) // (2 * self._layers)

    def select(self, window: Window, rows: Tensor) -> Window:
        """See `Kernel`."""
        index = rows.numpy()
        return {name: values[index] for name, values in window.items()}

    def _extension(self, before: int, new: int) -> Session:
        with self._building:
            if (before, new) not in self._extensions:
                graph = extension_graph(self._weights, before, new)
                self._extensions[before, new] = Session(graph, self._device)
            return self._extensions[before, new]
