"""Choose the backend, precision and threads of a model: those of the settings, or the fastest.

`choose_backend` times one plan of the model's default solver with all options that can run here. A
less preferred option must take less than `MAX_TIME_SHARE` of the preferred option's time. The order
of preference is ONNX Runtime before PyTorch on a CPU (PyTorch first on a GPU), float32 before
bfloat16, one thread before all. A lower precision must also rank candidates as float32 does; see
`ranking_overlap`.

The backend and its precision stay as they are while the server runs, since the bits of plans depend
on them. The number of threads may change. Unless it is set, it is only the first choice, and the
backend reconsiders it while it runs; see `ThreadPolicy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal, cast

import torch
from torch import Tensor

from lewm_models.card import ModelCard
from lewm_models.config import LeWMConfig
from lewm_models.cores import usable_cores
from lewm_models.lewm import LeWM
from lewm_serve.backends.backend import MAX_TIME_SHARE, Backend, ThreadedBackend
from lewm_serve.backends.comparison import (
    BackendTiming,
    plan_seconds,
    ranking_overlap,
    roll_out_once,
    time_options,
)
from lewm_serve.backends.native.backend import NativeBackend, distance_on, native_code
from lewm_serve.backends.native.build import NativeUnavailable
from lewm_serve.backends.native.library import cpu_flags
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.objectives import Objective
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.latent import LATENT

Precision = Literal["float32", "bfloat16"]
BackendAndPrecision = tuple[str, Precision]

FIXED_PRECISIONS: dict[str, Precision] = {"onnx": "float32", "native": "bfloat16"}
"""The precision of the backends that have only one."""

BFLOAT16_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Linux's names of instructions that multiply in bfloat16, on x86 and on ARM."""

REQUIRED_OVERLAP = 0.9
"""A lower precision that the settings do not ask for needs at least this `ranking_overlap`."""


class NoBackend(RuntimeError):
    """What the settings ask for cannot run here; the message says why."""


@dataclass(frozen=True)
class BackendSettings:
    """What the server's settings ask for.

    ``search``: where searches run; ``auto`` is a GPU, or else the host. ``threads`` is None: one or
    all, by measurement. ``native_compile``: the native code is compiled if there is no library of
    it.
    """

    backend: Literal["auto", "torch", "onnx", "native"] = "auto"
    precision: Literal["auto"] | Precision = "auto"
    search: Literal["auto", "host", "device"] = "auto"
    threads: int | None = None
    native_compile: bool = False


@dataclass(frozen=True)
class BackendChoice:
    """A backend, and why it was chosen.

    ``timings`` holds what was timed; it is empty where there was no choice. ``overlap`` is the
    `ranking_overlap` of the lower precision, if one was considered. ``native_problem`` says why the
    native backend was not considered, if PyTorch was considered in bfloat16 in its place.
    """

    backend: ThreadedBackend
    timings: tuple[BackendTiming, ...] = ()
    overlap: float | None = None
    native_problem: str | None = None


def choose_backend(
    model: LeWM,
    card: ModelCard,
    *,
    frames: Tensor | None,
    device: torch.device,
    settings: BackendSettings,
    objective: Objective = LATENT,
    earlier: ThreadedBackend | None = None,
) -> BackendChoice:
    """Choose the backend that runs a model on a device, and warm it up.

    Args:
        model: in ``eval()`` mode.
        card: its card.
        frames: the model's own frames for `ranking_overlap` (N, size, size, 3) uint8, if any.
        device: where the model runs.
        settings: what the server's settings ask for.
        objective: what plans usually minimise, for `ranking_overlap`.
        earlier: the backend of another model of the same architecture. One of the same kind is
            taken without timing others, unless it ranks candidates too differently.

    Raises:
        NoBackend: what the settings ask for cannot run here.
    """
    options = runnable_options(settings, device, model.config)
    all_threads = usable_cores() if device.type == "cpu" else 1
    backends = _Backends(model, device, settings)

    def plan_s(backend: ThreadedBackend, samples: int) -> float:
        return plan_seconds(backend, card, samples)

    @cache
    def overlap(name: str, precision: Precision) -> float:
        backend, reference = backends.get(name, precision), TorchBackend(model, device)
        return ranking_overlap(
            backend,
            reference,
            card,
            frames=frames,
            objective=distance_on(backend, objective)
            if isinstance(objective, DistanceObjective)
            else objective,
            reference_objective=objective,
        )

    accept_low_overlap = settings.precision != "auto" or settings.backend == "native"
    thread_counts = [settings.threads] if settings.threads else sorted({1, all_threads})
    if earlier is not None and kind_of(earlier) in options:
        similar = backends.get(*kind_of(earlier))
        similar.threads = earlier.threads
        if (
            accept_low_overlap
            or similar.precision == "float32"
            or overlap(*kind_of(similar)) >= REQUIRED_OVERLAP
        ):
            options, thread_counts = [kind_of(earlier)], [earlier.threads]
    choice = choose(
        [partial(backends.get, name, precision) for name, precision in options],
        thread_counts,
        samples=card.solver.samples,
        plan_seconds=plan_s,
        overlap=lambda backend: overlap(*kind_of(backend)),
        accept_low_overlap=accept_low_overlap,
    )
    choice.backend.warm_up()
    roll_out_once(choice.backend, card, card.solver.samples)  # the size that most requests have
    if settings.threads is None and all_threads > 1:
        choice.backend.adapt_threads(all_threads)
    if device.type == "cpu" and settings.backend == "auto" and ("torch", "bfloat16") in options:
        problem = native_problem(model.config, device, compile_missing=settings.native_compile)
        return replace(choice, native_problem=problem)
    return choice


