"""What many robots get from one server, simulated: the targets of the engine."""

from functools import partial

import numpy as np
import pytest

from lewm_serve.engine.latency_model import Shape
from tests.lewm_serve.engine.fakes import FRAME_S, pace_of
from tests.lewm_serve.engine.simulation import Ask, Simulation

ITERATIONS, SAMPLES = 6, 96
SHAPE = Shape(2)
PLAN_S = FRAME_S + ITERATIONS * pace_of().estimate(SAMPLES, SHAPE) + pace_of().estimate(1, SHAPE)


def noise(seed: int, spread: float = 0.2) -> list[float]:
    """Factors on the time of each run."""
    return list(np.random.default_rng(seed).uniform(1 - spread, 1 + spread, 997))


@pytest.mark.parametrize("bias", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("seed", [1, 2])
def test_overload_does_not_collapse(seed: int, bias: float) -> None:
    """Poisson arrivals at 3 times capacity, deadlines of 5 plan times, times that scatter by 20 %
    around others than were measured at warm-up."""
    simulation = Simulation()
    simulation.backend.noise = [bias * factor for factor in noise(seed)]
    plan_s = bias * PLAN_S
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(plan_s / 3, 450))
    asks = [
        Ask(deadline_s=5 * plan_s, samples=SAMPLES, iterations=ITERATIONS, frames=1)
        for _ in arrivals
    ]
    for time, ask in zip(arrivals, asks, strict=True):
        simulation.clock.at(float(time), partial(simulation.arrive, ask))
    simulation.run()
    served = sum(ask.in_time for ask in asks)
    admitted = sum(ask.admitted for ask in asks)
    capacity = simulation.clock.now / plan_s
    assert served >= 0.9 * capacity
    assert served >= 0.95 * admitted


def test_closed_loop_clients_get_the_latency_of_a_queue() -> None:
    simulation = Simulation()
    simulation.backend.noise = noise(3)
    clients, end = 8, 200 * PLAN_S
    asks: list[Ask] = []

    def ask_again() -> None:
        if simulation.clock.now < end:
            asks.append(Ask(samples=SAMPLES, iterations=ITERATIONS, frames=1))
            simulation.arrive(asks[-1], ask_again)

    for _ in range(clients):
        ask_again()
    simulation.run()
    latencies = [ask.answered - ask.arrival for ask in asks[clients:]]
    assert all(ask.in_time for ask in asks)
    assert np.mean(latencies) <= 1.1 * clients * PLAN_S
    assert simulation.clock.now <= 1.05 * len(asks) * PLAN_S
