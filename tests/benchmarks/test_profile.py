"""The kinds of operations, and how the nodes of an ONNX session are timed."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.profile import operation_kind, profile_onnx_nodes
from lewm_serve.backends.native import library


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
        *((name, name) for name in library.WORK_KINDS),
    ],
)
def test_operations_are_of_a_kind(operation: str, expected: str) -> None:
    assert operation_kind(operation) == expected


def test_the_nodes_of_an_onnx_session_are_timed() -> None:
    onnxruntime = pytest.importorskip("lewm_models.export.runtime").onnxruntime
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

    assert profile_onnx_nodes(make)["MatMul"] > 0
