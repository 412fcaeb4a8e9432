"""What the console's pages ask for: plans, robots, the server, and a plan made again."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import FastAPI
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from lewm_models.card import SolverConfig
from lewm_serve.access.keys import INFER, Keys
from lewm_serve.api.fields import RequestModel, refusal
from lewm_serve.api.requests import MAX_SEED, Fallback, PlanRequest, SolverSettings
from lewm_serve.api.responses import ModelDescription
from lewm_serve.errors import UnknownRoute, shorten
from lewm_serve.observability.metrics import Metrics
from lewm_serve.observability.recent_requests import summarise
from lewm_serve.planner.history import PlanRecord
from lewm_serve.planner.planner import Planner
from lewm_serve.registry.registry import VERSION_MARK
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import COMMON_SETTINGS
from lewm_serve.transports.exchange import RequestMemory, check_accepts, exchange_of
from lewm_serve.transports.http.access import CONSOLE_PATH, KEY_OF_REQUEST
from lewm_serve.transports.http.console.data import ConsoleData
from lewm_serve.transports.http.console.drive_models import drivers
from lewm_serve.transports.http.console.requests import answer, check_page, read_document
from lewm_serve.transports.http.console.viewer import Viewer
from lewm_serve.transports.http.console.views import summary_of

API_PATH = f"{CONSOLE_PATH}/api"

MAX_LISTED = 120
"""The most plans in one answer."""

FLEET_EVERY_S = 1.0
"""The robots are counted at most this often, whoever asks."""

FLEET_SERIES = ("lewm_queued_requests", "lewm_cache_requests_total", "lewm_held_bytes")
"""The metrics on the page of the fleet."""

SIZES = ("samples", "iterations", "horizon")
"""The settings of every solver that the form of Replay has."""

GRADIENT_SAMPLES = 16
"""A candidate with its gradients costs as much as 30 without."""

MAX_SEED_DIGITS = len(str(MAX_SEED))


def _to_seed(value: object) -> int:
    """A seed from its digits: JavaScript's numbers are too short for some."""
    digits = value if isinstance(value, str) and value.isascii() and value.isdigit() else ""
    if not digits or len(digits) > MAX_SEED_DIGITS or int(digits) > MAX_SEED:
        raise refusal("out_of_range", f"the digits of a number up to {MAX_SEED}, as a string")
    return int(digits)


class Replay(RequestModel):
    """How to make a plan again. What is left out is as it was."""

    solver: SolverSettings | None = None
    seed: Annotated[int | None, BeforeValidator(_to_seed)] = None


