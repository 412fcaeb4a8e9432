"""LeWM world models without a server: architecture, training, calibration, evaluation.

- `lewm`, `config`, `loss`: the architecture, its hyper-parameters, the training loss
- `card`, `checkpoint`, `verification`: model folders, and the checks of ``lewm models verify``
- `environments`, `training`, `calibration`, `evaluation`: from an environment to a measured model
- `importing`, `export`: public checkpoints in, ONNX graphs out
- `preprocessing`, `random_weights`: the resize of frames; models for tests and benchmarks
- `file_kinds`: what a file is that cannot be read

The package needs torch, numpy and safetensors. `export` (except `export.weights`) also needs onnx
and onnxruntime, and `environments.two_room_gym` needs gymnasium.
"""
