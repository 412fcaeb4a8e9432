"""What is chosen to run a model, by what was measured and what was asked for."""

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
from lewm_serve.backends import processor
from lewm_serve.backends.backend import ThreadedBackend
from lewm_serve.backends.choice import (
    Choice,
    NoBackend,
    Wanted,
    choose,
    choose_backend,
    plan_seconds,
    runnable,
)
from lewm_serve.backends.onnx_session import runs_on
from lewm_serve.backends.processor import has_bfloat16
from lewm_serve.backends.torch import TorchBackend
from tests.lewm_models.examples import TINY, card_of, tiny

CPU = torch.device("cpu")
CONFIG = LeWMConfig()


@dataclass
class FakeBackend:
    """Runs nothing; ``times`` holds the seconds of a plan by number of threads.

    Several seconds are those of one round after the other, the last of all further ones.
    """

    name: str
    times: dict[int, float | list[float]]
    precision: str = "float32"
    encode_precision: str = "float32"
    threads: int = 0


def chosen(
    backends: Sequence[FakeBackend],
    threads: Sequence[int] = (1, 2),
    share: float = 1.0,
    insist: bool = False,
) -> Choice:
    def make(backend: FakeBackend) -> Callable[[], ThreadedBackend]:
        return lambda: cast(ThreadedBackend, backend)

    def seconds(backend: ThreadedBackend) -> float:
        taken = cast(FakeBackend, backend).times[backend.threads]
        if isinstance(taken, list):
            return taken.pop(0) if len(taken) > 1 else taken[0]
        return taken

    makers = [make(backend) for backend in backends]
    return choose(makers, threads, seconds=seconds, rank=lambda _backend: share, insist=insist)


def test_the_fastest_is_chosen_with_its_best_number_of_threads() -> None:
    onnx, eager = FakeBackend("onnx", {1: 4.0, 2: 3.0}), FakeBackend("torch", {1: 2.0, 2: 5.0})
    made = chosen([onnx, eager])
    assert made.backend is cast(object, eager)
    assert made.backend.threads == 1
    assert [(way.backend.name, way.threads, way.plan_s) for way in made.ways] == [
        ("onnx", 1, 4.0),
        ("onnx", 2, 3.0),
        ("torch", 1, 2.0),
        ("torch", 2, 5.0),
    ]


def test_noise_does_not_take_the_preference_away() -> None:
    onnx, eager = FakeBackend("onnx", {1: 1.0, 2: 0.95}), FakeBackend("torch", {1: 0.92, 2: 0.91})
    made = chosen([onnx, eager])
    assert (made.backend.name, made.backend.threads) == ("onnx", 1)


def test_neither_the_first_round_nor_an_odd_one_decides() -> None:
    onnx = FakeBackend("onnx", {1: [9.0, 5.0, 1.0]})
    eager = FakeBackend("torch", {1: [0.1, 0.1, 2.0]})
    made = chosen([onnx, eager], [1])
    assert [way.plan_s for way in made.ways] == [1.0, 2.0]
    assert made.backend.name == "onnx"


def test_nothing_is_timed_where_there_is_no_choice() -> None:
    made = chosen([FakeBackend("onnx", {})], threads=[3])
    assert (made.backend.threads, made.ways) == (3, ())


@pytest.mark.parametrize(
    ("seconds", "share", "insist", "precision"),
    [
        (0.5, 0.95, False, "bfloat16"),
        (0.5, 0.89, False, "float32"),  # ranks candidates otherwise
        (1.0, 0.95, False, "float32"),  # is no faster
        (0.5, 0.1, True, "bfloat16"),  # was asked for
    ],
)
def test_a_lower_precision_has_to_be_faster_and_to_rank_alike(
    seconds: float, share: float, insist: bool, precision: str
) -> None:
    full = FakeBackend("torch", {1: 1.0})
    lower = FakeBackend("torch", {1: seconds}, "bfloat16")
    made = chosen([lower] if insist else [full, lower], [1], share, insist)
    assert made.backend.precision == precision
    assert made.overlap == share


