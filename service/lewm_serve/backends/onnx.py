"""The ONNX Runtime backend, float32: graphs written from the weights of a model.

There is one graph for the encoder, one for the modulations, and one for each kind of window that
occurs in roll-outs: m known tokens and n new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.export.encoder import encoder_graph
from lewm_models.export.graph import OnnxGraph
from lewm_models.export.predictor import extension_graph, last_token_modulations, modulation_graph
from lewm_models.export.runtime import onnxruntime
from lewm_models.export.weights import PredictorWeights
from lewm_models.lewm import LeWM
from lewm_serve.backends.backend import (
    batch_changes_latents,
    encoder_rows,
    hidden_states,
    threads_change_rollouts,
    warm_up_rollouts,
)
from lewm_serve.backends.rollout import RowThreads, SharedContextRollout, StepwiseKernel
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.objectives import Objective

Array = NDArray[np.float32]

Window = dict[str, Array]
"""Keys and values (R, heads, head width) by layer and token."""

Modulations = dict[str, Array]
"""Shifts, scales and gates (T · R, width) by layer."""


class OnnxBackend:
    """A LeWM in float32 on ONNX Runtime; rows are split among threads.

    PyTorch computes the gradients, which ONNX Runtime cannot.
    """

    name = "onnx"
    precision = encode_precision = "float32"
    rows_are_independent = True
    device_rollouts = None

    def __init__(self, model: LeWM, device: torch.device) -> None:
        self.model = model
        self.device = str(device)
        self._torch = TorchBackend(model, device)
        self._encoder = OnnxSession(encoder_graph(model), device)
        self._encoder_rows = encoder_rows(model.config)
        self._encode_threads = RowThreads(min_rows=1)
        self._rollout_threads = RowThreads()
        self._rollout = SharedContextRollout(
            OnnxKernel(model, device), self._rollout_threads, remember=True
        )
        self.threads = 1

    @property
    def threads(self) -> int:
        """See `ThreadedBackend`."""
        return self._rollout_threads.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._encode_threads.use(count)
        self._rollout_threads.use(count)
        self._torch.threads = count

    def adapt_threads(self, all_threads: int) -> None:
        """See `ThreadedBackend`."""
        if not threads_change_rollouts(self, self.model.config, all_threads):
            self._rollout_threads.choose_by_measurement(all_threads)
        # Threads split a batch of frames, and after `warm_up` batches change no latent.
        self._encode_threads.choose_by_measurement(all_threads)
        self._torch.adapt_threads(all_threads)

    def renew_threads(self) -> None:
        """See `ThreadedBackend`."""
        self._encode_threads.renew()
        self._rollout_threads.renew()

    def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        """See `Backend.encode`."""
        inputs, given = {"frames": frames}, self.model.config.state_input
        if states is None and given is not None:
            states = hidden_states(given, len(frames))
        if states is not None:
            inputs["states"] = states

        def encode_rows(rows: slice) -> Tensor:
            parts = {
                name: torch.split(values[rows], self._encoder_rows)
                for name, values in inputs.items()
            }
            arrays = [
                self._encoder({name: part[index].numpy() for name, part in parts.items()})[
                    "latents"
                ]
                for index in range(len(parts["frames"]))
            ]
            return torch.cat([torch.from_numpy(latents) for latents in arrays])

        return torch.cat(self._encode_threads.map(encode_rows, len(frames), call="encodes"))

    @torch.inference_mode()
    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`."""
        return self._rollout(latents, past_actions, candidates)

    @torch.inference_mode()
    def predict_newest(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.predict_newest`."""
        return self._rollout.predict_newest(latents, past_actions)

    def gradients(
        self,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
        *,
        goals: Tensor,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`."""
        return self._torch.gradients(
            latents, past_actions, candidates, goals=goals, objective=objective
        )

    def warm_up(self) -> None:
        """See `Backend.warm_up`."""
        if batch_changes_latents(self.encode, self.model.config):
            self._encoder_rows = 1
        warm_up_rollouts(self, self.model.config)


class OnnxKernel(StepwiseKernel[Modulations, Window]):
    """The predictor on ONNX Runtime. A graph is built when its kind of window first occurs."""

    def __init__(self, model: LeWM, device: torch.device) -> None:
        self.history = model.config.history
        self._weights = PredictorWeights(model)
        self._device = device
        self._layers = model.config.predictor_depth
        self._of_last_token = set(last_token_modulations(model.config))
        self._modulate = OnnxSession(modulation_graph(self._weights), device)
        self._extensions: dict[tuple[int, int], OnnxSession] = {}
        self._building = Lock()

    def modulations(self, actions: Tensor) -> Modulations:
        """See `StepwiseKernel`."""
        return self._modulate({"actions": actions.flatten(0, 1).numpy()})

    def extend(
        self,
        window: Window | None,
        latents: Sequence[Tensor],
        modulations: Modulations,
        *,
        step: int,
    ) -> tuple[Tensor, Window]:
        """See `StepwiseKernel`."""
        known = window or {}
        known_count, new_count, rows = self.tokens(known), len(latents), len(latents[0])
        begin, last, end = (
            rows * index for index in (step, step + new_count - 1, step + new_count)
        )
        inputs = dict(known)
        for token, latent in enumerate(latents, known_count):
            inputs[f"latent.{token}"] = latent.numpy()
        for name, values in modulations.items():
            inputs[name] = values[last if name in self._of_last_token else begin : end]
        outputs = self._extension(known_count, new_count)(inputs)
        return torch.from_numpy(outputs.pop("latent")), known | outputs

    def tokens(self, window: Window) -> int:
        """See `StepwiseKernel`."""
        return len(window) // (2 * self._layers)

    def select(self, window: Window, rows: Tensor) -> Window:
        """See `Kernel`."""
        index = rows.numpy()
        return {name: values[index] for name, values in window.items()}

    def _extension(self, known_count: int, new_count: int) -> OnnxSession:
        with self._building:
            if (known_count, new_count) not in self._extensions:
                graph = extension_graph(self._weights, known_count, new_count)
                self._extensions[known_count, new_count] = OnnxSession(graph, self._device)
            return self._extensions[known_count, new_count]


class OnnxSession:
    """A graph on ONNX Runtime, called with arrays by name, on the thread that calls it."""

    def __init__(self, graph: OnnxGraph, device: torch.device) -> None:
        options = onnxruntime.SessionOptions()
        # `RowThreads` splits rows among threads, so that threads wait for each other once a call
        # and not after every operation.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Sessions of one model share these arrays, which must live as long as the session.
        self._weights = [
            onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()
        ]
        options.add_external_initializers(list(graph.weights), self._weights)
        self._session = onnxruntime.InferenceSession(
            graph.model.SerializeToString(), options, providers=[_provider(device)]
        )
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, arrays: Mapping[str, Array | NDArray[np.uint8]]) -> dict[str, Array]:
        """Outputs by name."""
        return dict(zip(self._outputs, self._session.run(None, arrays), strict=True))


def runs_on(device: torch.device) -> bool:
    """Whether ONNX Runtime is installed for this device; a GPU needs another package."""
    provider = _provider(device)
    name = provider if isinstance(provider, str) else provider[0]
    return name in onnxruntime.get_available_providers()


def _provider(device: torch.device) -> str | tuple[str, dict[str, int]]:
    if device.type == "cpu":
        return "CPUExecutionProvider"
    return "CUDAExecutionProvider", {"device_id": device.index or 0}
