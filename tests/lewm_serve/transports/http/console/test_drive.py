"""Driving: what is refused, and that a robot stops when nobody looks."""

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from lewm_models.checkpoint import EMBEDDED_MODEL
from lewm_serve.api.requests import PlanRequest, RequestContext
from lewm_serve.api.responses import ModelDescription, PlanResponse
from lewm_serve.errors import InvalidRequest
from lewm_serve.transports.exchange import RequestRecorder
from lewm_serve.transports.http.console import drive as drive_module
from lewm_serve.transports.http.console.drive import Drive, Simulation, SimulationError
from lewm_serve.transports.http.console.drive_models import check_driver, drivers
from lewm_serve.transports.http.console.pictures import Picture
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.random_model import STATE_INPUT, write_random_model
from tests.lewm_serve.support.running_planner import RunningPlanner, running_planner
from tests.lewm_serve.transports.http.console.conftest import Console
from tests.patience import PATIENCE_S


def test_what_cannot_be_driven_is_named(console: Console) -> None:
    unknown = console.post("api/drive", {"environment": "chess", "model": "two-room"})
    assert unknown.status_code == 422
    assert unknown.json()["errors"][0]["field"] == "environment"
    assert "two-room" in unknown.json()["detail"]
    other = console.post("api/drive", {"environment": "push-t", "model": "two-room"})
    assert other.status_code == 422
    assert "one that can drive push-t: none is served" in other.json()["detail"]
    console.post("api/drive/controls", {"end": True})
    without = console.post("api/drive/controls", {"task": 1})
    assert without.status_code == 422
    assert without.json()["errors"][0]["field"] == "drive"


def test_wrong_controls_are_named(console: Console) -> None:
    start = {"environment": "two-room", "model": "two-room"}
    assert console.post("api/drive", start).status_code == 200
    for document, field in (
        ({"task": 99}, "drive"),
        ({"fault": "rust"}, "drive"),
        ({"x": 2.0, "y": 0.5}, "x"),
        ({"fallback": "pray"}, "fallback"),
    ):
        refused = console.post("api/drive/controls", document)
        assert refused.status_code == 422, document
        assert refused.json()["errors"][0]["field"] == field
    ended = console.post("api/drive/controls", {"end": True}).json()
    assert ended["ended"] == "the driver has ended it"
    assert console.get("drive").json()["drive"]["ended"] == ended["ended"]


def described(name: str, trained_on: str | None, *, actions: int = 2) -> ModelDescription:
    """A served model."""
    provenance = {} if trained_on is None else {"trained_on": trained_on}
    card = {"provenance": provenance, "action_low": [-1.0] * actions}
    return ModelDescription(name, "1", False, "torch", "cpu", "float32", card)


def test_robots_are_driven_by_models_that_were_made_for_them_or_do_not_say() -> None:
    models = [
        described("imported", None),
        described("arm", "push-t"),
        described("large", "a recording", actions=5),
        described("reacher", None),
    ]
    found = drivers(models)
    assert found["two-room"] == ["imported"]
    assert found["push-t"] == ["arm", "imported"]
    assert found["cube"] == ["large"]
    assert found["reacher"] == ["reacher", "imported"]
    check_driver(models, "push-t", "imported")
    with pytest.raises(InvalidRequest, match="arm, imported"):
        check_driver(models, "push-t", "reacher")


