"""CUDA graphs: the GPU kernels of a function, recorded once for each shape, then launched together.

A roll-out consists of hundreds of small kernels. If Python launches them one by one, the GPU waits
for Python.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

MAX_CUDA_GRAPHS = 64
"""Shapes that are recorded for one function; further shapes run eagerly, with the same results."""

WARM_UP_CALLS = 3

RECORDING = Lock()
"""Held while a graph is recorded."""

T = TypeVar("T")


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
                with torch.cuda.device(self._device):
                    return self._function(*(tensor.to(self._device) for tensor in inputs)).cpu()
            self._graphs[key] = _Graph(self._function, inputs, device=self._device, pool=self._pool)
        return self._graphs[key](inputs)


class StepGraphs:
    """Calls a function on a GPU with a tensor that is there; its results stay there.

    The function is one step of a computation whose state it updates on the GPU. It takes a tensor
    and a number, and an input of zeros must leave the state as it is: the calls before a recording
    have such inputs. Otherwise the conditions are those of `CudaGraphs`. Results are valid until
    the next call of any function that shares ``pool``.
    """

    def __init__(
        self, function: Callable[[Tensor, int], T], device: torch.device, pool: Any
    ) -> None:
        self._function = function
        self._device = device
        self._pool = pool
        self._graphs: dict[tuple[Any, ...], tuple[Tensor, _Recording[Any]]] = {}

    def __call__(self, step: Tensor, size: int) -> Any:
        """The function's result for these inputs."""
        key = step.shape, size
        if key not in self._graphs:
            if len(self._graphs) == MAX_CUDA_GRAPHS:
                with torch.cuda.device(self._device):
                    return self._function(step, size)
            recorded = torch.zeros_like(step)
            recording = _Recording(
                partial(self._function, recorded, size), self._device, self._pool
            )
            self._graphs[key] = recorded, recording
        recorded, recording = self._graphs[key]
        recorded.copy_(step)
        return recording.replay()

    def forget(self) -> None:
        """Drop all recordings, because the state is in other memory now."""
        self._graphs.clear()


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
        self._recording = _Recording(partial(function, *self._inputs), device, pool)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for recorded, tensor in zip(self._inputs, inputs, strict=True):
            recorded.copy_(tensor)
        return self._recording.replay().cpu()


class _Recording(Generic[T]):
    """The kernels that a function launches, and its result, which each replay overwrites."""

    def __init__(self, function: Callable[[], T], device: torch.device, pool: Any) -> None:
        with torch.cuda.device(device):
            # Libraries choose kernels and allocate memory in their first calls, which must not be
            # recorded.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # Another thread may use the GPU: the engine, or the one that loads models. It must not
            # record too, because a recording begins with a wait for the whole GPU.
            with (
                RECORDING,
                torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"),
            ):
                self._result = function()

    def replay(self) -> T:
        """Launch the kernels; the result is valid until the next replay."""
        self._graph.replay()
        return self._result
