"""What the engine guarantees under any traffic. Hypothesis makes up the traffic."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from lewm_serve.engine.admission import DeadlinePassed, QueueTooLong
from lewm_serve.engine.jobs import PlanOutcome
from lewm_serve.engine.latency_model import RolloutShape
from tests.lewm_serve.engine.fakes import latency_model
from tests.lewm_serve.engine.simulation import SimulatedPlan, Simulation


class Arrival(NamedTuple):
    """A plan, when it arrives, and after how many seconds its client goes away, if it does."""

    time: float
    plan: SimulatedPlan
    patience_s: float | None


Traffic = Sequence[Arrival]

STEP_S = latency_model().rollout_s(8, RolloutShape(2))

plans = st.builds(
    SimulatedPlan,
    deadline_s=st.one_of(
        st.just(float("inf")), st.floats(0.1, 60).map(lambda steps: steps * STEP_S)
    ),
    priority=st.sampled_from([0, 5, 5, 5, 9]),
    samples=st.sampled_from([1, 8, 8, 30, 300, 1500]),
    iterations=st.integers(1, 6),
    frame_count=st.sampled_from([0, 0, 1, 3]),
)
arrivals = st.builds(
    Arrival,
    st.floats(0, 80).map(lambda steps: steps * STEP_S),
    plans,
    st.one_of(st.none(), st.floats(0, 20).map(lambda steps: steps * STEP_S)),
)
traffics = st.lists(arrivals, min_size=1, max_size=12)
noises = st.sampled_from([[1.0], [0.8, 1.2, 1.0, 1.1, 0.9], [1.0, 1.0, 1.0, 3.0]])

batched_and_not = pytest.mark.parametrize("max_batched_rows", [0, 256])


def simulate_trajectories(
    traffic: Traffic,
    max_batched_rows: int,
    noise: Sequence[float] = (1.0,),
    failing_tags: frozenset[float] = frozenset(),
) -> Simulation:
    """The simulation after all plans have arrived and been answered."""
    simulation = Simulation(max_batched_rows, limit=15)
    simulation.backend.noise = list(noise)
    simulation.backend.failing_tags = failing_tags
    for time, plan, patience_s in traffic:
        simulation.clock.at(time, partial(simulation.arrive, plan))
        if patience_s is not None:
            simulation.clock.at(time + patience_s, partial(simulation.cancel, plan))
    simulation.run()
    return simulation


@batched_and_not
@given(
    traffic=traffics,
    noise=noises,
    failing_tags=st.frozensets(st.integers(1, 12).map(float), max_size=3),
)
def test_every_request_is_answered_once_and_leaves(
    max_batched_rows: int,
    traffic: Traffic,
    noise: list[float],
    failing_tags: frozenset[float],
) -> None:
    simulation = simulate_trajectories(traffic, max_batched_rows, noise, failing_tags)
    assert simulation.scheduler.idle
    assert not simulation.admission
    for tag, plan in simulation.plans.items():
        assert len(plan.answers) == 1
        match plan.answer:
            case PlanOutcome() as outcome:
                assert tag not in failing_tags
                assert 1 <= outcome.iterations <= plan.iterations
                assert outcome.cost is not None
                assert outcome.cost < float("inf")
                if outcome.status == "completed":
                    assert outcome.iterations == plan.iterations
                else:
                    assert (outcome.status, plan.deadline < float("inf")) == ("deadline", True)
            case DeadlinePassed():
                assert plan.deadline < float("inf")
            case QueueTooLong() as refusal:
                assert not plan.admitted
                assert refusal.retry_after_s > 0
            case RuntimeError():
                assert tag in failing_tags
            case other:
                assert other == "cancelled"
        event(type(plan.answer).__name__)


@batched_and_not
@given(traffic=traffics)
def test_answers_leave_by_the_deadline_when_durations_are_as_expected(
    max_batched_rows: int, traffic: Traffic
) -> None:
    for plan in simulate_trajectories(traffic, max_batched_rows).plans.values():
        assert plan.answered <= max(plan.deadline, plan.arrival) + 1e-9


@batched_and_not
@given(traffic=traffics)
def test_admitted_plans_get_their_guaranteed_iterations(
    max_batched_rows: int, traffic: Traffic
) -> None:
    """With equal priorities, when no client goes away and durations are as expected."""
    patient = [Arrival(time, plan, None) for time, plan, _ in traffic]
    for _, plan, _ in patient:
        plan.priority = 5
    for plan in simulate_trajectories(patient, max_batched_rows).plans.values():
        if plan.guaranteed_iterations is not None:
            assert isinstance(plan.answer, PlanOutcome)
            assert plan.answer.iterations >= min(plan.guaranteed_iterations, plan.iterations)


@batched_and_not
@given(traffic=traffics, noise=noises)
def test_a_cancelled_plan_costs_one_step_at_most(
    max_batched_rows: int, traffic: Traffic, noise: list[float]
) -> None:
    simulation = Simulation(max_batched_rows)
    simulation.backend.noise = list(noise)

    def cancel(plan: SimulatedPlan) -> None:
        simulation.cancel(plan)
        tag = next((tag for tag, other in simulation.plans.items() if other is plan), None)
        if tag is not None and plan.answers == ["cancelled"]:
            # The roll-out in progress was recorded before the cancellation.
            rollouts_by_tag[tag] = simulation.backend.rolled_out().count(tag)

    rollouts_by_tag: dict[float, int] = {}
    for time, plan, patience_s in traffic:
        simulation.clock.at(time, partial(simulation.arrive, plan))
        if patience_s is not None:
            simulation.clock.at(time + patience_s, partial(cancel, plan))
    simulation.run()
    for tag, rollouts in rollouts_by_tag.items():
        assert simulation.backend.rolled_out().count(tag) == rollouts


@given(traffic=traffics)
def test_batching_changes_no_plan(traffic: Traffic) -> None:
    """A completed plan depends on its seed alone, whatever else the server does."""

    def relaxed() -> Traffic:
        return [
            Arrival(time, SimulatedPlan(samples=plan.samples, iterations=plan.iterations), None)
            for time, plan, _ in traffic
        ]

    batched, alone = simulate_trajectories(relaxed(), 256), simulate_trajectories(relaxed(), 0)
    for tag, plan in batched.plans.items():
        first, second = plan.answer, alone.plans[tag].answer
        if isinstance(first, PlanOutcome) and isinstance(second, PlanOutcome):
            assert first.actions is not None
            assert second.actions is not None
            assert first.actions.equal(second.actions)
            assert first.cost == second.cost