def test_what_can_run_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "has_bfloat16", lambda _device: False)
    assert runnable(Wanted(), CPU, CONFIG) == [("onnx", "float32"), ("torch", "float32")]
    assert runnable(Wanted(backend="torch"), CPU, CONFIG) == [("torch", "float32")]
    assert runnable(Wanted(precision="float32"), CPU, CONFIG) == runnable(Wanted(), CPU, CONFIG)
    assert runnable(Wanted(precision="bfloat16"), CPU, TINY) == [("torch", "bfloat16")]
    monkeypatch.setattr(choosing, "has_bfloat16", lambda _device: True)
    for problem, name in ((None, "native"), ("no compiler", "torch")):
        monkeypatch.setattr(choosing, "native_problem", lambda _config, _device, why=problem: why)
        assert runnable(Wanted(), CPU, CONFIG)[-1] == (name, "bfloat16")
        assert runnable(Wanted("torch"), CPU, CONFIG)[-1] == ("torch", "bfloat16")
    with pytest.raises(NoBackend, match="LEWM_PRECISION is bfloat16: the onnx backend"):
        runnable(Wanted(backend="onnx", precision="bfloat16"), CPU, CONFIG)


def test_the_native_backend_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "has_bfloat16", lambda _device: False)
    monkeypatch.setattr(choosing, "native_problem", lambda _config, _device: None)
    for precision in ("auto", "bfloat16"):
        assert runnable(Wanted("native", precision), CPU, CONFIG) == [("native", "bfloat16")]
    with pytest.raises(NoBackend, match="LEWM_PRECISION is float32: the native backend"):
        runnable(Wanted("native", "float32"), CPU, CONFIG)
    monkeypatch.setattr(choosing, "native_problem", lambda _config, _device: "no compiler")
    with pytest.raises(NoBackend, match="LEWM_BACKEND is native: no compiler"):
        runnable(Wanted("native"), CPU, CONFIG)


def test_it_is_told_why_the_native_backend_was_no_candidate(
    model: LeWM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "has_bfloat16", lambda _device: True)
    made = choose_backend(model, card_of(model), None, CPU, Wanted(threads=1))
    assert made.native_problem is not None
    assert "multiples of 16" in made.native_problem


def test_onnx_without_cuda_says_what_it_needs() -> None:
    if runs_on(torch.device("cuda:0")):
        pytest.skip("ONNX Runtime runs on CUDA here")
    with pytest.raises(NoBackend, match="onnxruntime-gpu"):
        runnable(Wanted(backend="onnx"), torch.device("cuda:0"), CONFIG)


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t: fma avx2", False),
        ("flags\t: avx512f avx512_bf16 avx512vl", True),
        ("flags\t: amx_tile amx_bf16", True),
        ("Features : fp asimd bf16", True),
    ],
)
def test_a_processor_tells_whether_it_has_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, has: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : bf16 emulator\n{flags}\n")
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    assert has_bfloat16(CPU) is has
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "absent")
    assert not has_bfloat16(CPU)


@pytest.fixture(scope="module")
def model() -> LeWM:
    return tiny()


def test_auto_chooses_among_what_it_timed(model: LeWM) -> None:
    card = card_of(model)
    made = choose_backend(model, card, None, CPU, Wanted(threads=1))
    assert made.backend in [way.backend for way in made.ways]
    assert all(way.plan_s > 0 for way in made.ways)


def test_a_plan_is_an_encode_and_its_iterations(model: LeWM) -> None:
    now = [0.0]

    class Slow(TorchBackend):
        def encode(self, frames: Tensor) -> Tensor:
            now[0] += 0.5
            return super().encode(frames)

        def rollout(self, *plan: Tensor) -> Tensor:
            now[0] += 1.0
            return super().rollout(*plan)

    card = card_of(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])
        assert plan_seconds(Slow(model, CPU), card) == 0.5 + card.solver.iterations


def test_an_explicit_precision_wins(model: LeWM) -> None:
    card = card_of(model)
    made = choose_backend(model, card, None, CPU, Wanted(precision="bfloat16", threads=1))
    assert (made.backend.name, made.backend.precision) == ("torch", "bfloat16")
    assert made.overlap is not None
