"""`lewm` with a faulty engine: by their horizon, steps never end, take long, fail, or crash."""

import os
import signal
import threading
import time

from torch import Tensor

from lewm_serve.backends.onnx import OnnxBackend
from lewm_serve.cli.main import app

STUCK_HORIZON, FAILING_HORIZON, SLOW_HORIZON, CRASHING_HORIZON, DYING_HORIZON = 7, 6, 8, 9, 10
"""The horizons of these searches. No other request has them."""

SLOW_STEP_S = 3.0

FAULTY_LEWM = "tests.lewm_serve.support.faulty_lewm"
"""This module, as the program of a `ServerProcess`."""

_rollout = OnnxBackend.rollout


def faulty_rollout(
    backend: OnnxBackend, latents: Tensor, past_actions: Tensor, candidates: Tensor
) -> Tensor:
    """The backend's own roll-out, except for these horizons."""
    horizon = candidates.shape[2]
    if horizon == STUCK_HORIZON:
        threading.Event().wait()
    if horizon == SLOW_HORIZON:
        time.sleep(SLOW_STEP_S)
    if horizon == CRASHING_HORIZON:
        os.kill(os.getpid(), signal.SIGSEGV)
    if horizon == DYING_HORIZON:
        raise KeyboardInterrupt
    if horizon == FAILING_HORIZON:
        raise RuntimeError("out of order")
    return _rollout(backend, latents, past_actions, candidates)


if __name__ == "__main__":
    OnnxBackend.rollout = faulty_rollout  # type: ignore[assignment, method-assign]
    app()
