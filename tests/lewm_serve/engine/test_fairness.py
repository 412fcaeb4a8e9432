"""A client that asks for more than its share does not make the plans of others late."""

import math
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.lewm_serve.engine.simulation import SimulatedPlan, Simulation

CLIENTS = 8
ORDINARY: dict[str, Any] = {"samples": 8, "iterations": 5, "frame_count": 1}
PLAN_S = 0.0222
"""Seconds of an ordinary plan."""

LARGE: dict[str, Any] = {"samples": 50, "iterations": 830}
"""Ten seconds, in parts of 12 ms: these are as long, against an ordinary plan, as the server's."""
MEDIUM: dict[str, Any] = {"samples": 50, "iterations": 8}
NINTH_CLIENTS = {
    "a large plan": [LARGE],
    "eight large plans at once": 8 * [LARGE],
    "four medium plans at once": 4 * [MEDIUM],
    "eight ordinary plans at once": 8 * [ORDINARY],
    "large plans that need 100 iterations": [{**LARGE, "min_iterations": 100}],
}
NINTH_START_S, MEASURED_FROM_S, END_S = 0.5, 2.5, 15.0
"""The ninth client's first plans are within its share: the first two seconds are not measured."""
MIN_PAUSE_S = 0.02
"""How long the ninth client waits at least after a refusal, whatever `Retry-After` says."""


class Outcome(NamedTuple):
    """The share of ordinary plans that were complete in time, and the engine's share of work."""

    in_time: float
    p99_s: float
    busy: float


@cache
def simulate(
    load: float,
    *,
    deadline_s: float = math.inf,
    ninth: str | None = None,
    ninth_deadline_s: float = math.inf,
) -> Outcome:
    """Eight ordinary clients, and perhaps a ninth that sends plans one after another.

    Args:
        load: the share of the time that the ordinary plans take.
        deadline_s: the time that an ordinary plan has.
        ninth: one of `NINTH_CLIENTS`.
        ninth_deadline_s: the time that its plans have.
    """
    simulation, generator = Simulation(searches=False), np.random.default_rng(1)
    ordinary: list[SimulatedPlan] = []

    def send(name: str) -> None:
        client = simulation.admission.client(name)
        ordinary.append(SimulatedPlan(deadline_s=deadline_s, client=client, **ORDINARY))
        simulation.arrive(ordinary[-1])

    def send_again(fields: dict[str, Any]) -> None:
        client = simulation.admission.client("ninth")
        plan = SimulatedPlan(deadline_s=ninth_deadline_s, client=client, **fields)

        def on_answer() -> None:
            pause_s = 0.0
            if not plan.admitted:
                pause_s = max(MIN_PAUSE_S, getattr(plan.answer, "retry_after_s", 0.0))
            simulation.clock.at(simulation.clock.now + pause_s, partial(send_again, fields))

        simulation.arrive(plan, on_answer)

    period_s = CLIENTS * PLAN_S / load
    for number in range(CLIENTS):
        for time_s in np.arange(generator.uniform(0, period_s), END_S, period_s):
            time_s += generator.uniform(0, PLAN_S)
            simulation.clock.at(time_s, partial(send, f"robot {number}"))
    for fields in NINTH_CLIENTS.get(ninth or "", []):
        simulation.clock.at(NINTH_START_S, partial(send_again, fields))
    simulation.run(until=END_S)
    measured = [plan for plan in ordinary if MEASURED_FROM_S <= plan.arrival < END_S - 1]
    assert all(len(plan.answers) == 1 for plan in measured)
    in_time = [plan for plan in measured if plan.completed_in_time]
    latencies = [plan.answered - plan.arrival for plan in in_time]
    return Outcome(
        in_time=len(in_time) / len(measured),
        p99_s=float(np.percentile(latencies, 99)),
        busy=simulation.clock.worked_s / simulation.clock.now,
    )


@pytest.mark.parametrize("ninth", NINTH_CLIENTS)
@pytest.mark.parametrize("deadline_s", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_a_ninth_client_with_the_same_deadlines_makes_nobody_late(
    load: float, deadline_s: float, ninth: str
) -> None:
    alone = simulate(load, deadline_s=deadline_s)
    crowded = simulate(load, deadline_s=deadline_s, ninth=ninth, ninth_deadline_s=deadline_s)
    assert alone.in_time == 1
    assert crowded.in_time >= 0.99
    assert crowded.p99_s <= 2 * alone.p99_s


@pytest.mark.parametrize("ninth", ["a large plan", "four medium plans at once"])
@pytest.mark.parametrize(
    ("deadline_s", "ninth_deadline_s"),
    [(math.inf, math.inf), (math.inf, 1.0), (math.inf, 10.0), (0.5, 10.0), (0.5, math.inf)],
)
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_ninth_client_gets_the_time_that_the_others_leave(
    load: float, deadline_s: float, ninth_deadline_s: float, ninth: str
) -> None:
    alone = simulate(load, deadline_s=deadline_s)
    crowded = simulate(load, deadline_s=deadline_s, ninth=ninth, ninth_deadline_s=ninth_deadline_s)
    assert crowded.in_time >= 0.99
    assert crowded.p99_s <= 2 * alone.p99_s
    assert crowded.busy >= load + 0.8 * (1 - load)


@pytest.mark.parametrize("frame_count", [0, 3])
def test_a_request_beyond_the_share_is_answered_by_its_deadline(frame_count: int) -> None:
    simulation, answers = Simulation(searches=False), []
    large = {**MEDIUM, "iterations": 20, "frame_count": frame_count}

    def send(name: str) -> None:
        client = simulation.admission.client(name)
        simulation.arrive(SimulatedPlan(deadline_s=0.5, client=client, **ORDINARY))

    def send_again() -> None:
        plan = SimulatedPlan(deadline_s=0.3, client=simulation.admission.client("ninth"), **large)

        def on_answer() -> None:
            if plan.admitted:
                answers.append(plan)
            simulation.clock.at(simulation.clock.now + MIN_PAUSE_S, send_again)

        simulation.arrive(plan, on_answer)

    # The others need all of the engine's time.
    for number in range(CLIENTS):
        for time_s in np.arange(number * PLAN_S, 8, CLIENTS * PLAN_S):
            simulation.clock.at(time_s, partial(send, f"robot {number}"))
    simulation.clock.at(NINTH_START_S, send_again)
    simulation.run(until=8)
    assert len(answers) > 5
    assert any(plan.guaranteed_iterations == 0 for plan in answers)
    assert max(plan.answered - plan.deadline for plan in answers) <= 0.02


@pytest.mark.parametrize("clients", [4, 8])
def test_equal_clients_that_leave_enough_time_get_complete_plans(clients: int) -> None:
    """A plan needs a third of the time before its deadline, more than a quarter."""
    plans: list[SimulatedPlan] = []
    plan_s, deadline_s, load = 0.1605, 0.5, 0.6

    def send(simulation: Simulation, name: str) -> None:
        client = simulation.admission.client(name)
        plan = SimulatedPlan(
            deadline_s=deadline_s, samples=56, iterations=12, frame_count=1, client=client
        )
        plans.append(plan)
        simulation.arrive(plan)

    period_s = clients * plan_s / load
    for seed in range(5):
        simulation, generator = Simulation(searches=False), np.random.default_rng(seed)
        for number in range(clients):
            for time_s in np.arange(generator.uniform(0, period_s), 10, period_s):
                simulation.clock.at(time_s, partial(send, simulation, f"robot {number}"))
        simulation.run()
    assert sum(plan.completed_in_time for plan in plans) >= 0.95 * len(plans)
