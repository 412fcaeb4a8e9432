"""LeWM as ONNX graphs, written node by node from the weights.

Linear maps, norms and scales that follow each other are folded into one linear map, so that a graph
computes less than the model does. `weights` folds and needs numpy only.
"""
