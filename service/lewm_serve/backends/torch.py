"""The PyTorch backend: eager on a CPU, CUDA graphs on a GPU; float32 or bfloat16."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm_models.lewm import LeWM, PredictorLayer
from lewm_serve.backends.backend import (
    DeviceRollouts,
    batch_changes_latents,
    encoder_rows,
    hidden_states,
    warm_up_rollouts,
)
from lewm_serve.backends.cuda_graph import CudaGraphs
from lewm_serve.backends.folded import FoldedKernel
from lewm_serve.backends.rollout import (
    RowThreads,
    SharedContextRollout,
    StepwiseKernel,
    ThreadPolicy,
)
from lewm_serve.objectives import Objective

logger = logging.getLogger(__name__)

T = TypeVar("T")

PROJECTOR_ROWS = 8
"""Rows of one product in the projector. Matrix libraries round a product of few rows differently
from one of many rows. With a fixed number, a frame's latent does not depend on its batch."""

MAX_GRAPH_FRAMES = 32
"""The most frames that one CUDA graph encodes."""

GRADIENT_CANDIDATES = 64
"""Candidates whose roll-outs are in memory at the same time while gradients are computed."""


class TorchBackend:
    """A LeWM in PyTorch. It takes and returns float32 latents, whatever its own precision.

    The bits of its results depend on the number of threads, so `adapt_threads` never changes it.

    Args:
        model: in ``eval()`` mode.
        device: where it runs.
        precision: of weights and of roll-outs.
        searches_on_device: whether the engine's searches stay on the device; None: on a GPU.
    """

    name = "torch"
    rows_are_independent = False

    def __init__(
        self,
        model: LeWM,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        *,
        searches_on_device: bool | None = None,
    ) -> None:
        self.model = in_precision(model.eval().requires_grad_(False), precision).to(device)
        self.device = str(device)
        self.precision = self.encode_precision = str(precision).removeprefix("torch.")
        self._threads = torch.get_num_threads()
        self._policy: ThreadPolicy | None = None
        self._rollout = SharedContextRollout(TorchKernel(self.model), RowThreads(1))
        self._graphs = device.type == "cuda"
        rows = MAX_GRAPH_FRAMES if self._graphs else encoder_rows(model.config)
        # Not a method of this object: it would refer to itself, so that its memory would be
        # released late.
        self._encoder = TorchEncoder(self.model, rows)
        self._run_encode: Callable[..., Tensor] = self._encoder
        self._run_rollout: Callable[..., Tensor] = self._rollout
        self._run_predict_newest: Callable[..., Tensor] = self._rollout.predict_newest
        self.device_rollouts: DeviceRollouts | None = None
        if searches_on_device is None:
            searches_on_device = self._graphs
        if searches_on_device or self._graphs:
            folded = SharedContextRollout(FoldedKernel(model, device, precision), RowThreads(1))
            if searches_on_device:
                pool = torch.cuda.graph_pool_handle() if self._graphs else None
                self.device_rollouts = DeviceRollouts(folded, device, graph_pool=pool)
            if self._graphs:
                self._run_encode = CudaGraphs(self._encoder, device)
                self._run_rollout = CudaGraphs(folded, device)
                self._run_predict_newest = CudaGraphs(folded.predict_newest, device)

    @property
    def threads(self) -> int:
        """See `ThreadedBackend`."""
        return self._threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._threads = count
        self._policy = None

    def adapt_threads(self, all_threads: int) -> None:
        """See `ThreadedBackend`: it only logs a warning."""
        self._policy = ThreadPolicy(self._threads, all_threads)

    def renew_threads(self) -> None:
        """See `ThreadedBackend`. PyTorch has threads for each thread that calls it."""

    @torch.inference_mode()
    def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        """See `Backend.encode`."""
        _set_torch_threads(self._threads)
        given = self.model.config.state_input
        if states is None and given is not None:
            states = hidden_states(given, len(frames))
        inputs = (frames,) if states is None else (frames, states)
        if not self._graphs:
            return self._encoder(*inputs)
        latents = []
        for chunks in zip(*(torch.split(rows, MAX_GRAPH_FRAMES) for rows in inputs), strict=True):
            encoded = self._run_encode(*map(_padded, chunks))
            latents.append(encoded[: len(chunks[0])])
        return torch.cat(latents)

    @torch.inference_mode()
    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`."""
        compute = partial(self._run_rollout, latents, past_actions, candidates)
        return self._timed(candidates, compute)

    @torch.inference_mode()
    def predict_newest(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.predict_newest`."""
        _set_torch_threads(self._threads)
        return self._run_predict_newest(latents, past_actions)

    def gradients(
        self,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
        *,
        goals: Tensor,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`. Candidates are computed in chunks, which bounds the memory.

        They are computed on one thread. Gradients are thousands of short operations, and on two
        threads each one ends with a barrier. While other processes use the processor, the threads
        wait for each other at each of them: a chunk of 20 ms then took seconds.
        """
        _set_torch_threads(1)
        chunks = torch.split(candidates, max(1, GRADIENT_CANDIDATES // len(candidates)), dim=1)
        parts = [
            self._gradients(latents, past_actions, chunk, goals=goals, objective=objective)
            for chunk in chunks
        ]
        costs, gradients = zip(*parts, strict=True)
        return torch.cat(costs, dim=1), torch.cat(gradients, dim=1)

    @torch.enable_grad()
    def _gradients(
        self,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
        *,
        goals: Tensor,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        # Autograd refuses tensors that were made in inference mode, such as latents, but not their
        # clones.
        latents, past_actions, candidates, goals = (
            tensor.clone().to(self.device) for tensor in (latents, past_actions, candidates, goals)
        )
        candidates.requires_grad_()
        costs = objective(self._rollout(latents, past_actions, candidates), goals)
        (gradients,) = torch.autograd.grad(costs.sum(), candidates)
        return costs.detach().cpu(), gradients.cpu()

    def warm_up(self) -> None:
        """See `Backend.warm_up`."""
        if not self._graphs and batch_changes_latents(self.encode, self.model.config):
            self._encoder.rows = 1
        warm_up_rollouts(self, self.model.config)

    def _timed(self, candidates: Tensor, compute: Callable[[], T]) -> T:
        """Roll out, and time it; sometimes do it once more to time another number of threads."""
        policy = self._policy
        if policy is None:
            _set_torch_threads(self._threads)
            return compute()
        plans, samples, horizon, _ = candidates.shape
        call, rows = f"roll-outs (horizon {horizon})", plans * samples
        threads = policy.threads(call, rows)
        if threads != self._threads:
            seconds, _ = _seconds_on(threads, compute)
            if policy.observe(call, rows, threads=threads, seconds=seconds):
                self._policy = None
                logger.warning(
                    "%s of about %d rows are faster on %d threads than on %d; PyTorch keeps the "
                    "number, since another one would change the bits of plans: restart the server, "
                    "or set LEWM_THREADS",
                    call,
                    rows,
                    threads,
                    self._threads,
                )
                return self._timed(candidates, compute)
        seconds, result = _seconds_on(self._threads, compute)
        policy.observe(call, rows, threads=self._threads, seconds=seconds)
        return result


class TorchEncoder:
    """Encodes frames (N, size, size, 3) uint8 to latents (N, D), in passes of ``rows`` frames.

    A model with a state input needs the states (N, X) too.
    """

    def __init__(self, model: LeWM, rows: int) -> None:
        self.model = model
        self.rows = rows

    def __call__(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        """The latents in float32."""
        chunks = torch.split(frames, self.rows)
        features = torch.cat([self.model.features(chunk) for chunk in chunks])
        return self._project(features, states).float()

    def _project(self, features: Tensor, states: Tensor | None) -> Tensor:
        groups = self._groups(features)
        if states is not None:
            pairs = zip(groups, self._groups(states), strict=True)
            groups = [self.model.with_states(*pair) for pair in pairs]
        return torch.cat([self.model.projector(group) for group in groups])[: len(features)]

    def _groups(self, rows: Tensor) -> Sequence[Tensor]:
        """Rows with zeros appended, in groups of `PROJECTOR_ROWS`."""
        return torch.split(F.pad(rows, (0, 0, 0, -len(rows) % PROJECTOR_ROWS)), PROJECTOR_ROWS)


class TorchKernel(StepwiseKernel[Tensor, "Window"]):
    """The predictor of a model in ``eval()`` mode, in PyTorch, on any device.

    Modulations are a tensor (T, R, L, 6, W). The first axis of tensors of several tokens is the
    token, so that the values of one step are contiguous.

    Axes: R rows, n new tokens, m tokens before them, W width, h heads, d head width, L layers.
    """

    def __init__(self, model: LeWM) -> None:
        self.model = model
        self.history = model.config.history
        transformer = model.predictor.transformer
        self._layers = [cast(PredictorLayer, layer) for layer in transformer.layers]
        linears = [cast(nn.Linear, layer.adaLN_modulation[1]) for layer in self._layers]
        self._weight = torch.cat([linear.weight for linear in linears])
        self._bias = torch.cat([linear.bias for linear in linears])

    def modulations(self, actions: Tensor) -> Tensor:
        """See `StepwiseKernel`."""
        actions = actions.to(self._weight.dtype)
        condition = self.model.predictor.transformer.cond_proj(self.model.action_encoder(actions))
        packed = F.linear(F.silu(condition), self._weight, self._bias)
        width = self.model.config.predictor_width
        return packed.reshape(*packed.shape[:2], len(self._layers), 6, width)

    def extend(
        self, window: Window | None, latents: Sequence[Tensor], modulations: Tensor, *, step: int
    ) -> tuple[Tensor, Window]:
        """See `StepwiseKernel`."""
        predictor = self.model.predictor
        count = len(latents)
        position = len(window[0][0]) if window else 0
        positions = predictor.pos_embedding[0, position : position + count].unsqueeze(1)
        tokens = (torch.stack(list(latents)) + positions).to(positions.dtype)
        x = predictor.transformer.input_proj(tokens)
        longer: Window = []
        for index, layer in enumerate(self._layers):
            shift1, scale1, gate1, shift2, scale2, gate2 = modulations[
                step : step + count, :, index
            ].unbind(2)
            attention = layer.attn
            normed = attention.norm(layer.norm1(x) * (1 + scale1) + shift1)
            queries, keys, values = (
                part.unflatten(-1, (attention.heads, -1))
                for part in attention.to_qkv(normed).chunk(3, dim=-1)
            )
            if window:
                keys, values = (
                    torch.cat(pair) for pair in zip(window[index], (keys, values), strict=True)
                )
            longer.append((keys, values))
            if layer is self._layers[-1]:  # only the output of the last token is needed
                x, queries, gate1 = x[-1:], queries[-1:], gate1[-1:]
                shift2, scale2, gate2 = shift2[-1:], scale2[-1:], gate2[-1:]
            x = x + gate1 * attention.to_out(_attend(queries, keys, values))
            x = x + gate2 * layer.mlp(layer.norm2(x) * (1 + scale2) + shift2)
        hidden = predictor.transformer.output_proj(predictor.transformer.norm(x[-1]))
        return self.model.pred_proj(hidden).to(latents[0].dtype), longer

    def tokens(self, window: Window) -> int:
        """See `StepwiseKernel`."""
        return len(window[0][0])

    def select(self, window: Window, rows: Tensor) -> Window:
        """See `Kernel`."""
        return [(keys[:, rows], values[:, rows]) for keys, values in window]


Window = list[tuple[Tensor, Tensor]]
"""Keys and values (m, R, h, d) of each layer."""


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last n tokens (n, R, h, d) over all (m + n, R, h, d) → (n, R, h·d).

    It is written as products and sums. For so few tokens they are faster than batched matrix
    products.
    """
    scale, before = queries.shape[-1] ** -0.5, len(keys) - len(queries)
    outputs = []
    for index, query in enumerate(queries):
        visible = before + index + 1
        scores = (query * keys[:visible]).sum(-1, keepdim=True) * scale
        outputs.append((scores.softmax(dim=0) * values[:visible]).sum(0))
    return torch.stack(outputs).flatten(2)


def in_precision(model: LeWM, precision: torch.dtype) -> LeWM:
    """The model itself if it has this precision, else a copy.

    The parameters of the model's parts are converted; its own buffers, which normalise pixels, stay
    float32.
    """
    if next(model.parameters()).dtype == precision:
        return model
    model = copy.deepcopy(model)
    for part in model.children():
        part.to(precision)
    return model


def _set_torch_threads(threads: int) -> None:
    # PyTorch has one number for all models of the process.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _seconds_on(threads: int, compute: Callable[[], T]) -> tuple[float, T]:
    _set_torch_threads(threads)
    start = time.perf_counter()
    result = compute()
    return time.perf_counter() - start, result


def _padded(frames: Tensor) -> Tensor:
    """Frames with zeros appended up to the next power of two, so that few shapes occur."""
    size = 1 << (len(frames) - 1).bit_length()
    return torch.cat([frames, frames.new_zeros(size - len(frames), *frames.shape[1:])])
