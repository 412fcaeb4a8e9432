"""A client with large plans does not make those of the others late."""

import math
from functools import partial

import numpy as np
import pytest

from lewm_serve.engine.queued_request import Client
from tests.lewm_serve.engine.simulation import SimulatedPlan, Simulation

CLIENTS = 8
PLAN_S = 0.0222
"""Seconds of an ordinary plan."""
END_S = 15.0


def latencies(load: float, *, crowded: bool) -> tuple[list[float], int]:
    """The latencies of ordinary plans, and the iterations of the large ones.

    Args:
        load: the share of the time that ordinary plans take.
        crowded: whether a ninth client sends plans of 200 iterations, one after another.
    """
    simulation, generator = Simulation(), np.random.default_rng(1)
    clients = [Client(simulation.clock) for _ in range(CLIENTS + 1)]
    ordinary: list[SimulatedPlan] = []

    def send(client: Client) -> None:
        ordinary.append(SimulatedPlan(samples=8, iterations=5, frame_count=1, client=client))
        simulation.arrive(ordinary[-1])

    def send_large() -> None:
        plan = SimulatedPlan(samples=50, iterations=200, client=clients[-1])
        simulation.arrive(plan, partial(simulation.clock.at, simulation.clock.now, send_large))

    period_s = CLIENTS * PLAN_S / load
    for client in clients[:CLIENTS]:
        for time_s in np.arange(generator.uniform(0, period_s), END_S, period_s):
            simulation.clock.at(time_s + generator.uniform(0, PLAN_S), partial(send, client))
    if crowded:
        simulation.clock.at(0.0, send_large)
    simulation.run(until=END_S)
    answered = [plan.answered - plan.arrival for plan in ordinary if plan.answers]
    assert len(answered) >= len(ordinary) - CLIENTS
    assert not any(math.isnan(seconds) for seconds in answered)
    return answered, sum(samples >= 50 for _, samples in simulation.backend.shapes)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_client_with_large_plans_gets_the_time_that_the_others_leave(load: float) -> None:
    alone, _ = latencies(load, crowded=False)
    crowded, large_iterations = latencies(load, crowded=True)
    assert np.percentile(crowded, 99) <= 2 * np.percentile(alone, 99)
    assert large_iterations * 0.012 >= 0.7 * (1 - load) * END_S