class FakeSimulation:
    """A simulation whose robot never arrives."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stopped = False

    async def do(self, **command: Any) -> tuple[dict[str, Any], list[Picture]]:
        """See `Simulation.do`."""
        self.done.append(command["do"])
        if self.stopped:
            raise SimulationError("the simulation has ended")
        about: dict[str, Any] = {"state": [1.0, len(self.done), 0.0], "reached": False}
        if command["do"] not in ("task", "goal"):
            return about, [picture(0)]
        return about | {"goal_state": [7.0, 8.0, 9.0]}, [picture(0), picture(1)]

    async def url_of(self, shown: Picture) -> str:
        """See `Simulation.url_of`."""
        return f"data:{int(np.asarray(shown).sum())}"

    def stop(self) -> None:
        """See `Simulation.stop`."""
        self.stopped = True


def start(
    running: RunningPlanner, simulation: FakeSimulation, model_name: str = "two-room"
) -> Drive:
    """A drive of this simulation."""
    model, _ = running.planner.model_and_folder(model_name)
    return Drive(
        running.planner,
        RequestRecorder(running.metrics),
        simulation=cast(Simulation, simulation),
        about={"name": "fake", "budget": 10, "state_names": ["angle", "y", "x"]},
        goals=[picture(1)],
        model=model,
        context=RequestContext("request-1", "plan", "rest", 0.0, key="driver"),
    )


async def test_an_unexpected_error_ends_a_drive_without_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are in the log: they mean nothing to a driver, and may hold what is not for them."""

    async def fail(*_: object) -> None:
        raise AttributeError("words of the code")

    async with running_planner(EMBEDDED_MODEL) as running:
        monkeypatch.setattr(running.planner, "plan", fail)
        drive = start(running, simulation := FakeSimulation())
        await drive.choose(number=0)
        async with asyncio.timeout(PATIENCE_S):
            while drive.ended is None:
                await asyncio.sleep(0.01)
        assert drive.ended == "an unexpected error; the log of the server says more"
        assert simulation.stopped


async def test_a_robot_drives_while_its_driver_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive_module, "STEP_S", 0.0)
    monkeypatch.setattr(drive_module, "DEADLINE_MS", 1000 * PATIENCE_S)
    simulation = FakeSimulation()
    async with running_planner(EMBEDDED_MODEL) as running:
        drive = start(running, simulation)
        model, _ = running.planner.model_and_folder("two-room")
        drive.controls.fallback = "none"
        await drive.choose(number=0)
        async with asyncio.timeout(PATIENCE_S):
            while drive.shown.steps < 3 * model.card.config.action_block:
                await asyncio.sleep(0.01)
                drive.watch("driver")
        shown = await drive.to_json()
        assert shown["plan"]["status"] == "completed"
        assert shown["goal"] == await simulation.url_of(picture(1))
        assert sum(shown["health"].values()) >= 3
        # Frames of the history come with the actions between them.
        assert len(drive._seen) == model.card.config.history
        async with asyncio.timeout(PATIENCE_S):
            while not drive.is_at_rest:
                await asyncio.sleep(0.01)
                drive.watch("driver")
        given_up = await drive.to_json()
        assert (given_up["gave_up"], given_up["reached"]) == (True, False)
        assert given_up["steps"] == 20  # twice the budget, in whole action blocks
        monkeypatch.setattr(drive_module, "UNWATCHED_S", 0.0)
        drive.watch("somebody else")
        async with asyncio.timeout(PATIENCE_S):
            while drive.ended is None:
                await asyncio.sleep(0.01)
        assert drive.ended == "nobody looked"
        assert simulation.stopped
        assert (
            running.metric("lewm_requests_total", endpoint="plan", protocol="rest", code="ok") >= 3
        )


async def test_a_model_that_takes_states_gets_those_of_the_simulation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(drive_module, "STEP_S", 0.0)
    requests: list[PlanRequest] = []
    folder = write_random_model(tmp_path, "two-room", state_input=STATE_INPUT)
    async with running_planner(folder) as running:
        plan = running.planner.plan

        async def record(request: PlanRequest, context: RequestContext) -> PlanResponse:
            requests.append(request)
            return await plan(request, context)

        monkeypatch.setattr(running.planner, "plan", record)
        monkeypatch.setattr(drive_module, "DEADLINE_MS", 1000 * PATIENCE_S)
        drive = start(running, FakeSimulation())
        drive.controls.fallback = "none"
        await drive.choose(number=0)
        async with asyncio.timeout(PATIENCE_S):
            while len(requests) < 2:
                await asyncio.sleep(0.01)
                drive.watch("driver")
        drive.end("enough")
    for request in requests:
        assert request.goal.vector is not None
        assert request.goal.vector.tolist() == [9, 8]  # x and y
        vectors = [frame.vector for frame in request.frames]
        assert all(vector is not None and vector[0] == 0 for vector in vectors)
    first, second = (request.frames[-1].vector for request in requests[:2])
    assert first is not None
    assert second is not None
    assert second[1] > first[1]  # the state after the steps between