class ConsoleApi:
    """The routes below `/console/api`. Looking needs the role `read`, planning `infer`."""

    def __init__(
        self,
        planner: Planner,
        data: ConsoleData,
        *,
        metrics: Metrics,
        memory: RequestMemory,
        keys: Keys | None,
        version: str,
    ) -> None:
        self._planner, self._data = planner, data
        self._metrics, self._memory, self._keys = metrics, memory, keys
        self._version = version
        self._viewer = Viewer(planner, data.history)
        self._fleet: tuple[float, bytes] = (0.0, b"")
        self._counting = asyncio.Lock()

    def install(self, app: FastAPI) -> None:
        """Add the routes."""

        def add(path: str, endpoint: Callable[..., Any], *methods: str) -> None:
            app.add_route(
                f"{API_PATH}{path}", endpoint, methods=list(methods), include_in_schema=False
            )

        add("/server", self.server, "GET")
        add("/plans", self.plans, "GET")
        add("/plans/{number}", self.plan, "GET")
        add("/plans/{number}/replay", self.replay, "POST")
        add("/fleet", self.fleet, "GET")

    async def server(self, request: Request) -> Response:
        """What the pages need to know first: the models, the solvers, and what the key may do."""
        key = request.scope.get(KEY_OF_REQUEST)
        models: list[ModelDescription] = []
        if self._planner.state not in ("loading", "failed"):
            models = self._planner.describe_models().models
        return answer(
            {
                "version": self._version,
                "state": self._planner.state,
                "key": None if key is None else key.name,
                "may_plan": key is None or bool(INFER & set(key.entry.roles)),
                "needs_key": self._keys is not None,
                "models": [_describe(model) for model in models],
                "drivers": drivers(models),
            }
        )

    async def plans(self, request: Request) -> Response:
        """The newest plans after a number, the oldest first; or the one with a request id."""
        history = self._data.history
        if (request_id := request.query_params.get("request_id")) is not None:
            found = history.find(request_id)
            if found is None:
                raise UnknownRoute(f"no plan with the request id {shorten(request_id)} is kept")
            records = [found]
        else:
            after = _number(request.query_params.get("after", "")) or 0
            records = list(history.after(after, MAX_LISTED))
        return answer(
            {"newest": history.newest, "plans": [summary_of(record) for record in records]}
        )

    async def plan(self, request: Request) -> Response:
        """All of one plan."""
        return answer(await self._viewer.view(self._record(request)))

    async def replay(self, request: Request) -> Response:
        """Make a plan again, with its seed and other settings if the body has some."""
        check_page(request)
        check_accepts(self._planner)
        record = self._record(request)
        wanted = await read_document(request, Replay, self._memory)
        request_id = uuid.uuid4().hex
        exchange = exchange_of(request.scope)
        exchange.model = record.response.model
        context = replace(exchange.context, request_id=request_id)
        self._data.history.expect(request_id, record.number)
        try:
            exchange.response = await self._planner.plan(_repetition(record, wanted), context)
        finally:
            self._data.history.forget(request_id)
        repeated = self._data.history.find(request_id)
        assert repeated is not None  # the newest plan is kept
        return answer({"number": repeated.number})

    async def fleet(self, _request: Request) -> Response:
        """The robots of the last minutes, the queue and the cache."""
        counted_at = self._fleet[0]
        if time.monotonic() - counted_at >= FLEET_EVERY_S:
            async with self._counting:
                if self._fleet[0] == counted_at:  # nobody else has counted meanwhile
                    newest = self._data.recent.newest()
                    robots = await asyncio.to_thread(summarise, newest)
                    counted = orjson.dumps(robots | {"server": self._gauges()})
                    self._fleet = time.monotonic(), counted
        return answer(self._fleet[1])

    def _gauges(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for family in self._metrics.registry.restricted_registry(FLEET_SERIES).collect():
            for sample in family.samples:
                name = ":".join((sample.name.removeprefix("lewm_"), *sample.labels.values()))
                found[name] = sample.value
        return found

    def _record(self, request: Request) -> PlanRecord:
        number = _number(text := request.path_params["number"])
        record = None if number is None else self._data.history.get(number)
        if record is None:
            raise UnknownRoute(f"no plan of the number {shorten(text)} is kept")
        return record


def _describe(model: ModelDescription) -> dict[str, Any]:
    """What the pages need to know of a model."""
    card = model.card
    return {
        "name": model.name,
        "version": model.version,
        "default": model.default,
        "backend": model.backend,
        "device": model.device,
        "card_solver": card["solver"]["name"],
        "solvers": {name: _usual_settings(card["solver"], name) for name in SOLVERS},
        "parts": [
            part
            for part in ("calibration", "distance", "probe", "decoder")
            if card.get(part) is not None
        ],
    }


def _usual_settings(of_card: Mapping[str, Any], name: str) -> dict[str, int]:
    """The settings that a form begins with when this solver is chosen.

    They are those of the model's card for its own solver. For another one, the card has the
    horizon only, and the rest is what the solver has in general.
    """
    settings = dict(of_card)
    if name != of_card["name"]:
        general = SolverConfig()
        settings |= {"iterations": general.iterations, "elites": general.elites}
        settings["samples"] = GRADIENT_SAMPLES if name == "gradient" else general.samples
    has_elites = "elites" in SOLVERS[name].own_settings
    return {field: settings[field] for field in (*SIZES, *(["elites"] if has_elites else []))}


def _number(text: str) -> int | None:
    """The number that some digits are; None for other texts."""
    return int(text) if text.isdecimal() and len(text) <= MAX_SEED_DIGITS else None


def _repetition(record: PlanRecord, wanted: Replay) -> PlanRequest:
    """The request of a plan with other settings. It waits for all other work, and takes the time
    that it needs.

    Settings that belong to another solver than the new one are left out.
    """
    settings = {} if record.request.solver is None else record.request.solver.model_dump()
    changes = {} if wanted.solver is None else wanted.solver.model_dump(exclude_none=True)
    if changes.get("name", record.response.solver["name"]) != record.response.solver["name"]:
        settings = {name: settings[name] for name in COMMON_SETTINGS if name in settings}
    elites, samples = settings.get("elites"), changes.get("samples")
    if elites is not None and samples is not None and "elites" not in changes:
        settings["elites"] = min(elites, samples)
    seed = record.response.seed if wanted.seed is None else wanted.seed
    return record.request.model_copy(
        update={
            "model": f"{record.response.model}{VERSION_MARK}{record.response.model_version}",
            "solver": SolverSettings(**settings | changes),
            "seed": seed,
            "deadline_ms": None,
            "min_iterations": None,
            "priority": 0,
            "fallback": Fallback(),
        }
    )
