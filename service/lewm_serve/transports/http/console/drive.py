"""A simulated robot that this server drives while somebody looks.

The simulation runs in a process of its own. Its plans take the way of all others, and are in
metrics, logs and the fleet as those of the robot `drive`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import secrets
import sys
import time
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from lewm_models.cores import lower_thread_priority
from lewm_serve.api.requests import Fallback, Frame, Goal, PlanRequest, RequestContext
from lewm_serve.api.responses import PlanResponse
from lewm_serve.errors import Internal, ServiceError
from lewm_serve.observability.logging import log
from lewm_serve.planner.planner import Planner
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.transports.exchange import Exchange, RequestRecorder
from lewm_serve.transports.http.console.pictures import Picture, data_url

ROBOT = "drive"

UNWATCHED_S = 15.0
"""A robot stops for good when its driver has not looked for so long."""

STEP_S = 0.05
"""The time that an action takes."""

DEADLINE_MS = 250.0
"""The deadline of a plan, from the moment at which the robot asks for it."""

NETWORK_DELAY_S = 0.3
"""The latency that can be switched on."""

ANSWER_S = 60.0
"""The longest time for an answer of the simulation, whose start takes longest."""

BUDGETS = 2
"""A robot gives up after this many times the actions that an episode of its protocol has."""

NICENESS = 15

PAUSE_S = 0.1
RETRY_S = 1.0

MAX_FRAME_BYTES = 16 << 20

UNEXPECTED = "an unexpected error; the log of the server says more"
"""Why a drive has ended, if nothing else is known that is fit for people."""

OPERATION = {"http.route": "/console/api/drive"}


class SimulationError(RuntimeError):
    """The simulation cannot do what it should. The message says why, for people."""


class Simulation:
    """The process of a simulated robot; see `lewm_models.environments.simulated_robot`.

    A thread talks to it. The event loop's own subprocesses are forked, which gRPC complains about.
    """

    def __init__(self, environment: str) -> None:
        self._is_stopped = False
        module = "lewm_models.environments.simulated_robot"
        seed = str(secrets.randbelow(1 << 31))
        self._process = Popen(
            [sys.executable, "-m", module, environment, seed],
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
        )
        self._thread = ThreadPoolExecutor(
            1,
            thread_name_prefix="simulation",
            initializer=lower_thread_priority,
            initargs=(NICENESS,),
        )

    @classmethod
    async def start(cls, environment: str) -> tuple[Simulation, dict[str, Any], list[Picture]]:
        """Start the process.

        Returns:
            It, what it says of itself, and pictures of the goals to choose from.

        Raises:
            SimulationError: it cannot be started.
        """
        simulation = cls(environment)
        try:
            about, goals = await simulation._in_thread(None)
        except BaseException:
            simulation.stop()
            raise
        return simulation, about, goals

    async def do(self, **command: Any) -> tuple[dict[str, Any], list[Picture]]:
        """Have a command executed, after those that were given before.

        Raises:
            SimulationError: that is not possible.
        """
        return await self._in_thread(json.dumps(command).encode() + b"\n")

    async def _in_thread(self, command: bytes | None) -> tuple[dict[str, Any], list[Picture]]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_S):
                return await loop.run_in_executor(self._thread, self._answer_to, command)
        except TimeoutError:
            self.stop()
            raise SimulationError("the simulation does not answer") from None
        except RuntimeError as error:  # also that of an executor that is shut down
            raise SimulationError(str(error)) from None

    def _answer_to(self, command: bytes | None) -> tuple[dict[str, Any], list[Picture]]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        if command is not None:
            with suppress(OSError):  # then there is no answer
                stdin.write(command)
                stdin.flush()
        about: dict[str, Any] = json.loads(stdout.readline() or b"{}")
        shape = tuple(about.get("shape", ()))
        if "error" in about or len(shape) != 4:
            raise SimulationError(about.get("error", "the simulation has ended"))
        size = math.prod(shape)
        if size > MAX_FRAME_BYTES:
            raise SimulationError("its pictures are too large for the console")
        data = stdout.read(size)
        if len(data) < size:
            raise SimulationError("the simulation has ended")
        return about, list(np.frombuffer(data, np.uint8).reshape(shape))

    async def url_of(self, picture: Picture) -> str:
        """A picture for the page.

        Raises:
            SimulationError: the simulation has ended.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, _jpeg_url, picture)
        except RuntimeError as error:
            raise SimulationError(str(error)) from None

    def stop(self) -> None:
        """End the process."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._process.kill()
        self._thread.submit(self._process.wait)
        self._thread.shutdown(wait=False)


@dataclass
class Controls:
    """What the driver has set."""

    fault: str = ""
    is_delayed: bool = False
    fallback: str = "hold"
    is_stopped: bool = False


@dataclass
class Shown:
    """What the page shows of the robot. ``url`` is that of ``urls_frame``, which may be older."""

    frame: Picture
    url: str = ""
    urls_frame: Picture | None = None
    goal: str | None = None
    steps: int = 0
    reached: bool = False
    plan: int | None = None
    response: PlanResponse | None = None
    waited_ms: float = 0.0
    problem: str | None = None
    health: dict[str, int] = field(default_factory=dict)
    fallbacks: int = 0


class Drive:
    """One robot and its driver. Used only from the event loop.

    Attributes:
        number: tells drives apart.
        environment: the name of its environment.
        controls: what the driver has set.
        shown: what the page shows.
    """

    def __init__(
        self,
        planner: Planner,
        recorder: RequestRecorder,
        *,
        simulation: Simulation,
        about: dict[str, Any],
        goals: list[Picture],
        model: LoadedModel,
        context: RequestContext,
    ) -> None:
        self.number = uuid.uuid4().hex
        self.environment: str = about["name"]
        self.about = about
        self.goals = [data_url(goal) for goal in goals]
        self.controls = Controls()
        self.shown = Shown(frame=goals[0])
        self.ended: str | None = None
        self._planner, self._recorder = planner, recorder
        self._simulation, self._model, self._context = simulation, model, context
        self._watched_at = time.monotonic()
        self._goal: Goal | None = None
        self._state: list[float] = []
        given, names = model.card.config.state_input, about["state_names"]
        self._inputs: list[int] = []  # the places of the states that the model sees
        if given is not None and set(given.names) <= set(names):
            self._inputs = [names.index(name) for name in given.names]
        self._seen: deque[Frame] = deque(maxlen=model.card.config.history)
        self._executed: deque[NDArray[np.float32]] = deque(
            maxlen=model.card.config.history - 1 or None
        )
        self._rest: NDArray[np.float32] | None = None
        self._changed = False
        self._running = asyncio.create_task(self._run())

    @property
    def driver(self) -> str | None:
        """The name of the driver's key."""
        return self._context.key

    @property
    def is_at_rest(self) -> bool:
        """Whether the goal is reached or given up."""
        return self.shown.reached or self.shown.steps >= BUDGETS * self.about["budget"]

    def watch(self, key: str | None) -> None:
        """Somebody looks. The robot goes on as long as its driver does."""
        if key == self._context.key:
            self._watched_at = time.monotonic()

    async def choose(self, **goal: Any) -> None:
        """Set the goal: the ``number`` of a task, or a point ``x``, ``y`` of the picture.

        Raises:
            SimulationError: that is not possible.
        """
        command = {"do": "task" if "number" in goal else "goal", **goal}
        about, pictures = await self._simulation.do(**command)
        self.shown = shown = Shown(pictures[0])
        self._state = about["state"]
        vector = self._vector(about["goal_state"])
        self._goal = Goal.model_construct(pixels=pictures[1], vector=vector)
        self._changed = True
        shown.goal = await self._simulation.url_of(pictures[1])

    def _vector(self, state: list[float]) -> NDArray[np.float32] | None:
        """What the model sees of a state of the simulation."""
        return np.array(state, np.float32)[self._inputs] if self._inputs else None

    async def set_fault(self, name: str) -> None:
        """Give the camera this fault; "": none.

        Raises:
            SimulationError: there is no such fault.
        """
        _, pictures = await self._simulation.do(do="fault", name=name)
        self.controls.fault, self.shown.frame = name, pictures[0]

    def end(self, reason: str) -> None:
        """End the drive."""
        if self.ended is None:
            self.ended = reason
        self._running.cancel()
        self._simulation.stop()

    async def _run(self) -> None:
        try:
            about, pictures = await self._simulation.do(do="look")
            self._state, self.shown.frame = about["state"], pictures[0]
            while time.monotonic() - self._watched_at < UNWATCHED_S:
                if self._goal is None or self.is_at_rest or self.controls.is_stopped:
                    await asyncio.sleep(PAUSE_S)
                else:
                    await self._plan_and_go()
            self.end("nobody looked")
        except SimulationError as error:
            self.end(str(error))
        except Exception:
            log.exception("the drive of the console failed")
            self.end(UNEXPECTED)

    async def _plan_and_go(self) -> None:
        """Plan, and execute the first action block."""
        if self._changed:  # what was seen before does not lead to what is seen now
            self._changed = False
            self._seen.clear()
            self._executed.clear()
            self._rest = None
        shown = self.shown
        vector = self._vector(self._state)
        self._seen.append(Frame.model_construct(pixels=shown.frame, vector=vector))
        response = await self._plan()
        if response is None or self.shown is not shown:
            await asyncio.sleep(RETRY_S if response is None else 0)
            self._changed = True
            return
        block = self._model.card.config.action_block
        actions = response.actions[:block]
        self._rest = response.actions[block:]
        for action in actions:
            started = time.monotonic()
            about, pictures = await self._simulation.do(do="step", action=action.tolist())
            if self.shown is not shown:
                return
            shown.frame, shown.reached = pictures[0], about["reached"]
            self._state = about["state"]
            shown.steps += 1
            if shown.reached:
                break
            await asyncio.sleep(max(0.0, STEP_S - (time.monotonic() - started)))
        if len(actions) == block:
            self._executed.append(actions)

    async def _plan(self) -> PlanResponse | None:
        """The plan from what the robot has seen. None if there is none: the page says why."""
        assert self._goal is not None
        shown, controls = self.shown, self.controls
        asked = time.monotonic()
        context = replace(self._context, request_id=uuid.uuid4().hex, received=asked, robot=ROBOT)
        exchange = Exchange(context, OPERATION)
        exchange.model = self._model.name
        try:
            request = self._request()
            if controls.is_delayed:
                await asyncio.sleep(NETWORK_DELAY_S)
            response = await self._planner.plan(request, context)
        except ServiceError as error:
            exchange.code = error.code
            shown.problem = error.detail
            return None
        except Exception:
            exchange.code = Internal.code
            raise
        else:
            exchange.response = response
            shown.response, shown.problem = response, None
            status = response.health.status
            shown.health[status] = shown.health.get(status, 0) + 1
            shown.fallbacks += response.fallback is not None
            return response
        finally:
            shown.waited_ms = 1000 * (time.monotonic() - asked)
            self._recorder.record(exchange, 200 if exchange.response is not None else exchange.code)

    def _request(self) -> PlanRequest:
        """The request for the next plan."""
        assert self._goal is not None
        frames = tuple(self._seen)
        past = list(self._executed)[-(len(frames) - 1) :] if len(frames) > 1 else []
        name = self.controls.fallback
        warm_start = self._rest if name == "tail" else None
        if name == "tail" and warm_start is None:
            name = "hold"  # before the first plan there is no tail
        return PlanRequest.model_construct(
            model=self._model.pin,
            frames=frames,
            past_actions=np.concatenate(past) if past else None,
            goal=self._goal,
            warm_start=warm_start,
            deadline_ms=DEADLINE_MS,
            min_iterations=1,
            fallback=Fallback(controller=name),
        )

    async def to_json(self) -> dict[str, Any]:
        """What the page shows."""
        shown, response = self.shown, self.shown.response
        if shown.urls_frame is not shown.frame:
            frame = shown.frame
            with suppress(SimulationError):  # the last picture stays
                shown.url = await self._simulation.url_of(frame)
                shown.urls_frame = frame
        plan: dict[str, Any] | None = None
        if response is not None:
            plan = {
                "request_id": response.request_id,
                "status": response.status,
                "health": response.health.status,
                "reasons": list(response.health.reasons),
                "fallback": None if response.fallback is None else vars(response.fallback),
                "cost": response.cost,
                "distance": None if response.distance is None else vars(response.distance),
                "total_ms": round(response.timing_ms.total, 2),
                "waited_ms": round(shown.waited_ms, 2),
            }
        return {
            "number": self.number,
            "environment": self.environment,
            "model": self._model.name,
            "driver": self.driver,
            "ended": self.ended,
            "deadline_ms": DEADLINE_MS,
            "delay_ms": 1000 * NETWORK_DELAY_S,
            "controls": vars(self.controls),
            "frame": shown.url,
            "goal": shown.goal,
            "steps": shown.steps,
            "reached": shown.reached,
            "gave_up": self.is_at_rest and not shown.reached,
            "plan": plan,
            "health": shown.health,
            "fallbacks": shown.fallbacks,
            "problem": shown.problem,
        }


def _jpeg_url(picture: Picture) -> str:
    """A picture that changes often: a JPEG image is made and sent faster than a PNG image."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
