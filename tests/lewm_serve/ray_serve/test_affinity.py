"""Each robot has a replica of its own choice."""

from collections import Counter

from lewm_serve.ray_serve.affinity import order_for

REPLICAS = [f"replica-{number}" for number in range(4)]
ROBOTS = [f"robot-{number}" for number in range(2000)]


def first_choices(replicas: list[str]) -> dict[str, str]:
    """The first replica of each robot."""
    return {robot: order_for(robot, replicas)[0] for robot in ROBOTS}


def test_the_order_holds_all_replicas_and_does_not_depend_on_theirs() -> None:
    order = order_for("arm-1", REPLICAS)
    assert sorted(order) == REPLICAS
    assert order_for("arm-1", reversed(REPLICAS)) == order


def test_all_replicas_have_about_as_many_robots() -> None:
    counts = Counter(first_choices(REPLICAS).values())
    assert len(counts) == len(REPLICAS)
    assert all(400 < count < 600 for count in counts.values()), counts


def test_only_the_robots_of_a_replica_that_goes_move() -> None:
    gone = REPLICAS[1]
    before = first_choices(REPLICAS)
    after = first_choices([replica for replica in REPLICAS if replica != gone])
    moved = {robot for robot in ROBOTS if before[robot] != after[robot]}
    assert moved == {robot for robot, replica in before.items() if replica == gone}
    # They move to their second choice, so the others share them.
    assert all(after[robot] == order_for(robot, REPLICAS)[1] for robot in moved)
    assert len({after[robot] for robot in moved}) == len(REPLICAS) - 1
