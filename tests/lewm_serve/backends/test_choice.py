"""Which backend runs a model, by measurement and by the settings."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from lewm_models.config import LeWMConfig
from lewm_models.lewm import LeWM
from lewm_serve.backends import choice as choosing
from lewm_serve.backends.backend import ThreadedBackend
from lewm_serve.backends.choice import (
    BackendChoice,
    BackendSettings,
    NoBackend,
    choose,
    choose_backend,
    has_bfloat16,
    runnable_options,
)
from lewm_serve.backends.comparison import plan_seconds
from lewm_serve.backends.native import library
from lewm_serve.backends.onnx import runs_on
from lewm_serve.backends.torch import TorchBackend
from tests.lewm_models.examples import TINY, example_card, tiny_model

CPU = torch.device("cpu")
CONFIG = LeWMConfig()


@dataclass(eq=False)
class FakeBackend:
    """Runs nothing; ``times`` holds the seconds of a plan by number of threads.

    A list holds the seconds of one run after the other; the last ones hold for all further runs.
    """

    name: str
    times: dict[int, float | list[float]]
    precision: str = "float32"
    encode_precision: str = "float32"
    rows_are_independent: bool = True
    device_rollouts: None = None
    threads: int = 0


def choice_among(
    backends: Sequence[FakeBackend],
    thread_counts: Sequence[int] = (1, 2),
    overlap: float = 1.0,
    accept_low_overlap: bool = False,
) -> BackendChoice:
    def make(backend: FakeBackend) -> Callable[[], ThreadedBackend]:
        return lambda: cast(ThreadedBackend, backend)

    def plan_seconds(backend: ThreadedBackend, _samples: int) -> float:
        taken = cast(FakeBackend, backend).times[backend.threads]
        if isinstance(taken, list):
            return taken.pop(0) if len(taken) > 1 else taken[0]
        return taken

    return choose(
        [make(backend) for backend in backends],
        thread_counts,
        samples=300,
        plan_seconds=plan_seconds,
        overlap=lambda _backend: overlap,
        accept_low_overlap=accept_low_overlap,
    )


def test_the_fastest_is_chosen_with_its_best_number_of_threads() -> None:
    onnx, eager = FakeBackend("onnx", {1: 4.0, 2: 3.0}), FakeBackend("torch", {1: 2.0, 2: 5.0})
    choice = choice_among([onnx, eager])
    assert choice.backend is cast(object, eager)
    assert choice.backend.threads == 1
    assert [(each.backend.name, each.threads, each.plan_s) for each in choice.timings] == [
        ("onnx", 1, 4.0),
        ("onnx", 2, 3.0),
        ("torch", 1, 2.0),
        ("torch", 2, 5.0),
    ]


def test_noise_does_not_outweigh_preference() -> None:
    onnx, eager = FakeBackend("onnx", {1: 1.0, 2: 0.95}), FakeBackend("torch", {1: 0.92, 2: 0.91})
    choice = choice_among([onnx, eager])
    assert (choice.backend.name, choice.backend.threads) == ("onnx", 1)


def test_neither_the_first_run_nor_an_exceptional_one_decides() -> None:
    onnx = FakeBackend("onnx", {1: [9.0, 5.0, 1.0]})
    eager = FakeBackend("torch", {1: [0.1, 0.1, 2.0]})
    choice = choice_among([onnx, eager], [1])
    assert [timing.plan_s for timing in choice.timings] == [1.0, 2.0]
    assert choice.backend.name == "onnx"


def test_nothing_is_timed_where_there_is_no_choice() -> None:
    choice = choice_among([FakeBackend("onnx", {})], thread_counts=[3])
    assert (choice.backend.threads, choice.timings) == (3, ())


@pytest.mark.parametrize(
    ("seconds", "overlap", "accept_low_overlap", "precision"),
    [
        (0.5, 0.95, False, "bfloat16"),
        (0.5, 0.89, False, "float32"),  # ranks candidates differently
        (1.0, 0.95, False, "float32"),  # is no faster
        (0.5, 0.1, True, "bfloat16"),  # was asked for
    ],
)
def test_a_lower_precision_must_be_faster_and_rank_candidates_alike(
    seconds: float, overlap: float, accept_low_overlap: bool, precision: str
) -> None:
    full = FakeBackend("torch", {1: 1.0})
    lower = FakeBackend("torch", {1: seconds}, "bfloat16")
    choice = choice_among(
        [lower] if accept_low_overlap else [full, lower], [1], overlap, accept_low_overlap
    )
    assert choice.backend.precision == precision
    assert choice.overlap == overlap


def test_what_can_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "has_bfloat16", lambda _device: False)
    assert runnable_options(BackendSettings(), CPU, CONFIG) == [
        ("onnx", "float32"),
        ("torch", "float32"),
    ]
    assert runnable_options(BackendSettings(backend="torch"), CPU, CONFIG) == [("torch", "float32")]
    assert runnable_options(BackendSettings(precision="float32"), CPU, CONFIG) == runnable_options(
        BackendSettings(), CPU, CONFIG
    )
    assert runnable_options(BackendSettings(precision="bfloat16"), CPU, TINY) == [
        ("torch", "bfloat16")
    ]
    monkeypatch.setattr(choosing, "has_bfloat16", lambda _device: True)
    for problem, name in ((None, "native"), ("no compiler", "torch")):
        monkeypatch.setattr(choosing, "native_problem", lambda *_, why=problem, **__: why)
        assert runnable_options(BackendSettings(), CPU, CONFIG)[-1] == (name, "bfloat16")
        assert runnable_options(BackendSettings("torch"), CPU, CONFIG)[-1] == ("torch", "bfloat16")
    with pytest.raises(NoBackend, match="LEWM_PRECISION is bfloat16: the onnx backend"):
        runnable_options(BackendSettings(backend="onnx", precision="bfloat16"), CPU, CONFIG)


def test_the_native_backend_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "has_bfloat16", lambda _device: False)
    monkeypatch.setattr(choosing, "native_problem", lambda *_, **__: None)
    for precision in ("auto", "bfloat16"):
        assert runnable_options(BackendSettings("native", precision), CPU, CONFIG) == [
            ("native", "bfloat16")
        ]
    with pytest.raises(NoBackend, match="LEWM_PRECISION is float32: the native backend"):
        runnable_options(BackendSettings("native", "float32"), CPU, CONFIG)
    monkeypatch.setattr(choosing, "native_problem", lambda *_, **__: "no compiler")
    with pytest.raises(NoBackend, match="LEWM_BACKEND is native: no compiler"):
        runnable_options(BackendSettings("native"), CPU, CONFIG)


def test_the_choice_says_why_the_native_backend_was_not_considered(
    model: LeWM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "has_bfloat16", lambda _device: True)
    choice = choose_backend(
        model, example_card(model), frames=None, device=CPU, settings=BackendSettings(threads=1)
    )
    assert choice.native_problem is not None
    assert "multiples of 16" in choice.native_problem


def test_onnx_without_cuda_says_what_it_needs() -> None:
    if runs_on(torch.device("cuda:0")):
        pytest.skip("ONNX Runtime runs on CUDA here")
    with pytest.raises(NoBackend, match="onnxruntime-gpu"):
        runnable_options(BackendSettings(backend="onnx"), torch.device("cuda:0"), CONFIG)


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t: fma avx2", False),
        ("flags\t: avx512f avx512_bf16 avx512vl", True),
        ("flags\t: amx_tile amx_bf16", True),
        ("Features : fp asimd bf16", True),
    ],
)
def test_which_processors_have_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, has: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : bf16 emulator\n{flags}\n")
    monkeypatch.setattr(library, "CPU_INFO", tmp_path / "cpuinfo")
    assert has_bfloat16(CPU) is has
    monkeypatch.setattr(library, "CPU_INFO", tmp_path / "absent")
    assert not has_bfloat16(CPU)


@pytest.fixture(scope="module")
def model() -> LeWM:
    return tiny_model()


def test_auto_chooses_one_of_the_timed_backends(model: LeWM) -> None:
    card = example_card(model)
    choice = choose_backend(
        model, card, frames=None, device=CPU, settings=BackendSettings(threads=1)
    )
    assert choice.backend in [timing.backend for timing in choice.timings]
    assert all(timing.plan_s > 0 for timing in choice.timings)


def test_a_plan_takes_an_encode_and_its_iterations(model: LeWM) -> None:
    now = [0.0]

    class Slow(TorchBackend):
        def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
            now[0] += 0.5
            return super().encode(frames, states)

        def rollout(self, *plan: Tensor) -> Tensor:
            now[0] += 1.0
            return super().rollout(*plan)

    card = example_card(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])
        samples = card.solver.samples
        assert plan_seconds(Slow(model, CPU), card, samples) == 0.5 + card.solver.iterations
        # The time of fewer candidates is scaled up.
        fewer = plan_seconds(Slow(model, CPU), card, samples // 10)
        assert fewer == 0.5 + 10 * card.solver.iterations


def test_an_explicit_precision_wins(model: LeWM) -> None:
    card = example_card(model)
    choice = choose_backend(
        model,
        card,
        frames=None,
        device=CPU,
        settings=BackendSettings(precision="bfloat16", threads=1),
    )
    assert (choice.backend.name, choice.backend.precision) == ("torch", "bfloat16")
    assert choice.overlap is not None


@pytest.mark.parametrize(("overlap", "precision"), [(0.95, "bfloat16"), (0.5, "float32")])
def test_the_kind_of_an_earlier_backend_is_taken_if_it_ranks_alike(
    model: LeWM, monkeypatch: pytest.MonkeyPatch, overlap: float, precision: str
) -> None:
    """Nothing is timed beside a server's plans, and the ranking is measured once."""
    measured: list[object] = []

    def rank(backend: object, *_: object, **__: object) -> float:
        measured.append(backend)
        return overlap

    options = [("torch", "float32"), ("torch", "bfloat16")]
    monkeypatch.setattr(choosing, "runnable_options", lambda *_: options)
    monkeypatch.setattr(choosing, "ranking_overlap", rank)
    choice = choose_backend(
        model,
        example_card(model),
        frames=None,
        device=CPU,
        settings=BackendSettings(threads=1),
        earlier=TorchBackend(model, CPU, torch.bfloat16),
    )
    assert (choice.backend.precision, choice.overlap) == (precision, overlap)
    assert choice.timings == ()
    assert len(measured) == 1


@pytest.mark.parametrize(("threads", "adapted"), [(None, [3]), (1, []), (2, [])])
def test_threads_are_reconsidered_in_service_unless_their_number_is_set(
    model: LeWM, monkeypatch: pytest.MonkeyPatch, threads: int | None, adapted: list[int]
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        TorchBackend, "adapt_threads", lambda _backend, all_threads: calls.append(all_threads)
    )
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0, 1, 2})
    settings = BackendSettings(backend="torch", precision="float32", threads=threads)
    choice = choose_backend(model, example_card(model), frames=None, device=CPU, settings=settings)
    assert calls == adapted
    assert choice.backend.threads == threads or threads is None


@pytest.mark.parametrize(
    ("search", "on_device"), [("auto", False), ("host", False), ("device", True)]
)
def test_searches_run_where_the_settings_say(search: str, on_device: bool) -> None:
    settings = BackendSettings(backend="torch", precision="float32", threads=1, search=search)  # type: ignore[arg-type]
    model = tiny_model()
    choice = choose_backend(model, example_card(model), frames=None, device=CPU, settings=settings)
    assert (choice.backend.device_rollouts is not None) == on_device
