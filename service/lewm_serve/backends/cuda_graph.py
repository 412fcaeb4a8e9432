"""CUDA graphs: a function's kernels recorded once for each shape, then launched as one.

A roll-out is hundreds of small kernels; launched one by one from Python, the GPU waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST = 64
"""Shapes that are kept; others run eagerly, and give the same numbers."""

WARM_UPS = 3


class CudaGraphs:
    """Calls a function of CPU tensors on a GPU → its result, on the CPU.

    The function must neither wait for the GPU nor decide by what a tensor holds, and give one
    tensor. It is called by one thread, in inference mode.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._device = device
        self._captured: dict[tuple[Any, ...], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result for these inputs."""
        key = tuple((each.shape, each.dtype) for each in inputs)
        if key not in self._captured:
            if len(self._captured) == MOST:
                return self._function(*(each.to(self._device) for each in inputs)).cpu()
            self._captured[key] = _Captured(self._function, inputs, self._device, self._pool)
        return self._captured[key](inputs)


class _Captured:
    """One shape: where its inputs lie on the GPU, what runs on them, where the result appears.

    All graphs share one pool of memory, so a result holds until the next call, and is copied out.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor, ...],
        device: torch.device,
        pool: Any,
    ) -> None:
        self._inputs = [each.to(device) for each in inputs]
        with torch.cuda.device(device):
            # Libraries choose kernels and take memory in their first calls: not while recording.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool):
                self._result = function(*self._inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        self._graph.replay()
        return self._result.cpu()
