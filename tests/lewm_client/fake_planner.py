"""Plans and errors as a planner makes them, without a planner."""

import grpc
import numpy as np

from lewm_client import FallbackReport, Health, LatentIds, PlannerError, PlanResponse, Timing

PLAN_ROWS = 10
ACTION_BLOCK = 5


class FakePlannerError(PlannerError):
    """An error with a status and a code, without a call."""

    def __init__(self, status: grpc.StatusCode, code: str = "") -> None:
        Exception.__init__(self, code)
        self.status = status
        self.code = code


UNAVAILABLE = FakePlannerError(grpc.StatusCode.UNAVAILABLE, "unavailable")


def make_plan(first_action: float, fallback: str | None = None) -> PlanResponse:
    """A plan of ten rows whose values rise from ``first_action``."""
    rows = np.arange(PLAN_ROWS, dtype=np.float32)[:, None]
    return PlanResponse(
        request_id="request",
        model="model",
        model_version="version",
        backend="torch",
        precision="float32",
        actions=(first_action + rows / 100).astype(np.float32),
        action_block=ACTION_BLOCK,
        cost=None if fallback else 1.0,
        status="fallback" if fallback else "completed",
        iterations=1,
        candidates=1,
        solver={},
        seed=0,
        latent_ids=None if fallback else LatentIds(frames=("frame-id",), goal="goal-id"),
        health=Health("ok"),
        fallback=FallbackReport(fallback, "deadline") if fallback else None,
        timing_ms=Timing(queue=0, decode=0, encode=0, solve=0, total=0),
    )
