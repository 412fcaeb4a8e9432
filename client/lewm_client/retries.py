"""Calls that are tried again while the server cannot be reached, and end in time."""

from __future__ import annotations  # gRPC's types are generic to the checker only

import math
import random
import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from lewm_client.errors import PlannerError

A = TypeVar("A", bound=Message)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


def call(method: Callable[..., A], request: Message, timeout_s: float, retries: int) -> A:
    """Call a method, once more up to ``retries`` times where the answer is UNAVAILABLE.

    Nothing else is tried again: a plan that was too late is so the second time, and a server that
    is overloaded is not helped. Pauses double, are shortened by chance so that a fleet does not
    return at one moment, and are as long at least as the server asks for. All attempts together
    take ``timeout_s`` at most.

    Raises:
        PlannerError: that of the last attempt.
        ValueError: ``timeout_s`` is no positive number: without an end, a call may hang.
    """
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s must be a finite number above 0, got {timeout_s}")
    deadline = time.monotonic() + timeout_s
    pause = FIRST_PAUSE_S
    left = retries
    while True:
        try:
            return method(request, timeout=max(0.0, deadline - time.monotonic()))
        except grpc.RpcError as failed:
            error = PlannerError(failed)  # type: ignore[arg-type]
        pause_s = max(error.retry_after_s or 0.0, pause * random.uniform(0.5, 1))
        out_of_time = time.monotonic() + pause_s >= deadline
        if error.status is not grpc.StatusCode.UNAVAILABLE or not left or out_of_time:
            raise error
        time.sleep(pause_s)
        left, pause = left - 1, min(2 * pause, LONGEST_PAUSE_S)
