"""The simulated fleet: what it does with little, full and too much work, and with each policy."""

import itertools

import pytest

from benchmarks.fleet import (
    PLANS_A_GOAL,
    POLICIES,
    WARM_UP_S,
    Costs,
    Policy,
    Result,
    plans_of,
    simulate,
)

COSTS = Costs(
    frame_s=0.01,
    iteration_s=(0.02, 0.02, 0.01),
    protocols_s=0.01,
    horizon=5,
    candidates=(16, 11, 1),
)
"""A plan with a known goal takes 60 ms of the engine, and one with a new goal 70 ms."""

ROBOTS, RATE_HZ, SECONDS = 40, 1.0, 5.0


def result(policy: Policy, load: float, costs: Costs = COSTS) -> Result:
    return simulate(costs, policy, load=load, robots=ROBOTS, rate_hz=RATE_HZ, seconds=SECONDS)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_servers_with_little_work_answer_all_plans_in_time(policy: Policy) -> None:
    found = result(policy, load=0.25)
    assert found.servers == 10
    assert found.load == pytest.approx(0.24)
    assert (found.in_time, found.refused) == (1.0, 0.0)
    assert found.outcomes == {"completed": ROBOTS * RATE_HZ * SECONDS}
    alone_ms = 1000 * (COSTS.engine_s + COSTS.protocols_s)
    assert alone_ms - 1e-6 <= found.p50_ms <= found.p99_ms


def test_a_plan_alone_takes_its_work_and_no_longer() -> None:
    found = simulate(COSTS, Policy("robot"), load=0.01, robots=1, rate_hz=1, seconds=5)
    assert found.p50_ms == pytest.approx(1000 * (COSTS.engine_s + COSTS.protocols_s), abs=1e-6)


def test_servers_with_twice_their_work_refuse_about_half() -> None:
    found = result(Policy("two", redis=True), load=2.0)
    assert found.servers == 1
    assert 0.3 < found.in_time < 0.5
    assert found.in_time + found.refused > 0.95


def test_slow_protocols_limit_a_server_too() -> None:
    slow = Costs(0.01, (0.02,), protocols_s=0.3, horizon=5, candidates=(16,))
    found = result(Policy("robot"), load=0.5, costs=slow)
    assert found.servers == 24
    assert found.p50_ms >= 330 - 1e-6


def test_goals_are_encoded_once_where_a_robot_stays_or_latents_are_shared() -> None:
    frames = {
        str(policy): result(policy, load=0.25).frames_a_plan
        for policy in (Policy("robot"), Policy("random", redis=True), Policy("random"))
    }
    assert frames["robot"] == frames["random, Redis"] < frames["random"] <= 2
    goals = {plan.goal for plan in plans_of(ROBOTS, RATE_HZ, SECONDS)}
    plans = len(plans_of(ROBOTS, RATE_HZ, SECONDS))
    assert frames["robot"] == pytest.approx((plans + len(goals)) / plans)


def test_knowing_the_servers_shortens_the_longest_waits() -> None:
    random, two, all_ = (
        result(Policy(name, redis=True), load=0.75).p99_ms for name in ("random", "two", "all")
    )
    assert all_ <= two < random


def test_robots_plan_at_their_rate_and_change_their_goals() -> None:
    plans = plans_of(3, 2.0, 20.0)
    assert [plan.due for plan in plans] == sorted(plan.due for plan in plans)
    of_one = [plan for plan in plans if plan.robot == 1]
    assert len(of_one) == 42
    gaps = {round(b.due - a.due, 9) for a, b in itertools.pairwise(of_one)}
    assert gaps == {0.5}
    assert all(plan.deadline == pytest.approx(plan.due + 0.5) for plan in of_one)
    assert len({plan.goal for plan in of_one}) in (3, 4)
    assert sum(plan.goal == of_one[25].goal for plan in of_one) <= PLANS_A_GOAL
    assert {plan.counts for plan in of_one if plan.due < WARM_UP_S} == {False}
    assert not {plan.goal for plan in of_one} & {plan.goal for plan in plans if plan.robot == 2}
