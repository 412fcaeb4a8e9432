"""The native backend: roll-outs in bfloat16 on a CPU, by the C++ code beside this file.

Axes: R rows, n new tokens, T steps, L layers, D latent_dim, A one action block.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lewm_models.config import LeWMConfig
from lewm_models.distance.network import GoalDistance
from lewm_models.lewm import LeWM
from lewm_serve.backends.backend import (
    Backend,
    ThreadedBackend,
    threads_change_rollouts,
    warm_up_rollouts,
)
from lewm_serve.backends.native import library
from lewm_serve.backends.native.build import NativeUnavailable
from lewm_serve.backends.native.weights import (
    HALF_MATRIX_BLOCK,
    MATRIX_BLOCK,
    PackedDistance,
    PackedPredictor,
    padded,
)
from lewm_serve.backends.rollout import RowThreads, SharedContextRollout
from lewm_serve.objectives import Objective
from lewm_serve.objectives.distance import DistanceObjective

MAX_WIDTH, MAX_HISTORY = 4096, 16
"""The limits of layers.h: `MAX_WIDTH` and `MAX_TOKENS`."""

Window = list[Tensor]
"""For each token its keys and values (L, panels, R, 32). A panel holds 32 columns, keys first, then
values; see `Panels` in product.h."""


class NativeBackend:
    """A LeWM whose roll-outs are computed in bfloat16; their rows are split among threads.

    Another backend, in float32, encodes frames and computes gradients. A plan encodes one or two
    frames and rolls out hundreds of candidates, so a faster encoding would save little. And the
    bits of a latent do not depend on whether this backend is used.

    Args:
        model: the model.
        float32_backend: the other backend.
        compile_missing: see `library.load_library`.

    Raises:
        NativeUnavailable: the native code cannot run this model, or cannot run on this machine.
    """

    name = "native"
    precision = "bfloat16"
    rows_are_independent = True
    device_rollouts = None

    def __init__(
        self, model: LeWM, float32_backend: ThreadedBackend, *, compile_missing: bool = False
    ) -> None:
        self.code = native_code(
            model.config,
            torch.device(float32_backend.device),
            compile_missing=compile_missing,
        )
        library.keep_freed_memory()
        self._config = model.config
        self._float32_backend = float32_backend
        self.device = float32_backend.device
        self.encode_precision = float32_backend.encode_precision
        self._row_threads = RowThreads()
        kernel = NativeKernel(model.eval(), self.code)
        self._rollout = SharedContextRollout(kernel, self._row_threads, remember=True)
        self.threads = 1

    @property
    def threads(self) -> int:
        """See `ThreadedBackend`."""
        return self._row_threads.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self._row_threads.use(count)
        self._float32_backend.threads = count

    def adapt_threads(self, all_threads: int) -> None:
        """See `ThreadedBackend`."""
        if not threads_change_rollouts(self, self._config, all_threads):
            self._row_threads.choose_by_measurement(all_threads)
        self._float32_backend.adapt_threads(all_threads)

    def renew_threads(self) -> None:
        """See `ThreadedBackend`."""
        self._row_threads.renew()
        self._float32_backend.renew_threads()

    def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        """See `Backend.encode`."""
        return self._float32_backend.encode(frames, states)

    @torch.inference_mode()
    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`."""
        _keep_torch_on_one_thread()
        return self._rollout(latents, past_actions, candidates)

    @torch.inference_mode()
    def predict_newest(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.predict_newest`."""
        _keep_torch_on_one_thread()
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
        return self._float32_backend.gradients(
            latents, past_actions, candidates, goals=goals, objective=objective
        )

    def warm_up(self) -> None:
        """See `Backend.warm_up`."""
        self._float32_backend.warm_up()
        warm_up_rollouts(self, self._config)


class NativeKernel:
    """The `Kernel` that calls the native code; for a model in ``eval()`` mode.

    ``use_tiles=False`` multiplies by AVX-512 dot products even where there are AMX tiles.
    """

    def __init__(self, model: LeWM, code: ctypes.CDLL, *, use_tiles: bool = True) -> None:
        config = model.config
        self.history = config.history
        self._code = code
        self._layers = config.predictor_depth
        self._latent_dim = config.latent_dim
        self._inner = config.predictor_heads * config.predictor_head_dim
        self._packed = PackedPredictor(model, use_tiles=use_tiles and has_tiles(code))
        self._model = self._packed.predictor

    def begin(self, latents: Sequence[Tensor], actions: Tensor) -> tuple[Tensor, Window]:
        """See `Kernel`."""
        count = len(latents)
        rows = len(latents[0])
        panels = 2 * self._inner // MATRIX_BLOCK
        shape = self._layers, panels, count * rows, MATRIX_BLOCK
        keys_values = torch.empty(shape, dtype=torch.bfloat16)
        predicted = self._empty_latents(rows)
        stacked = torch.stack(list(latents))
        actions = actions.contiguous()
        self._code.begin_window(
            self._model,
            stacked.data_ptr(),
            actions.data_ptr(),
            count,
            rows,
            keys_values.data_ptr(),
            predicted.data_ptr(),
        )
        return predicted[:, : self._latent_dim], list(torch.split(keys_values, rows, dim=2))

    def roll(self, latest: Tensor, windows: Mapping[int, Window], actions: Tensor) -> Tensor:
        """See `Kernel`."""
        steps, rows, _ = actions.shape
        predicted = self._empty_latents(steps, rows)
        tokens = [_known_token(token) for first in sorted(windows) for token in windows[first]]
        latest = latest.contiguous()
        # Steps and rows may have any stride, but the values of an action block must be contiguous.
        actions = actions if actions.stride(2) == 1 else actions.contiguous()
        self._code.roll_out(
            self._model,
            (library.KnownToken * len(tokens))(*tokens),
            1 + len(windows.get(0, ())),
            latest.data_ptr(),
            actions.data_ptr(),
            steps,
            rows,
            actions.stride(0),
            actions.stride(1),
            predicted.data_ptr(),
        )
        return predicted[..., : self._latent_dim]

    def select(self, window: Window, rows: Tensor) -> Window:
        """See `Kernel`."""
        return [token[:, :, rows] for token in window]

    def _empty_latents(self, *shape: int) -> Tensor:
        """Memory for predicted latents, which the code writes in blocks of `MATRIX_BLOCK`."""
        return torch.empty(*shape, padded(self._latent_dim))


class NativeDistance(DistanceObjective):
    """The learned distance, computed in bfloat16. Gradients are those of PyTorch, in float32."""

    def __init__(self, network: GoalDistance, code: ctypes.CDLL, *, use_tiles: bool = True) -> None:
        super().__init__(network, torch.device("cpu"))
        self._code = code
        self._packed = PackedDistance(network, use_tiles=use_tiles and has_tiles(code))

    def blocks(self, latents: Tensor, goals: Tensor) -> Tensor:
        """See `DistanceObjective`."""
        if latents.requires_grad:
            return super().blocks(latents, goals)
        latents, goals = latents.contiguous(), goals.contiguous()
        blocks = torch.empty(latents.shape[:-1])
        goal_count = goals[..., 0].numel()
        rows = blocks.numel() // goal_count
        for index in range(goal_count):  # a plan each
            self._code.goal_distances(
                self._packed.network,
                latents.data_ptr() + index * rows * latents.shape[-1] * latents.element_size(),
                rows,
                goals.data_ptr() + index * goals.shape[-1] * goals.element_size(),
                blocks.data_ptr() + index * rows * blocks.element_size(),
            )
        return blocks


def distance_on(backend: Backend, distance: DistanceObjective) -> DistanceObjective:
    """The learned distance as it is computed beside a backend: natively beside the native one."""
    if not isinstance(backend, NativeBackend):
        return distance
    return NativeDistance(distance.network, backend.code)


def has_tiles(code: ctypes.CDLL) -> bool:
    """Whether the processor has AMX tiles, and this process may use them."""
    return bool(code.tiles_available())


def native_code(
    config: LeWMConfig, device: torch.device, *, compile_missing: bool = False
) -> ctypes.CDLL:
    """The native code, if it can run a model on a device. See `library.load_library`.

    Raises:
        NativeUnavailable: it cannot; the message says why.
    """
    if device.type != "cpu":
        raise NativeUnavailable(f"the native code runs on CPUs, not on {device}")
    if not supports(config):
        raise NativeUnavailable(
            f"the native code needs a predictor whose width is at most {MAX_WIDTH}, whose width "
            f"and head width are multiples of {HALF_MATRIX_BLOCK}, whose heads × head width is a "
            f"multiple of {MATRIX_BLOCK}, and a history of at most {MAX_HISTORY}"
        )
    if not supports_head_norm(config):
        raise NativeUnavailable(
            f"the native code needs a hidden width of pred_proj that is at most {MAX_WIDTH} and a "
            f"multiple of {HALF_MATRIX_BLOCK} if pred_proj has a LayerNorm, got "
            f"{config.pred_proj_mlp}"
        )
    return library.load_library(compile_missing=compile_missing)


def supports(config: LeWMConfig) -> bool:
    """Whether the native code can compute a predictor of these widths."""
    inner = config.predictor_heads * config.predictor_head_dim
    return (
        config.predictor_width % HALF_MATRIX_BLOCK == 0
        and config.predictor_head_dim % HALF_MATRIX_BLOCK == 0
        and inner % MATRIX_BLOCK == 0
        and config.predictor_width <= MAX_WIDTH
        and config.history <= MAX_HISTORY
    )


def supports_head_norm(config: LeWMConfig) -> bool:
    """Whether the native code can compute the norm in ``pred_proj``, if there is a LayerNorm."""
    if config.pred_proj_mlp == 0 or config.pred_proj_norm != "layernorm":
        return True
    return config.pred_proj_mlp <= MAX_WIDTH and config.pred_proj_mlp % HALF_MATRIX_BLOCK == 0


def _keep_torch_on_one_thread() -> None:
    """Make PyTorch use one thread: its threads would compete with those of `RowThreads`.

    PyTorch has little to do in a roll-out.
    """
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def _known_token(keys_values: Tensor) -> library.KnownToken:
    layer_stride, panel_stride, row_stride, column_stride = keys_values.stride()
    assert (row_stride, column_stride) == (MATRIX_BLOCK, 1)
    return library.KnownToken(
        values=keys_values.data_ptr(),
        rows=panel_stride // MATRIX_BLOCK,
        layer_stride=layer_stride,
    )
