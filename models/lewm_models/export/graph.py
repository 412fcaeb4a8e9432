"""An ONNX graph while it is being written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lewm_models.export.affine import Affine

OPSET = 20
IR_VERSION = 9
"""Those of ONNX 1.15, so that runtimes of the last years read them."""

Dimension = int | str

SMALL = 1024


@dataclass(frozen=True)
class Written:
    """A finished graph without its ``weights``, which several graphs may share."""

    model: onnx.ModelProto
    weights: dict[str, NDArray[np.generic]]

    def whole(self) -> onnx.ModelProto:
        """One model that holds all."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.weights:
                tensor.CopyFrom(numpy_helper.from_array(self.weights[tensor.name], tensor.name))
        return model


class Graph:
    """Adds nodes one by one; a value is known by its name. Values are float32, rows × width."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[object, onnx.TensorProto] = {}
        self._weights: dict[str, NDArray[np.generic]] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, name: str, shape: Sequence[Dimension], kind: int = TensorProto.FLOAT) -> str:
        """Declare an input; a dimension that is a word may be of any size."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[Dimension]) -> None:
        """Give a value out under a name."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def constant(self, array: NDArray[np.generic]) -> str:
        """An array that is part of the graph; small ones that are equal are held once."""
        if array.size > SMALL:
            name = f"weight.{len(self._weights)}"
            self._weights[name] = np.ascontiguousarray(array)
            return name
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(array, name)
        return self._constants[key].name

    def shape(self, *dimensions: int) -> str:
        """Whole numbers, as a shape or axes."""
        return self.constant(np.array(dimensions, dtype=np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output."""
        return self.split_op(kind, *inputs, outputs=1, **attributes)[0]

    def split_op(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node of several outputs."""
        names = [f"value.{self._count + index}" for index in range(outputs)]
        self._count += outputs
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def linear(self, x: str, affine: Affine) -> str:
        """x (rows, in) → (rows, out); the map is in float32."""
        inputs = (x, self.constant(affine.weight), self.constant(affine.bias))
        return self.op("Gemm", *inputs) if affine.bias.any() else self.op("Gemm", *inputs[:2])

    def maybe_linear(self, x: str, affine: Affine | None) -> str:
        """The same, or x itself where there is no map."""
        return x if affine is None else self.linear(x, affine)

    def reshape(self, x: str, *dimensions: int) -> str:
        """One dimension may be -1, and 0 keeps what it was."""
        return self.op("Reshape", x, self.shape(*dimensions))

    def parts(self, x: str, count: int) -> list[str]:
        """Rows in equal parts."""
        if count == 1:
            return [x]
        return self.split_op("Split", x, outputs=count, axis=0, num_outputs=count)

    def joined(self, parts: Sequence[str]) -> str:
        """Rows one after the other."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def standardised(self, x: str, width: int, epsilon: float) -> str:
        """A LayerNorm without its affine part, which belongs to the linear that follows."""
        scale = self.constant(np.ones(width, dtype=np.float32))
        return self.op("LayerNormalization", x, scale, axis=-1, epsilon=epsilon)

    def silu(self, x: str) -> str:
        """x · sigmoid(x)."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def finish(self, name: str) -> Written:
        """The graph as it stands."""
        initializers = [
            *self._constants.values(),
            *(_elsewhere(name, weight) for name, weight in self._weights.items()),
        ]
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, initializers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="lewm-serve",
        )
        return Written(model, self._weights)


def _elsewhere(name: str, weight: NDArray[np.generic]) -> onnx.TensorProto:
    """An initializer whose data is not in the graph."""
    tensor = onnx.TensorProto(
        name=name,
        dims=weight.shape,
        data_type=helper.np_dtype_to_tensor_dtype(weight.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    tensor.external_data.add(key="location", value="memory")
    return tensor
