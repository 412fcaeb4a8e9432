"""The parts that measurements are made of."""

import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.machine import describe_machine, summary
from benchmarks.matmul import matmul, matmul_flops
from benchmarks.onnx_profile import profile_sessions
from benchmarks.profile import kind
from benchmarks.startup import CACHES, empty_caches
from benchmarks.turns import median_ratio, take_turns
from lewm_serve.backends.native import library


def test_tasks_take_turns() -> None:
    done: list[str] = []
    tasks = {name: lambda name=name: done.append(name) for name in "ab"}
    seconds = take_turns(tasks, rounds=3)
    assert done == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert min(min(times) for times in seconds.values()) >= 0


def test_a_disturbed_round_does_not_move_the_ratio() -> None:
    assert median_ratio([4, 4, 400], [2, 2, 2]) == 2
    assert statistics.mean([2, 2, 200]) > 2


def test_a_product_runs_on_its_threads_and_puts_them_back() -> None:
    before = torch.get_num_threads()
    matmul(1, size=8)()
    assert torch.get_num_threads() == before
    assert matmul_flops(2) == 16


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["processor"]
    assert "torch" in machine["versions"]
    assert machine["processor"] in summary(machine)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("aten::addmm", "matrix products"),
        ("Gemm", "matrix products"),
        ("FusedMatMul", "matrix products"),
        ("aten::native_layer_norm", "layer norms"),
        ("SkipLayerNormalization", "layer norms"),
        ("aten::gelu", "activations"),
        ("aten::_softmax", "softmax"),
        ("aten::cat", "copies"),
        ("aten::mul", "element-wise"),
        ("cpp_fused_add_mul_3", "fused element-wise"),
        ("aten::empty", "other"),
        ("between nodes", "between nodes"),
        *((name, name) for name in library.KINDS),
    ],
)
def test_operations_are_of_a_kind(operation: str, expected: str) -> None:
    assert kind(operation) == expected


def test_caches_are_empty_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    unset, was_set = CACHES
    monkeypatch.delenv(unset, raising=False)
    monkeypatch.setenv(was_set, "/before")
    with empty_caches():
        assert os.environ[unset]
        assert os.environ[was_set] != "/before"
    assert unset not in os.environ
    assert os.environ[was_set] == "/before"


def test_the_nodes_of_an_onnx_session_are_timed() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "x"], ["y"])],
        "product",
        [value("x", onnx.TensorProto.FLOAT, [64, 64])],
        [value("y", onnx.TensorProto.FLOAT, [64, 64])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10

    def make() -> Callable[[], object]:
        options = onnxruntime.SessionOptions()
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda: session.run(None, {"x": np.ones((64, 64), np.float32)})

    assert profile_sessions(make)["MatMul"] > 0
