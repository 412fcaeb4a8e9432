"""A robot's planner behind gRPC: pixels out, actions in."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from PIL import Image

from lewm_client import Pilot, PlannerClient, PlanResponse, Setback
from lewm_models.evaluation.episode import Actions, Frame
from lewm_serve.responses import ModelDescription

TIMEOUT_S = 600.0
"""A call's timeout is its plan's deadline too, and what is measured are whole plans."""


class RemotePlanner:
    """Plans for one robot on its way to one goal; see `lewm_models.evaluation.episode.Planner`.

    Of each plan the first ``plan_steps`` actions are run; see `lewm_client.Pilot`. A plan that does
    not come ends the episode, since what is measured is the planner.
    """

    def __init__(
        self,
        client: PlannerClient,
        plan_steps: int,
        *,
        model: str | None = None,
        solver: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = client
        self._plan_steps = plan_steps
        self._settings = {"model": model, "solver": solver}
        self._pilot: Pilot | None = None

    @property
    def last(self) -> PlanResponse | None:
        """The server's latest answer, None before the first."""
        return None if self._pilot is None else self._pilot.last

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """Ask the server; raises `PlannerError`."""
        image = png(frame)
        if self._pilot is None:
            self._pilot = Pilot(
                self._client,
                png(goal_frame),
                steps=self._plan_steps,
                timeout_s=TIMEOUT_S,
                local=_give_up,
                settings=self._settings,
            )
        started = time.perf_counter()
        move = self._pilot.step([image], seed=seed)
        return move.actions, time.perf_counter() - started


def _give_up(setback: Setback) -> Actions:
    raise setback.error


def png(frame: Frame) -> bytes:
    """A frame (H, W, 3) as a camera might send it, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def two_room_model(client: PlannerClient, name: str | None) -> ModelDescription:
    """The server's model of this name, or its default, which must act as Two-Room does.

    Raises:
        ValueError: there is no such model, or it acts otherwise.
        PlannerError: the server cannot be reached.
    """
    models = client.models()
    chosen = [model for model in models if (model.name == name if name else model.default)]
    if not chosen:
        wanted = name or "by default"
        raise ValueError(f"no model {wanted}, the server has {[model.name for model in models]}")
    model = chosen[0]
    card = MessageToDict(model.card)
    if card["action_dim"] != 2:
        raise ValueError(f"{model.name}: expected action_dim 2, got {card['action_dim']:g}")
    return ModelDescription(
        model.name,
        model.version,
        model.default,
        model.backend,
        model.device,
        model.precision,
        card,
    )
