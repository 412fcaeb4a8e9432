"""A plan as the pages show it: a summary for the list, and all of it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lewm_models.checkpoint import ViewingParts
from lewm_serve.planner.history import PlanRecord
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.transports.http.console.pictures import KnownFrame, imagined, picture_of_frame
from lewm_serve.transports.http.console.placing import Plane, Points

Document = dict[str, Any]

DIGITS = 5
"""The significant digits of drawn points."""


def summary_of(record: PlanRecord) -> Document:
    """A plan in the list."""
    response, context = record.response, record.context
    deadline_ms = 1000 * (context.earliest_deadline(record.request.deadline_ms) - context.received)
    return {
        "number": record.number,
        "answered_at": round(record.answered_at, 3),
        "request_id": response.request_id,
        "robot": context.robot,
        "key": context.key,
        "protocol": context.protocol,
        "model": response.model,
        "status": response.status,
        "health": response.health.status,
        "fallback": None if response.fallback is None else asdict(response.fallback),
        "cost": response.cost,
        "distance": None if response.distance is None else asdict(response.distance),
        "iterations": response.iterations,
        "total_ms": round(response.timing_ms.total, 2),
        "deadline_ms": round(deadline_ms, 1) if math.isfinite(deadline_ms) else None,
        "traced": record.trace is not None,
        "replay_of": record.replay_of,
    }


class Candidates:
    """The candidates of a plan to roll out: those that its trace keeps, and the best one last.

    Attributes:
        latents: (H, D) of the context of the roll-out.
        past_actions: (H − 1, A).
        blocks: (S, T, A), z-scored.
    """

    def __init__(self, record: PlanRecord, model: LoadedModel) -> None:
        assert record.latents is not None
        request, trace = record.request, record.trace
        best = model.to_blocks(record.response.actions).unsqueeze(0)
        self._committed = 0
        if trace is not None:
            self.latents, self.past_actions = trace.latents, trace.past_actions
            kept = [iteration.candidates for iteration in trace.iterations]
            self.blocks = torch.cat([*kept, best])
            self._counts = [len(candidates) for candidates in kept]
            return
        self.latents = record.latents[: len(request.frames)]
        rows = request.past_actions
        empty = torch.empty(0, best.shape[-1])
        self.past_actions = empty if rows is None or not len(rows) else model.to_blocks(rows)
        if request.committed_actions is not None and len(request.committed_actions):
            committed = model.to_blocks(request.committed_actions)
            self._committed = len(committed)
            best = torch.cat([committed.unsqueeze(0), best], dim=1)
        self.blocks, self._counts = best, []

    def by_iteration(self, predicted: Tensor) -> tuple[list[Tensor], Tensor]:
        """Predicted latents (S, T, D) of `blocks`: those of each iteration, and the best one's."""
        planned = predicted[:, self._committed :]
        kept = torch.split(planned[:-1], self._counts) if self._counts else ()
        return list(kept), planned[-1]


def detail_of(
    record: PlanRecord,
    *,
    model: LoadedModel | None,
    parts: ViewingParts | None,
    candidates: Candidates | None,
    predicted: Tensor | None,
    known: list[KnownFrame],
    plane: Plane | None,
    problem: str | None,
) -> tuple[Document, Plane | None]:
    """All of a plan. This takes milliseconds to tens of them.

    Args:
        record: the plan.
        model: its model; None if it is not served any more.
        parts: what helps to see its latents.
        candidates: what was rolled out.
        predicted: where that leads; None if it was not rolled out.
        known: frames that stand for latents if there is no decoder.
        plane: where the latents are drawn; None: a plane of its own.
        problem: why something is missing, for people.

    Returns:
        The document, and the plane in it.
    """
    response, request = record.response, record.request
    latents = record.latents
    pictures_of_frames = [
        picture_of_frame(frame, None if latents is None else latents[index], parts)
        for index, frame in enumerate(record.encoded_frames)
    ]
    goal_is_frame = request.goal.state is None
    document = (
        summary_of(record)
        | {
            "version": response.model_version,
            "backend": response.backend,
            "seed": str(response.seed),  # larger than the integers of JavaScript
            "solver": response.solver,
            "candidates": response.candidates,
            "action_block": response.action_block,
            "actions": response.actions.round(4).tolist(),
            "timing_ms": {
                name: round(value, 3) for name, value in asdict(response.timing_ms).items()
            },
            "health": asdict(response.health),
            "limits": None if model is None else _limits(model),
            "frames": pictures_of_frames[: len(request.frames)],
            "goal": pictures_of_frames[-1] if goal_is_frame else None,
            "goal_state": request.goal.state,
            "avoid": [
                region.model_dump(exclude_none=True, exclude={"weight"}) for region in request.avoid
            ],
            "states": None if response.states is None else asdict(response.states),
            "violations": list(response.violations),
            "costs": _costs(record),
            "imagined": None,
            "imagined_by": None,
            "plane": None,
            "problem": problem,
        }
    )
    if candidates is not None and predicted is not None and latents is not None:
        by_iteration, best = candidates.by_iteration(predicted)
        pictures = imagined(best, parts, known)
        if pictures is not None:
            document["imagined"], document["imagined_by"] = pictures
        ends = [part[:, -1] for part in by_iteration]
        goal = latents[-1:] if goal_is_frame else latents[:0]
        placed = torch.cat([candidates.latents[-1:], goal, best, *ends])
        probe = None if parts is None else parts.probe
        states = () if model is None or model.card.probe is None else model.card.probe.states
        plane = plane or Plane.of(placed, probe, states)
        path = plane.points(best)
        document["plane"] = {
            "by": "probe" if plane.probe is not None else "components",
            "axes": plane.axes,
            "start": _rounded(plane.points(candidates.latents[-1])),
            "goal": _rounded(plane.points(latents[-1]))
            if request.goal.state is None
            else plane.place_goal(request.goal.state, path[-1]),
            "regions": [
                outline
                for region in request.avoid
                if (outline := plane.place_region(region, path[0])) is not None
            ],
            "best": _rounded(path),
            "iterations": [_rounded(plane.points(part)) for part in by_iteration],
        }
    return document, plane


def _limits(model: LoadedModel) -> Document | None:
    """The limits of the health scores."""
    calibration = model.card.calibration
    if calibration is None:
        return None
    names = ("zscore_limit", "mahalanobis_limit", "surprise_limit", "sigreg_limit")
    return {name.removesuffix("_limit"): getattr(calibration, name) for name in names}


def _costs(record: PlanRecord) -> list[Document] | None:
    """The costs of the iterations, of which the best candidates come first."""
    if record.trace is None:
        return None
    timing = record.response.timing_ms
    start_ms = timing.decode + timing.encode + timing.queue
    return [
        {
            "ended_ms": round(start_ms + 1000 * iteration.ended_s, 3),
            "scored": iteration.scored,
            "elites": iteration.elites,
            "is_final_mean": iteration.is_final_mean,
            "costs": [_finite(cost) for cost in iteration.costs.tolist()],
        }
        for iteration in record.trace.iterations
    ]


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _rounded(points: Points) -> Any:
    """Points as lists, with few digits."""
    scale = 10.0 ** (DIGITS - 1 - math.floor(math.log10(max(1e-6, float(abs(points).max())))))
    return ((points * scale).round() / scale).tolist()
