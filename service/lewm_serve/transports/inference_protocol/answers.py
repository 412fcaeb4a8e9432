"""From the responses of a batch to output tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import orjson

from lewm_serve.api.responses import EncodeResponse, PlanResponse, PredictResponse
from lewm_serve.constants import InferenceEndpoint
from lewm_serve.errors import InvalidRequest
from lewm_serve.transports.inference_protocol.requests import TensorSpec
from lewm_serve.transports.inference_protocol.tensors import BYTES, Tensor, numbers, texts

OUTPUTS: dict[str, TensorSpec] = {
    "actions": TensorSpec(("FP32",), (-1, -1, -1), ("plan",)),
    "cost": TensorSpec(("FP32",), (-1,), ("plan",)),
    "status": TensorSpec((BYTES,), (-1,), ("plan",)),
    "fallback_reason": TensorSpec((BYTES,), (-1,), ("plan",)),
    "iterations": TensorSpec(("INT64",), (-1,), ("plan",)),
    "seed": TensorSpec(("INT64",), (-1,), ("plan",)),
    "distance": TensorSpec(("FP32",), (-1, 2), ("plan",)),
    "goal_id": TensorSpec((BYTES,), (-1,), ("plan",)),
    "states": TensorSpec((BYTES,), (-1,), ("plan",)),
    "violations": TensorSpec((BYTES,), (-1,), ("plan",)),
    "trajectory": TensorSpec(("FP32",), (-1, -1, -1), ("plan",)),
    "latents": TensorSpec(("FP32",), (-1, -1, -1), ("encode", "predict")),
    "norms": TensorSpec(("FP32",), (-1, -1), ("encode",)),
    "frame_ids": TensorSpec((BYTES,), (-1, -1), ("encode", "plan")),
    "health": TensorSpec((BYTES,), (-1,), ("encode", "predict", "plan")),
    "health_reasons": TensorSpec((BYTES,), (-1,), ("encode", "predict", "plan")),
    "total_ms": TensorSpec(("FP32",), (-1,), ("encode", "predict", "plan")),
}
"""The outputs, in the order of the metadata and of answers."""

TRAJECTORY = "trajectory"
"""An output that is there only if it is asked for."""

STATES = {"states", "violations"}
"""Outputs that are there if a plan has to do with states, or if they are asked for. Each item is
JSON, because the names of states depend on the model."""

NO_DISTANCE = (np.nan, np.nan)


def check_outputs(names: Sequence[str], operation: InferenceEndpoint) -> None:
    """Refuse outputs that the operation does not have.

    Raises:
        InvalidRequest: there is one.
    """
    known = [name for name, spec in OUTPUTS.items() if operation in spec.operations]
    for name in names:
        if name not in known:
            expected = f"for {operation} one of {', '.join(known)}"
            raise InvalidRequest("unknown_field", "outputs", received=name, expected=expected)


def to_tensors(
    responses: Sequence[EncodeResponse | PredictResponse | PlanResponse],
    outputs: Sequence[str],
) -> list[Tensor]:
    """The outputs of a batch of responses of one kind.

    Args:
        responses: one for each item.
        outputs: the names that the client asks for; empty: all but the trajectory, and but states
            that no plan has to do with.
    """
    every: Any = responses  # of one type, as `match` finds out
    match responses[0]:
        case PlanResponse():
            tensors = _of_plans(
                every,
                with_trajectory=TRAJECTORY in outputs,
                with_states=not STATES.isdisjoint(outputs),
            )
        case EncodeResponse():
            tensors = _of_latents(every)
        case PredictResponse():
            latents = np.stack([response.latents for response in every])
            tensors = [numbers("latents", "FP32", latents)]
    tensors += [
        texts("health", [response.health.status for response in responses]),
        texts("health_reasons", ["; ".join(item.health.reasons) for item in responses]),
        numbers("total_ms", "FP32", [response.timing_ms.total for response in responses]),
    ]
    if not outputs:
        return tensors
    by_name = {tensor.name: tensor for tensor in tensors}
    return [by_name[name] for name in outputs]


def _of_plans(
    plans: Sequence[PlanResponse], *, with_trajectory: bool, with_states: bool
) -> list[Tensor]:
    tensors = [
        numbers("actions", "FP32", np.stack([plan.actions for plan in plans])),
        numbers("cost", "FP32", [plan.cost for plan in plans]),
        texts("status", [plan.status for plan in plans]),
        texts(
            "fallback_reason",
            ["" if plan.fallback is None else plan.fallback.reason for plan in plans],
        ),
        numbers("iterations", "INT64", [plan.iterations for plan in plans]),
        numbers("seed", "INT64", [plan.seed for plan in plans]),
        numbers("distance", "FP32", [_distance(plan) for plan in plans]),
        texts("frame_ids", _frame_ids(plans)),
        texts("goal_id", [plan.latent_ids.goal if plan.latent_ids else "" for plan in plans]),
    ]
    if with_states or any(plan.states is not None for plan in plans):
        tensors += [
            texts(
                "states", ["" if plan.states is None else _to_json(plan.states) for plan in plans]
            ),
            texts(
                "violations",
                ["" if plan.states is None else _to_json(plan.violations) for plan in plans],
            ),
        ]
    if with_trajectory:
        known = next((plan.trajectory for plan in plans if plan.trajectory is not None), None)
        none = np.full((1, 1) if known is None else known.shape, np.nan, np.float32)
        paths = [none if plan.trajectory is None else plan.trajectory for plan in plans]
        tensors.append(numbers(TRAJECTORY, "FP32", np.stack(paths)))
    return tensors


def _frame_ids(plans: Sequence[PlanResponse]) -> list[list[str]]:
    """The ids of each plan's frames; empty texts if a fallback answered before they were known."""
    ids = [[] if plan.latent_ids is None else list(plan.latent_ids.frames) for plan in plans]
    count = max(1, *(len(item) for item in ids))
    return [item or [""] * count for item in ids]


def _to_json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _distance(plan: PlanResponse) -> tuple[float, float]:
    return NO_DISTANCE if plan.distance is None else (plan.distance.start, plan.distance.end)


def _of_latents(responses: Sequence[EncodeResponse]) -> list[Tensor]:
    latents = [[item.latent for item in response.latents] for response in responses]
    ids = [[item.latent_id for item in response.latents] for response in responses]
    norms = [[item.norm for item in response.latents] for response in responses]
    return [
        numbers("latents", "FP32", np.stack(cast(Any, latents))),
        numbers("norms", "FP32", norms),
        texts("frame_ids", ids),
    ]
