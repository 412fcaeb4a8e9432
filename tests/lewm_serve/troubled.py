"""`lewm` with an engine in trouble: some searches never end their first step, others fail."""

import threading

from torch import Tensor

from lewm_serve.backends.onnx import OnnxBackend
from lewm_serve.cli.main import app

STUCK, FAILING = 7, 6
"""The horizons of these searches; nothing else looks so far ahead."""

PROGRAM = "tests.lewm_serve.troubled"

_work = OnnxBackend.rollout


def rollout(
    backend: OnnxBackend, latents: Tensor, past_actions: Tensor, candidates: Tensor
) -> Tensor:
    """The backend's own, except for those horizons."""
    horizon = candidates.shape[2]
    if horizon == STUCK:
        threading.Event().wait()
    if horizon == FAILING:
        raise RuntimeError("out of order")
    return _work(backend, latents, past_actions, candidates)


if __name__ == "__main__":
    OnnxBackend.rollout = rollout  # type: ignore[assignment, method-assign]
    app()
