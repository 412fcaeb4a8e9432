"""Which backend, precision and number of threads run a model: what is asked for, else the fastest.

What can run here is timed on one plan of the model's default solver.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from models.card import ModelCard
from models.lewm import LeWM
from service.backends.backend import ThreadedBackend
from service.backends.onnx import OnnxBackend
from service.backends.onnx_session import runs_on
from service.backends.ranking import REQUIRED, overlap
from service.backends.torch import TorchBackend

Precision = Literal["float32", "bfloat16"]

MARGIN = 0.9
"""What is less preferred must take less than this share of the time: a choice that hung on noise
would change the last bits of a plan from one start to the next."""

REPEATS = 5
LIMIT_S = 0.5
"""A timing ends after so many repeats or seconds."""

CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""What Linux calls bfloat16 products, on x86 and on ARM."""


class NoBackend(RuntimeError):
    """What is asked for cannot run here; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """What the settings ask for."""

    backend: Literal["auto", "torch", "onnx"] = "auto"
    precision: Literal["auto"] | Precision = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Way:
    """A backend on a number of threads, and the seconds that a plan takes by it."""

    backend: ThreadedBackend
    threads: int
    plan_s: float


@dataclass(frozen=True)
class Choice:
    """A backend, and why.

    ``ways`` is what was timed, nothing where there was no choice. ``overlap`` is `ranking.overlap`
    of the lower precision, where one was looked at.
    """

    backend: ThreadedBackend
    ways: tuple[Way, ...] = ()
    overlap: float | None = None


def choose_backend(
    model: LeWM, card: ModelCard, frames: Tensor | None, device: torch.device, wanted: Wanted
) -> Choice:
    """The best way to run a model here, warmed up; ``frames`` are those of `ranking.overlap`.

    Raises:
        NoBackend: what is wanted cannot run here.
    """
    counts = {1, len(os.sched_getaffinity(0))} if device.type == "cpu" else {1}
    choice = choose(
        [
            partial(_make, model, device, name, precision)
            for name, precision in runnable(wanted, device)
        ],
        [wanted.threads] if wanted.threads else sorted(counts),
        seconds=lambda backend: plan_seconds(backend, card),
        rank=lambda backend: overlap(backend, TorchBackend(model, device), card, frames),
        insist=wanted.precision != "auto",
    )
    choice.backend.warm_up()
    return choice


def choose(
    makers: Sequence[Callable[[], ThreadedBackend]],
    threads: Sequence[int],
    *,
    seconds: Callable[[ThreadedBackend], float],
    rank: Callable[[ThreadedBackend], float],
    insist: bool,
) -> Choice:
    """The fastest of some backends, the preferred first, with its best number of threads set.

    A lower precision has to ``rank`` candidates well enough, unless we ``insist`` on it.
    """
    backends, share = [], None
    for make in makers:
        backend = make()
        backend.threads = threads[0]
        if backend.precision != "float32":
            share = rank(backend)
            if share < REQUIRED and not insist:
                continue
        backends.append(backend)
    if len(backends) == len(threads) == 1:
        return Choice(backends[0], overlap=share)
    ways = []
    for backend in backends:
        for count in threads:
            backend.threads = count
            ways.append(Way(backend, count, seconds(backend)))
    best = ways[0]
    for way in ways[1:]:
        if way.plan_s < MARGIN * best.plan_s:
            best = way
    best.backend.threads = best.threads
    return Choice(best.backend, tuple(ways), share)


def runnable(wanted: Wanted, device: torch.device) -> list[tuple[str, Precision]]:
    """Backends and precisions that may be chosen on a device, the preferred first.

    Raises:
        NoBackend: there are none.
    """
    if wanted.backend == "onnx" and wanted.precision == "bfloat16":
        raise NoBackend("LEWM_PRECISION is bfloat16: the ONNX backend runs float32 alone")
    if wanted.backend == "onnx" and not runs_on(device):
        raise NoBackend(
            f"LEWM_BACKEND is onnx: ONNX Runtime does not run on {device} here; for CUDA it needs "
            "the package onnxruntime-gpu"
        )
    ways: list[tuple[str, Precision]] = [("torch", "float32")]
    if wanted.precision == "bfloat16" or has_bfloat16(device):
        ways.append(("torch", "bfloat16"))
    if runs_on(device):
        ways.insert(0 if device.type == "cpu" else len(ways), ("onnx", "float32"))
    return [
        (name, precision)
        for name, precision in ways
        if wanted.backend in ("auto", name) and wanted.precision in ("auto", precision)
    ]


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return False
    flags = [line.split() for line in lines if line.startswith(("flags", "Features"))]
    return any(not CPU_FLAGS.isdisjoint(words) for words in flags)


def plan_seconds(backend: ThreadedBackend, card: ModelCard) -> float:
    """Seconds of a plan by the card's solver: one frame encoded, and its iterations."""
    config, solver = card.config, card.solver
    frame = torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
    latents, past = torch.zeros(1, 1, config.latent_dim), torch.empty(1, 0, config.block_width)
    candidates = torch.zeros(1, solver.samples, solver.horizon, config.block_width)
    iteration_s = _seconds(lambda: backend.rollout(latents, past, candidates))
    return _seconds(lambda: backend.encode(frame)) + solver.iterations * iteration_s


def _seconds(call: Callable[[], object]) -> float:
    """The least of a few, after one that does not count."""
    call()
    durations: list[float] = []
    while len(durations) < REPEATS and sum(durations) < LIMIT_S:
        start = time.monotonic()
        call()
        durations.append(time.monotonic() - start)
    return min(durations)


def _make(model: LeWM, device: torch.device, name: str, precision: Precision) -> ThreadedBackend:
    if name == "onnx":
        return OnnxBackend(model, device)
    return TorchBackend(model, device, getattr(torch, precision))