def kind_of(backend: Backend) -> BackendAndPrecision:
    """The name and the precision of a backend."""
    return backend.name, cast(Precision, backend.precision)


def runnable_options(
    settings: BackendSettings, device: torch.device, config: LeWMConfig
) -> list[BackendAndPrecision]:
    """Backends and precisions that can run a model on a device, the preferred first.

    Raises:
        NoBackend: there are none.
    """
    fixed_precision = FIXED_PRECISIONS.get(settings.backend)
    if fixed_precision is not None and settings.precision not in ("auto", fixed_precision):
        raise NoBackend(
            f"LEWM_PRECISION is {settings.precision}: the {settings.backend} backend runs only "
            f"in {fixed_precision}"
        )
    if settings.backend == "onnx" and not onnx_runs_on(device):
        raise NoBackend(
            f"LEWM_BACKEND is onnx: ONNX Runtime does not run on {device} here; for CUDA it needs "
            "the package onnxruntime-gpu"
        )
    problem = native_problem(config, device, compile_missing=settings.native_compile)
    if settings.backend == "native" and problem is not None:
        raise NoBackend(f"LEWM_BACKEND is native: {problem}")
    options: list[BackendAndPrecision] = [("torch", "float32")]
    if "bfloat16" in (settings.precision, fixed_precision) or has_bfloat16(device):
        native = problem is None and settings.backend != "torch"
        options.append(("native" if native else "torch", "bfloat16"))
    if onnx_runs_on(device):
        options.insert(0 if device.type == "cpu" else len(options), ("onnx", "float32"))
    return [
        (name, precision)
        for name, precision in options
        if settings.backend in ("auto", name) and settings.precision in ("auto", precision)
    ]


def native_problem(
    config: LeWMConfig, device: torch.device, *, compile_missing: bool = False
) -> str | None:
    """Why the native backend cannot run a model on a device; None if it can."""
    try:
        native_code(config, device, compile_missing=compile_missing)
    except NativeUnavailable as error:
        return str(error)
    return None


def onnx_runs_on(device: torch.device) -> bool:
    """Whether ONNX Runtime is installed for a device; a machine may have PyTorch only."""
    try:
        from lewm_serve.backends.onnx import runs_on
    except ImportError:
        return False
    return runs_on(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions that multiply in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return not BFLOAT16_CPU_FLAGS.isdisjoint(cpu_flags())


def choose(
    makers: Sequence[Callable[[], ThreadedBackend]],
    thread_counts: Sequence[int],
    *,
    samples: int,
    plan_seconds: Callable[[ThreadedBackend, int], float],
    overlap: Callable[[ThreadedBackend], float],
    accept_low_overlap: bool,
) -> BackendChoice:
    """Make backends, choose one of them, and set its number of threads.

    Args:
        makers: make the backends, the preferred first. At most one has a lower precision.
        thread_counts: the numbers of threads to choose from, the preferred first.
        samples: the number of candidates of the solver.
        plan_seconds: times a plan with this many candidates.
        overlap: the `ranking_overlap` of a backend of lower precision.
        accept_low_overlap: whether a backend of lower precision is considered even if its overlap
            is less than `REQUIRED_OVERLAP`.
    """
    backends: list[ThreadedBackend] = []
    measured_overlap: float | None = None
    for make in makers:
        backend = make()
        backend.threads = thread_counts[0]
        if backend.precision != "float32":
            measured_overlap = overlap(backend)
            if measured_overlap < REQUIRED_OVERLAP and not accept_low_overlap:
                continue
        backends.append(backend)
    if len(backends) == len(thread_counts) == 1:
        return BackendChoice(backends[0], overlap=measured_overlap)
    timings = time_options(
        [(backend, threads) for backend in backends for threads in thread_counts],
        samples=samples,
        plan_seconds=plan_seconds,
    )
    best = timings[0]
    for timing in timings[1:]:
        if timing.plan_s < MAX_TIME_SHARE * best.plan_s:
            best = timing
    best.backend.threads = best.threads
    return BackendChoice(best.backend, tuple(timings), measured_overlap)


class _Backends:
    """Makes the backends of a model, each of them once.

    The native backend needs another one, which may be an option too.
    """

    def __init__(self, model: LeWM, device: torch.device, settings: BackendSettings) -> None:
        self._model = model
        self._device = device
        self._settings = settings
        self._made: dict[BackendAndPrecision, ThreadedBackend] = {}

    def get(self, name: str, precision: Precision) -> ThreadedBackend:
        """The backend of this name and precision."""
        if (name, precision) not in self._made:
            self._made[name, precision] = self._make(name, precision)
        return self._made[name, precision]

    def _make(self, name: str, precision: Precision) -> ThreadedBackend:
        if name == "native":
            float32_name = "onnx" if onnx_runs_on(self._device) else "torch"
            return NativeBackend(
                self._model,
                self.get(float32_name, "float32"),
                compile_missing=self._settings.native_compile,
            )
        if name == "onnx":
            from lewm_serve.backends.onnx import OnnxBackend

            return OnnxBackend(self._model, self._device)
        search = self._settings.search
        return TorchBackend(
            self._model,
            self._device,
            getattr(torch, precision),
            searches_on_device=None if search == "auto" else search == "device",
        )
