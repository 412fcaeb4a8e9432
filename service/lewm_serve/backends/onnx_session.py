"""A graph on ONNX Runtime, called with arrays by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from lewm_models.export.graph import OnnxGraph

Array = NDArray[np.float32]


class Session:
    """Runs one graph on the thread that calls it."""

    def __init__(self, graph: OnnxGraph, device: torch.device) -> None:
        options = onnxruntime.SessionOptions()
        # Rows are split among threads outside (see `Shards`), so that they meet once, not at
        # every operation.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Where sessions share weights, so do these; the arrays have to outlive the session.
        self._weights = [
            onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()
        ]
        options.add_external_initializers(list(graph.weights), self._weights)
        self._session = onnxruntime.InferenceSession(
            graph.model.SerializeToString(), options, providers=[_provider(device)]
        )
        self.inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, arrays: Mapping[str, Array | NDArray[np.uint8]]) -> dict[str, Array]:
        """Outputs by name."""
        return dict(zip(self._outputs, self._session.run(None, arrays), strict=True))


def _provider(device: torch.device) -> str | tuple[str, dict[str, int]]:
    if device.type == "cpu":
        return "CPUExecutionProvider"
    return "CUDAExecutionProvider", {"device_id": device.index or 0}


def runs_on(device: torch.device) -> bool:
    """Whether ONNX Runtime is here for this device: on a GPU, its own package is needed."""
    provider = _provider(device)
    name = provider if isinstance(provider, str) else provider[0]
    return name in onnxruntime.get_available_providers()
