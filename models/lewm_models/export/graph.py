"""Writing an ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lewm_models.export.weights import Affine, HeadWeights

OPSET = 20
IR_VERSION = 9
"""The versions of ONNX 1.15, which runtimes since the end of 2023 can read."""

MAX_CONSTANT_VALUES = 1024
"""Larger arrays are weights: they are kept outside of the graph."""

Dimension = int | str


@dataclass(frozen=True)
class OnnxGraph:
    """A finished graph, and its weights by name. Several graphs may share the same arrays."""

    model: onnx.ModelProto
    weights: dict[str, NDArray[np.generic]]

    def with_weights(self) -> onnx.ModelProto:
        """The model with its weights inside."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.weights:
                tensor.CopyFrom(numpy_helper.from_array(self.weights[tensor.name], tensor.name))
        return model


class GraphBuilder:
    """Adds nodes one by one. Values are known by their names and are float32 (rows, width)."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[object, onnx.TensorProto] = {}
        self._weights: dict[str, NDArray[np.generic]] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._value_count = 0

    def input(self, name: str, shape: Sequence[Dimension], kind: int = TensorProto.FLOAT) -> str:
        """Declare an input. A dimension given as a word may have any size."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[Dimension]) -> None:
        """Make a value an output of this name."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def constant(self, array: NDArray[np.generic]) -> str:
        """Add an array to the graph. Equal small arrays are added once."""
        if array.size > MAX_CONSTANT_VALUES:
            name = f"weight.{len(self._weights)}"
            self._weights[name] = np.ascontiguousarray(array)
            return name
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(array, name)
        return self._constants[key].name

    def integers(self, *values: int) -> str:
        """Add a constant of int64 numbers: a shape, axes, or starts and ends of a slice."""
        return self.constant(np.array(values, dtype=np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.multi_output_op(kind, *inputs, outputs=1, **attributes)[0]

    def multi_output_op(
        self, kind: str, *inputs: str, outputs: int, **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs."""
        names = [f"value.{self._value_count + index}" for index in range(outputs)]
        self._value_count += outputs
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def linear(self, x: str, affine: Affine) -> str:
        """x (rows, inputs) → (rows, outputs); the map is in float32."""
        inputs = (x, self.constant(affine.weight), self.constant(affine.bias))
        return self.op("Gemm", *inputs) if affine.bias.any() else self.op("Gemm", *inputs[:2])

    def optional_linear(self, x: str, affine: Affine | None) -> str:
        """As `linear`, or x itself without a map."""
        return x if affine is None else self.linear(x, affine)

    def reshape(self, x: str, *dimensions: int) -> str:
        """Change the shape. One dimension may be -1; 0 keeps a dimension as it is."""
        return self.op("Reshape", x, self.integers(*dimensions))

    def split_rows(self, x: str, parts: int) -> list[str]:
        """Split the rows into equal parts."""
        if parts == 1:
            return [x]
        return self.multi_output_op("Split", x, outputs=parts, axis=0, num_outputs=parts)

    def join_rows(self, parts: Sequence[str]) -> str:
        """Put the rows of several values one after another."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def standardise(self, x: str, width: int, epsilon: float) -> str:
        """A LayerNorm without its affine part, which is folded into the following linear map."""
        ones = self.constant(np.ones(width, dtype=np.float32))
        return self.op("LayerNormalization", x, ones, axis=-1, epsilon=epsilon)

    def silu(self, x: str) -> str:
        """x · sigmoid(x)."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def activation(self, name: str, x: str) -> str:
        """An activation of `lewm_models.config.ACTIVATIONS`, by its name."""
        return (
            self.silu(x) if name == "silu" else self.op({"gelu": "Gelu", "relu": "Relu"}[name], x)
        )

    def head(self, x: str, head: HeadWeights) -> str:
        """A projector, with the maps before it: standardised x (rows, width) → (rows, D)."""
        x = self.linear(x, head.first)
        if head.norm is not None:
            affine = (self.constant(head.norm.weight), self.constant(head.norm.bias))
            x = self.op("LayerNormalization", x, *affine, axis=-1, epsilon=head.norm_epsilon)
        if head.second is None:
            return x
        return self.linear(self.activation(head.activation, x), head.second)

    def finish(self, name: str) -> OnnxGraph:
        """The complete graph."""
        initializers = [
            *self._constants.values(),
            *(_external_initializer(name, weight) for name, weight in self._weights.items()),
        ]
        graph = helper.make_graph(
            nodes=self._nodes,
            name=name,
            inputs=self._inputs,
            outputs=self._outputs,
            initializer=initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="lewm-serve",
        )
        return OnnxGraph(model, self._weights)


def _external_initializer(name: str, weight: NDArray[np.generic]) -> onnx.TensorProto:
    """An initializer that gives the shape and type of a weight, but not its data."""
    tensor = onnx.TensorProto(
        name=name,
        dims=weight.shape,
        data_type=helper.np_dtype_to_tensor_dtype(weight.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    tensor.external_data.add(key="location", value="memory")
    return tensor
