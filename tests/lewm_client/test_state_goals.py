"""Goals by states and regions to avoid, as a client writes them."""

from typing import Any

import numpy as np
import pytest

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, calls, tensor
from lewm_client.messages import plan_response

LATENT = np.zeros(4, np.float32)


def request_of(goal: Any, **arguments: Any) -> pb.PlanRequest:
    """The message of a plan."""
    with PlannerClient("127.0.0.1:1") as client:
        request = calls.plan(client, [LATENT], goal, **arguments).request
    assert isinstance(request, pb.PlanRequest)
    return request


def test_a_mapping_is_a_goal_by_states() -> None:
    request = request_of({"x": 40, "y": np.float32(120.5)})
    assert request.goal.WhichOneof("source") == "state"
    assert dict(request.goal.state.values) == {"x": 40.0, "y": 120.5}
    assert not request.avoid


def test_boxes_and_discs() -> None:
    box, disc = request_of(
        LATENT,
        avoid=[
            {"state": {"x": [60, 90], "y": (30, 50)}, "weight": 2},
            {"centre": {"x": 75, "y": 40}, "radius": 20},
        ],
    ).avoid
    ranges = {name: (item.low, item.high) for name, item in box.state.ranges.items()}
    assert ranges == {"x": (60.0, 90.0), "y": (30.0, 50.0)}
    assert (box.weight, box.HasField("radius"), box.HasField("centre")) == (2.0, False, False)
    assert (dict(disc.centre.values), disc.radius) == ({"x": 75.0, "y": 40.0}, 20.0)
    assert (disc.HasField("weight"), disc.HasField("state")) == (False, False)


@pytest.mark.parametrize(
    ("goal", "avoid", "message"),
    [
        ({"state": {"x": 40}}, [], "goal: state is a mapping, expected names with numbers"),
        (LATENT, [{"center": {"x": 1}, "radius": 2}], "avoid: got 'center', expected state, or"),
        (LATENT, [{"state": [60, 90]}], "avoid: state: got list, expected a mapping of states"),
        (LATENT, [{"centre": 75, "radius": 2}], "avoid: centre: got int, expected a mapping"),
    ],
)
def test_what_is_no_goal_and_no_region_is_named(goal: Any, avoid: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        request_of(goal, avoid=avoid)


def test_the_states_of_a_plan_are_read() -> None:
    states = pb.PlanStates(start={"x": 1.0}, end={"x": 2.0})
    actions = tensor([[0.0]])
    response = plan_response(pb.PlanResponse(actions=actions, states=states, violations=[0, 3]))
    assert response.states is not None
    assert (response.states.start, response.states.end) == ({"x": 1.0}, {"x": 2.0})
    assert response.violations == (0, 3)
    without = plan_response(pb.PlanResponse(actions=actions))
    assert (without.states, without.violations) == (None, ())
