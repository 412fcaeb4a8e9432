"""CUDA graphs: the GPU kernels of a function, recorded once for each shape, then launched together.

A roll-out consists of hundreds of small kernels. If Python launches them one by one, the GPU waits
for Python.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

MAX_CUDA_GRAPHS = 64
"""Shapes that are recorded for one function; further shapes run eagerly, with the same results."""

WARM_UP_CALLS = 3

RECORDING = Lock()
"""Held while a graph is recorded."""


class CudaGraphs:
    """Calls a function on a GPU with tensors that come from the CPU; the result is on the CPU.

    The function returns one tensor. It must not wait for the GPU, and the content of tensors must
    not decide what it does. One thread calls it, in inference mode.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._device = device
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result for these inputs."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._graphs:
            if len(self._graphs) == MAX_CUDA_GRAPHS:
                return self._function(*(tensor.to(self._device) for tensor in inputs)).cpu()
            self._graphs[key] = _Graph(self._function, inputs, device=self._device, pool=self._pool)
        return self._graphs[key](inputs)


class _Graph:
    """The recorded kernels of one shape, with the GPU memory of its inputs and its result.

    All graphs share one pool of memory, so a result is valid until the next call, and is copied.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        *,
        device: torch.device,
        pool: Any,
    ) -> None:
        self._inputs = [tensor.to(device) for tensor in inputs]
        with torch.cuda.device(device):
            # Libraries choose kernels and allocate memory in their first calls, which must not be
            # recorded.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # Another thread may use the GPU: the engine, or the one that loads models. It must not
            # record too, because a recording begins with a wait for the whole GPU.
            with (
                RECORDING,
                torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"),
            ):
                self._result = function(*self._inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for recorded, tensor in zip(self._inputs, inputs, strict=True):
            recorded.copy_(tensor)
        self._graph.replay()
        return self._result.cpu()
