"""What many robots get from one server, simulated: the targets of the engine."""

from functools import partial

import numpy as np
import pytest

from lewm_serve.engine.latency_model import RolloutShape
from tests.lewm_serve.engine.fakes import FRAME_S, latency_model
from tests.lewm_serve.engine.simulation import SimulatedPlan, Simulation

ITERATIONS, SAMPLES = 6, 96
SEARCH_S = ITERATIONS * latency_model().rollout_s(SAMPLES, RolloutShape(2))
FINAL_MEAN_S = latency_model().rollout_s(1, RolloutShape(2))
PLAN_S = FRAME_S + SEARCH_S + FINAL_MEAN_S


def noise(seed: int, spread: float = 0.2) -> list[float]:
    """Factors on the durations of roll-outs."""
    return list(np.random.default_rng(seed).uniform(1 - spread, 1 + spread, 997))


@pytest.mark.parametrize("bias", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("seed", [1, 2])
def test_throughput_does_not_collapse_under_overload(seed: int, bias: float) -> None:
    """Poisson arrivals at 3 times the capacity, with deadlines of 5 plan durations.

    Durations scatter by 20 % around ``bias`` times those that were measured at the start.
    """
    simulation = Simulation()
    simulation.backend.noise = [bias * factor for factor in noise(seed)]
    plan_s = bias * PLAN_S
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(plan_s / 3, 450))
    plans = [
        SimulatedPlan(deadline_s=5 * plan_s, samples=SAMPLES, iterations=ITERATIONS, frame_count=1)
        for _ in arrivals
    ]
    for time, plan in zip(arrivals, plans, strict=True):
        simulation.clock.at(float(time), partial(simulation.arrive, plan))
    simulation.run()
    in_time = sum(plan.completed_in_time for plan in plans)
    admitted = sum(plan.admitted for plan in plans)
    capacity = simulation.clock.now / plan_s
    assert in_time >= 0.9 * capacity
    assert in_time >= 0.95 * admitted


@pytest.mark.parametrize("clients", [2, 8, 40])
def test_throughput_does_not_collapse_if_all_clients_ask_for_too_much(clients: int) -> None:
    """The mean over three seeds, because which plans meet is a matter of luck."""
    throughputs = [throughput_of_clients_that_ask_for_too_much(clients, seed) for seed in (1, 2, 3)]
    assert np.mean(throughputs) >= 0.6


def throughput_of_clients_that_ask_for_too_much(clients: int, seed: int) -> float:
    """The complete plans in time, of those that the engine could do.

    Poisson arrivals at 3 times the capacity, with deadlines of 5 plan durations.
    """
    simulation, generator = Simulation(searches=False), np.random.default_rng(seed)
    plans: list[SimulatedPlan] = []

    def send(name: str) -> None:
        client = simulation.admission.client(name)
        plans.append(
            SimulatedPlan(
                deadline_s=5 * PLAN_S,
                samples=SAMPLES,
                iterations=ITERATIONS,
                frame_count=1,
                client=client,
            )
        )
        simulation.arrive(plans[-1])

    for time in np.cumsum(generator.exponential(PLAN_S / 3, 450)):
        name = f"client {generator.integers(clients)}"
        simulation.clock.at(float(time), partial(send, name))
    simulation.run()
    in_time = sum(plan.completed_in_time for plan in plans)
    return in_time * PLAN_S / simulation.clock.now


def test_clients_in_closed_loops_get_the_latency_of_a_queue() -> None:
    simulation = Simulation()
    simulation.backend.noise = noise(3)
    clients, end = 8, 200 * PLAN_S
    plans: list[SimulatedPlan] = []

    def send_next() -> None:
        if simulation.clock.now < end:
            plans.append(SimulatedPlan(samples=SAMPLES, iterations=ITERATIONS, frame_count=1))
            simulation.arrive(plans[-1], send_next)

    for _ in range(clients):
        send_next()
    simulation.run()
    latencies = [plan.answered - plan.arrival for plan in plans[clients:]]
    assert all(plan.completed_in_time for plan in plans)
    assert np.mean(latencies) <= 1.1 * clients * PLAN_S
    assert simulation.clock.now <= 1.05 * len(plans) * PLAN_S
