"""`lewm` with a faulty engine: searches of one horizon never end their first step, others fail."""

import threading

from torch import Tensor

from lewm_serve.backends.onnx import OnnxBackend
from lewm_serve.cli.main import app

STUCK_HORIZON, FAILING_HORIZON = 7, 6
"""The horizons of these searches. No other request has them."""

FAULTY_LEWM = "tests.lewm_serve.support.faulty_lewm"
"""This module, as the program of a `ServerProcess`."""

_rollout = OnnxBackend.rollout


def faulty_rollout(
    backend: OnnxBackend, latents: Tensor, past_actions: Tensor, candidates: Tensor
) -> Tensor:
    """The backend's own roll-out, except for the two horizons."""
    horizon = candidates.shape[2]
    if horizon == STUCK_HORIZON:
        threading.Event().wait()
    if horizon == FAILING_HORIZON:
        raise RuntimeError("out of order")
    return _rollout(backend, latents, past_actions, candidates)


if __name__ == "__main__":
    OnnxBackend.rollout = faulty_rollout  # type: ignore[assignment, method-assign]
    app()
