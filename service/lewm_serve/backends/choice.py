"""Which backend, precision and number of threads run a model: what is asked for, else the fastest.

What can run here is timed on one plan of the model's default solver.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from lewm_models.card import ModelCard
from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_serve.backends.backend import Backend, ThreadedBackend
from lewm_serve.backends.native.backend import NativeBackend
from lewm_serve.backends.native.backend import check as check_native
from lewm_serve.backends.native.library import NoLibrary
from lewm_serve.backends.processor import has_bfloat16
from lewm_serve.backends.ranking import REQUIRED, overlap
from lewm_serve.backends.torch import TorchBackend

Precision = Literal["float32", "bfloat16"]

MARGIN = 0.9
"""What is less preferred must take less than this share of the time: a choice that hung on noise
would change the last bits of a plan from one start to the next."""

ROUNDS = 3, 5
LIMIT_S = 3.0
"""Timing takes three rounds, or up to five while there is time."""

SAMPLES = 32
"""Candidates of a timed roll-out, at most: enough to tell ways apart."""


class NoBackend(RuntimeError):
    """What is asked for cannot run here; the message says why."""


@dataclass(frozen=True)
class Wanted:
    """What the settings ask for."""

    backend: Literal["auto", "torch", "onnx", "native"] = "auto"
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
    of the lower precision, where one was looked at. ``native_problem`` says why bfloat16 was
    PyTorch's, where it might have been the native backend's.
    """

    backend: ThreadedBackend
    ways: tuple[Way, ...] = ()
    overlap: float | None = None
    native_problem: str | None = None


Runnable = tuple[str, Precision]
Make = Callable[[str, Precision], ThreadedBackend]
ONLY: dict[str, Precision] = {"onnx": "float32", "native": "bfloat16"}
"""Backends that have but one precision."""


def choose_backend(
    model: LeWM, card: ModelCard, frames: Tensor | None, device: torch.device, wanted: Wanted
) -> Choice:
    """The best way to run a model here, warmed up; ``frames`` are those of `ranking.overlap`.

    Raises:
        NoBackend: what is wanted cannot run here.
    """
    counts = {1, len(os.sched_getaffinity(0))} if device.type == "cpu" else {1}
    ways = runnable(wanted, device, model.config)
    # Native's encodes are ONNX Runtime's: one backend is both, and is made once.
    make: Make = cache(lambda name, precision: _make(model, device, name, precision, make))
    choice = choose(
        [partial(make, *way) for way in ways],
        [wanted.threads] if wanted.threads else sorted(counts),
        seconds=lambda backend: plan_seconds(backend, card),
        rank=lambda backend: overlap(backend, TorchBackend(model, device), card, frames),
        insist=wanted.precision != "auto" or wanted.backend == "native",
    )
    choice.backend.warm_up()
    _iterate(choice.backend, card, card.solver.samples)
    if device.type == "cpu" and wanted.backend == "auto" and ("torch", "bfloat16") in ways:
        return replace(choice, native_problem=native_problem(model.config, device))
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
    ways = _timed([(backend, count) for backend in backends for count in threads], seconds)
    best = ways[0]
    for way in ways[1:]:
        if way.plan_s < MARGIN * best.plan_s:
            best = way
    best.backend.threads = best.threads
    return Choice(best.backend, tuple(ways), share)


def _timed(
    ways: Sequence[tuple[ThreadedBackend, int]], seconds: Callable[[ThreadedBackend], float]
) -> list[Way]:
    """Each way by the median of a few rounds, so that no single disturbance, or calm, decides.

    In the first round caches fill and graphs are built: it does not count.
    """
    least, most = ROUNDS
    rounds: list[list[float]] = []
    start = time.monotonic()
    while len(rounds) <= least or (len(rounds) <= most and time.monotonic() - start < LIMIT_S):
        rounds.append([])
        for backend, count in ways:
            backend.threads = count
            rounds[-1].append(seconds(backend))
    medians = map(statistics.median, zip(*rounds[1:], strict=True))
    return [Way(*way, plan_s) for way, plan_s in zip(ways, medians, strict=True)]


def runnable(wanted: Wanted, device: torch.device, config: LeWMConfig) -> list[Runnable]:
    """Backends and precisions that may be chosen for a model on a device, the preferred first.

    Raises:
        NoBackend: there are none.
    """
    alone = ONLY.get(wanted.backend)
    if alone is not None and wanted.precision not in ("auto", alone):
        raise NoBackend(
            f"LEWM_PRECISION is {wanted.precision}: the {wanted.backend} backend runs {alone} alone"
        )
    if wanted.backend == "onnx" and not onnx_runs_on(device):
        raise NoBackend(
            f"LEWM_BACKEND is onnx: ONNX Runtime does not run on {device} here; for CUDA it needs "
            "the package onnxruntime-gpu"
        )
    problem = native_problem(config, device)
    if wanted.backend == "native" and problem is not None:
        raise NoBackend(f"LEWM_BACKEND is native: {problem}")
    ways: list[Runnable] = [("torch", "float32")]
    if "bfloat16" in (wanted.precision, alone) or has_bfloat16(device):
        native = problem is None and wanted.backend != "torch"
        ways.append(("native" if native else "torch", "bfloat16"))
    if onnx_runs_on(device):
        ways.insert(0 if device.type == "cpu" else len(ways), ("onnx", "float32"))
    return [
        (name, precision)
        for name, precision in ways
        if wanted.backend in ("auto", name) and wanted.precision in ("auto", precision)
    ]


def native_problem(config: LeWMConfig, device: torch.device) -> str | None:
    """Why the native backend cannot run a model here; None where it can."""
    try:
        check_native(config, device)
    except NoLibrary as error:
        return str(error)
    return None


def onnx_runs_on(device: torch.device) -> bool:
    """Whether ONNX Runtime is here for a device: a bare machine with a GPU may have torch alone."""
    try:
        from lewm_serve.backends.onnx_session import runs_on
    except ImportError:
        return False
    return runs_on(device)


def plan_seconds(backend: Backend, card: ModelCard) -> float:
    """Seconds of a plan by the card's solver, of some samples: an encode and its iterations."""
    config, solver = card.config, card.solver
    frame = torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
    start = time.monotonic()
    backend.encode(frame)
    encoded = time.monotonic()
    _iterate(backend, card, min(SAMPLES, solver.samples))
    return encoded - start + solver.iterations * (time.monotonic() - encoded)


def _iterate(backend: Backend, card: ModelCard, samples: int) -> None:
    """The roll-out of one iteration of the card's solver."""
    config = card.config
    latents, past = torch.zeros(1, 1, config.latent_dim), torch.empty(1, 0, config.block_width)
    backend.rollout(latents, past, torch.zeros(1, samples, card.solver.horizon, config.block_width))


def _make(
    model: LeWM, device: torch.device, name: str, precision: Precision, make: Make
) -> ThreadedBackend:
    """A backend; one that needs another has that made by ``make``."""
    if name == "native":
        return NativeBackend(model, make("onnx" if onnx_runs_on(device) else "torch", "float32"))
    if name == "onnx":
        from lewm_serve.backends.onnx import OnnxBackend

        return OnnxBackend(model, device)
    return TorchBackend(model, device, getattr(torch, precision))
