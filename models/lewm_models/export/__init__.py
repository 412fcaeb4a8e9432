"""A LeWM as ONNX graphs, written node by node from its weights."""
