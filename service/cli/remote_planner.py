"""A robot's planner behind gRPC: pixels out, actions in."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from PIL import Image

from models.evaluation.episode import Actions, Frame
from service.responses import ModelDescription, PlanResponse
from service.rpc.client import PlannerClient, PlannerError

TIMEOUT_S = 600.0
"""A call's timeout is its plan's deadline too, and what is measured are whole plans."""


class RemotePlanner:
    """Plans for one robot on its way to one goal; see `models.evaluation.episode.Planner`.

    The goal's frame is sent once and named by its `latent_id` from then on. Of each plan the first
    ``plan_steps`` actions are run; the rest is where the search for the next plan begins.

    Attributes:
        last: the server's latest answer, None before the first.
    """

    last: PlanResponse | None = None

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
        self._model = model
        self._solver = solver

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """Ask the server; raises `PlannerError`."""
        image = png(frame)
        goal = self.last.latent_ids.goal if self.last else png(goal_frame)
        started = time.perf_counter()
        try:
            plan = self._plan(image, goal, seed)
        except PlannerError as error:
            if error.code != "unknown_latent":
                raise
            # The server keeps latents for a while only.
            plan = self._plan(image, png(goal_frame), seed)
        self.last = plan
        return plan.actions, time.perf_counter() - started

    def _plan(self, image: bytes, goal: bytes | str, seed: int) -> PlanResponse:
        rest = self.last.actions[self._plan_steps :] if self.last else ()
        return self._client.plan(
            [image],
            goal,
            model=self._model,
            solver=self._solver,
            warm_start=rest if len(rest) else None,
            seed=seed,
            timeout_s=TIMEOUT_S,
        )


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
