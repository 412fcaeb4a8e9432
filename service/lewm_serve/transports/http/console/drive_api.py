"""The routes of Drive: start a robot, set its goal and its faults, look at it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from lewm_serve.api.fields import RequestModel
from lewm_serve.errors import InvalidRequest, Unquoted
from lewm_serve.planner.planner import Planner
from lewm_serve.transports.exchange import (
    RequestMemory,
    RequestRecorder,
    check_accepts,
    exchange_of,
)
from lewm_serve.transports.http.access import CONSOLE_PATH, KEY_OF_REQUEST
from lewm_serve.transports.http.console.drive import (
    Drive,
    Simulation,
    SimulationError,
)
from lewm_serve.transports.http.console.drive_models import check_actions, check_driver
from lewm_serve.transports.http.console.requests import answer, check_page, read_document

PATH = f"{CONSOLE_PATH}/api/drive"

Share = Annotated[float, Field(ge=0, le=1)]


class DriveStart(RequestModel):
    """Which robot is to be driven, and by which model."""

    environment: Annotated[str, Field(max_length=64)]
    model: Annotated[str, Field(max_length=256)]


class DriveControls(RequestModel):
    """What the driver changes. What is left out stays."""

    task: Annotated[int | None, Field(ge=0)] = None
    x: Share | None = None
    y: Share | None = None
    fault: Annotated[str | None, Field(max_length=64)] = None
    is_delayed: bool | None = None
    fallback: Literal["none", "hold", "tail"] | None = None
    is_stopped: bool | None = None
    end: bool = False


class DriveApi:
    """One robot at a time. Looking needs the role `read`, driving `infer`."""

    def __init__(self, planner: Planner, recorder: RequestRecorder, memory: RequestMemory) -> None:
        self._planner, self._recorder, self._memory = planner, recorder, memory
        self._drive: Drive | None = None
        self._starting = asyncio.Lock()

    def install(self, app: FastAPI) -> None:
        """Add the routes."""

        def add(path: str, endpoint: Callable[..., Any], method: str) -> None:
            app.add_route(f"{PATH}{path}", endpoint, methods=[method], include_in_schema=False)

        add("", self.look, "GET")
        add("", self.start, "POST")
        add("/goals", self.goals, "GET")
        add("/controls", self.control, "POST")

    async def look(self, request: Request) -> Response:
        """The robot now."""
        key = request.scope.get(KEY_OF_REQUEST)
        if self._drive is not None:
            self._drive.watch(None if key is None else key.name)
        return answer({"drive": None if self._drive is None else await self._drive.to_json()})

    async def goals(self, _request: Request) -> Response:
        """What does not change while a robot drives: the goals to choose from, the faults."""
        if self._drive is None:
            return answer(None)
        return answer({"goals": self._drive.goals, **self._drive.about})

    async def start(self, request: Request) -> Response:
        """Start a robot, in place of the one before."""
        check_page(request)
        check_accepts(self._planner)
        wanted = await read_document(request, DriveStart, self._memory)
        described = self._planner.describe_models().models
        check_driver(described, wanted.environment, wanted.model)
        model, _ = self._planner.model_and_folder(wanted.model)
        async with self._starting:
            if self._drive is not None:
                self._drive.end("another drive has begun")
            try:
                simulation, about, goals = await Simulation.start(wanted.environment)
            except SimulationError as error:
                raise _refused("environment", wanted.environment, error) from None
            try:
                check_actions(
                    model.name,
                    wanted.environment,
                    model_actions=model.card.config.action_dim,
                    actions=about["action_dim"],
                )
            except BaseException:
                simulation.stop()
                raise
            context = replace(exchange_of(request.scope).context, endpoint="plan")
            self._drive = Drive(
                self._planner,
                self._recorder,
                simulation=simulation,
                about=about,
                goals=goals,
                model=model,
                context=context,
            )
        return answer(await self._drive.to_json())

    async def control(self, request: Request) -> Response:
        """Set the goal, the fault of the camera and the rest."""
        check_page(request)
        wanted = await read_document(request, DriveControls, self._memory)
        drive = self._drive
        if drive is None or drive.ended is not None:
            raise InvalidRequest(
                "missing_field", "drive", received=Unquoted("none"), expected="a robot that drives"
            )
        controls = drive.controls
        try:
            if wanted.task is not None:
                await drive.choose(number=wanted.task)
            if wanted.x is not None and wanted.y is not None:
                await drive.choose(x=float(wanted.x), y=float(wanted.y))
            if wanted.fault is not None:
                await drive.set_fault(wanted.fault)
        except SimulationError as error:
            raise _refused("drive", drive.environment, error) from None
        for name in ("is_delayed", "fallback", "is_stopped"):
            if (value := getattr(wanted, name)) is not None:
                setattr(controls, name, value)
        if wanted.end:
            drive.end("the driver has ended it")
        return answer(await drive.to_json())


def _refused(field: str, received: str, error: SimulationError) -> InvalidRequest:
    return InvalidRequest("out_of_range", field, received=received, expected=str(error))
