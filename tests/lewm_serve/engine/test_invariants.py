"""Whatever comes, in whatever order: what the engine promises holds. Hypothesis makes the days."""

from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lewm_serve.engine.admission import QueueTooLong
from lewm_serve.engine.jobs import DeadlinePassed, PlanOutcome
from lewm_serve.engine.latency_model import Shape
from tests.lewm_serve.engine.fakes import pace_of
from tests.lewm_serve.engine.simulation import Ask, Simulation

Day = Sequence[tuple[float, Ask, float | None]]
"""When each comes, what it asks for, and after how long it goes away."""

STEP_S = pace_of().estimate(8, Shape(2))

asks = st.builds(
    Ask,
    deadline_s=st.one_of(
        st.just(float("inf")), st.floats(0.1, 60).map(lambda steps: steps * STEP_S)
    ),
    priority=st.sampled_from([0, 5, 5, 5, 9]),
    samples=st.sampled_from([1, 8, 8, 30, 300, 1500]),
    iterations=st.integers(1, 6),
    frames=st.sampled_from([0, 0, 1, 3]),
)
days = st.lists(
    st.tuples(
        st.floats(0, 80).map(lambda steps: steps * STEP_S),
        asks,
        st.one_of(st.none(), st.floats(0, 20).map(lambda steps: steps * STEP_S)),
    ),
    min_size=1,
    max_size=12,
)
noises = st.sampled_from([[1.0], [0.8, 1.2, 1.0, 1.1, 0.9], [1.0, 1.0, 1.0, 3.0]])
derandomised = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)


def live(
    day: Day,
    knee: int,
    noise: list[float],
    poison: frozenset[float] = frozenset(),
) -> Simulation:
    """Let a day's robots come, and some go away after a while; the simulation at its end."""
    simulation = Simulation(knee, limit=15)
    simulation.backend.noise = list(noise)
    simulation.backend.poison = poison
    for time, ask, gone_after in day:
        simulation.clock.at(time, partial(simulation.arrive, ask))
        if gone_after is not None:
            simulation.clock.at(time + gone_after, partial(simulation.cancel, ask))
    simulation.run()
    return simulation


@pytest.mark.parametrize("knee", [0, 256])
@given(day=days, noise=noises, poison=st.frozensets(st.integers(1, 12).map(float), max_size=3))
@derandomised
def test_every_request_is_answered_once_and_leaves(
    knee: int,
    day: Day,
    noise: list[float],
    poison: frozenset[float],
) -> None:
    simulation = live(day, knee, noise, poison)
    assert simulation.scheduler.idle
    assert not simulation.admission
    for tag, ask in simulation.asks.items():
        assert len(ask.answers) == 1
        match ask.outcome:
            case PlanOutcome() as outcome:
                assert tag not in poison
                assert 1 <= outcome.iterations <= ask.iterations
                assert outcome.cost < float("inf")
                if outcome.status == "completed":
                    assert outcome.iterations == ask.iterations
                else:
                    assert (outcome.status, ask.deadline < float("inf")) == ("deadline", True)
            case DeadlinePassed():
                assert ask.deadline < float("inf")
            case QueueTooLong() as refused:
                assert not ask.admitted
                assert refused.retry_after_s > 0
            case RuntimeError():
                assert tag in poison
            case other:
                assert other == "cancelled"
        event(type(ask.outcome).__name__)


@pytest.mark.parametrize("knee", [0, 256])
@given(day=days)
@derandomised
def test_answers_leave_by_the_deadline_when_times_are_as_expected(knee: int, day: Day) -> None:
    simulation = live(day, knee, [1.0])
    for ask in simulation.asks.values():
        assert ask.answered <= max(ask.deadline, ask.arrival) + 1e-9


@pytest.mark.parametrize("knee", [0, 256])
@given(day=days)
@derandomised
def test_the_admitted_get_what_they_were_promised(knee: int, day: Day) -> None:
    """Among equals, with nobody going away, and times as expected."""
    equals = [(time, ask, None) for time, ask, _ in day]
    for _, ask, _ in equals:
        ask.priority = 5
    for ask in live(equals, knee, [1.0]).asks.values():
        if ask.admitted:
            assert isinstance(ask.outcome, PlanOutcome)
            assert ask.outcome.iterations >= min(ask.need or 0, ask.iterations)


@pytest.mark.parametrize("knee", [0, 256])
@given(day=days, noise=noises)
@derandomised
def test_a_cancelled_plan_costs_one_step_at_most(knee: int, day: Day, noise: list[float]) -> None:
    simulation = Simulation(knee)
    simulation.backend.noise = list(noise)
    steps: list[int] = []
    for time, ask, gone_after in day:
        simulation.clock.at(time, partial(simulation.arrive, ask))
        if gone_after is None:
            continue

        def go(ask: Ask = ask) -> None:
            simulation.cancel(ask)
            tag = next((tag for tag, other in simulation.asks.items() if other is ask), None)
            if tag is not None and ask.answers == ["cancelled"]:
                before = simulation.backend.rolled_out().count(tag)
                steps.append(before)
                simulation.clock.at(1e9, lambda: check(tag, before))

        simulation.clock.at(time + gone_after, go)

    def check(tag: float, before: int) -> None:
        # The roll-out under way was logged before the cancellation.
        assert simulation.backend.rolled_out().count(tag) <= before

    simulation.run()


@given(day=days)
@derandomised
def test_packing_changes_no_plan(day: Day) -> None:
    """Whoever is served beside it: a completed plan is that of its seed alone."""
    relaxed = [
        (time, Ask(samples=ask.samples, iterations=ask.iterations), None) for time, ask, _ in day
    ]
    again = [
        (time, Ask(samples=ask.samples, iterations=ask.iterations), None)
        for time, ask, _ in relaxed
    ]
    packed, alone = live(relaxed, 256, [1.0]), live(again, 0, [1.0])
    for tag, ask in packed.asks.items():
        other = alone.asks[tag]
        if isinstance(ask.outcome, PlanOutcome) and isinstance(other.outcome, PlanOutcome):
            assert ask.outcome.actions.equal(other.outcome.actions)
            assert ask.outcome.cost == other.outcome.cost
