"""From observations to plan requests, and the names in errors."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lewm_serve.api.fields import parse
from lewm_serve.api.requests import PlanRequest
from lewm_serve.errors import InvalidRequest, ServiceError, UnknownLatent
from lewm_serve.transports.openpi.messages import unpack
from lewm_serve.transports.openpi.observations import (
    FIELDS,
    OBSERVATION,
    in_words_of_observations,
    to_request,
)
from tests.lewm_serve.support.frames import encoded, picture
from tests.lewm_serve.support.openpi import pack

FRAME, GOAL = picture(0, 8), picture(1, 8)
KEYS = [*OBSERVATION, *FIELDS, "observation/latent", "goal/latent_id", "goal/latent", "x", ""]

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS
    | st.binary(max_size=20)
    | arrays.arrays(st.sampled_from(["u1", "<f4", "<i8"]), arrays.array_shapes(max_dims=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


def read(observation: Any, kept_goal: Any = None) -> PlanRequest:
    """The request of an observation."""
    return parse(PlanRequest, to_request(unpack(pack(observation)), kept_goal))


def refusal(observation: Any) -> InvalidRequest:
    """The error of an observation, as the client sees it."""
    with pytest.raises(InvalidRequest) as refused:
        read(observation)
    return in_words_of_observations(refused.value)


def test_one_frame_and_several() -> None:
    one = read({"observation/image": FRAME, "goal/image": GOAL})
    assert [frame.source for frame in one.frames] == ["pixels"]
    assert one.frames[0].pixels is not None
    assert np.array_equal(one.frames[0].pixels, FRAME)
    file = encoded("PNG", 1)
    several = [np.stack([FRAME, GOAL]), [FRAME, GOAL], [FRAME, file]]
    for frames in several:
        request = read({"observation/image": frames, "goal/image": file})
        assert len(request.frames) == 2
        assert request.goal.image == file
    latents = read({"observation/latent": np.zeros((2, 8), "f4"), "goal/latent_id": "a"})
    assert [frame.source for frame in latents.frames] == ["latent", "latent"]
    assert latents.goal.latent_id == "a"


def test_other_fields_are_those_of_a_plan_request() -> None:
    request = read(
        {
            "observation/image": FRAME,
            "goal/image": GOAL,
            "prompt": "go",
            "seed": np.int64(7),
            "deadline_ms": np.float64(50),
            "warm_start": np.ones((5, 2)),
            "solver": {"samples": np.int32(8)},
        }
    )
    assert (request.seed, request.deadline_ms) == (7, 50)
    assert request.warm_start is not None
    assert request.warm_start.shape == (5, 2)
    assert request.solver is not None
    assert request.solver.samples == 8


def test_a_goal_by_states() -> None:
    observation = {
        "observation/image": FRAME,
        "goal/state": {"x": 40, "y": np.float32(120.5)},
        "avoid": [{"centre": {"x": 75.0, "y": 40.0}, "radius": 20.0}],
    }
    request = read(observation)
    assert request.goal.state == {"x": 40.0, "y": 120.5}
    (region,) = request.avoid
    assert (region.centre, region.radius) == ({"x": 75.0, "y": 40.0}, 20.0)
    both = refusal(observation | {"goal/image": GOAL}).errors[0]
    assert (both.field, both.code) == ("goal/image", "conflicting_fields")
    wrong = refusal(observation | {"goal/state": {"x": "40"}}).errors[0]
    assert (wrong.field, wrong.code) == ("goal/state.x", "wrong_type")


def test_the_kept_goal() -> None:
    kept = {"latent_id": "kept"}
    assert read({"observation/image": FRAME}, kept).goal.latent_id == "kept"
    assert read({"observation/image": FRAME, "goal/latent_id": "new"}, kept).goal.latent_id == "new"


def test_the_state_is_for_a_fallback_alone() -> None:
    observation = {"observation/image": FRAME, "goal/image": GOAL, "observation/state": np.ones(4)}
    assert read(observation).fallback.state is None
    assert read(observation | {"fallback": {"controller": "none"}}).fallback.state is None
    given_state = {"controller": "waypoint", "state": np.zeros(4)}
    for fallback, state in (({"controller": "waypoint"}, [1] * 4), (given_state, [0] * 4)):
        found = read(observation | {"fallback": fallback}).fallback.state
        assert found is not None
        assert found.tolist() == state


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"observation/image": None}, "observation/image: received nothing"),
        ({"observation/image": FRAME[0]}, "observation/image: received an array of shape [8, 3]"),
        ({"observation/image": FRAME / 255}, "observation/image: received an array of float64"),
        ({"observation/image": FRAME[:, :, :1]}, "observation/image.shape: received [8, 8, 1]"),
        ({"observation/image": []}, "observation/image: received [], expected at least one frame"),
        ({"observation/latent": np.zeros(3)}, "observation/image: received "),
        ({"goal/image": "goal.png"}, "goal/image: "),
        ({"goal/latent": np.zeros((2, 2, 2))}, "goal/"),
        ({"solver": {"samples": 0}}, "solver.samples: received 0"),
        ({"seed": "7"}, "seed: received '7', expected an integer"),
        ({"frames": [FRAME]}, "observation: received 'frames'"),
    ],
)
def test_errors_name_the_keys_of_the_observation(changes: dict[Any, Any], text: str) -> None:
    problem = refusal({"observation/image": FRAME, "goal/image": GOAL} | changes)
    assert str(problem).startswith(text), problem


def test_an_error_of_another_kind_stays() -> None:
    assert UnknownLatent("goal", "x").detail.startswith("goal: ")


def test_what_is_missing() -> None:
    assert str(refusal({})).startswith("observation/image: received nothing, expected what the")
    assert str(refusal({"observation/image": FRAME})).startswith("goal/image: received nothing")
    assert str(refusal([1])).startswith("observation: received [1], expected a map")


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_any_observation_is_read_or_refused(observation: dict[str, Any]) -> None:
    with suppress(ServiceError):
        read({"observation/image": FRAME, "goal/image": GOAL} | observation)


def test_vectors_beside_images() -> None:
    file = encoded("PNG", 1)
    one = read(
        {
            "observation/image": FRAME,
            "observation/vector": np.array([1.0, 2.0]),
            "goal/image": file,
            "goal/vector": [3, 4],
        }
    )
    vectors = [*(frame.vector for frame in one.frames), one.goal.vector]
    assert [vector.tolist() for vector in vectors if vector is not None] == [[1, 2], [3, 4]]
    for several in (np.array([[1, 2], [3, 4]], "f4"), [[1, 2], [3, 4]], [np.ones(2), None]):
        request = read(
            {
                "observation/image": [FRAME, file],
                "observation/vector": several,
                "goal/image": GOAL,
            }
        )
        expected = [None if row is None else list(row) for row in several]
        found = [None if each.vector is None else each.vector.tolist() for each in request.frames]
        assert found == expected
        assert request.goal.vector is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"observation/vector": np.array([1.0, np.nan])}, "observation/vector[1]: received nan"),
        ({"observation/vector": "1"}, "observation/vector: received '1', expected a list"),
        ({"goal/vector": np.zeros((1, 2))}, "goal/vector: received an array of shape [1, 2]"),
        (
            {"observation/image": [FRAME, FRAME], "observation/vector": [1.0, 2.0]},
            "observation/vector: received [1.0, 2.0], expected a vector for each of 2 frames",
        ),
        (
            {"observation/image": [FRAME, FRAME], "observation/vector": np.zeros((3, 2))},
            "observation/vector: received an array of shape [3, 2], expected a vector for each",
        ),
        (
            {"observation/image": None, "observation/vector": [1.0]},
            "observation/image: received nothing",
        ),
    ],
)
def test_errors_of_vectors_name_them(changes: dict[Any, Any], text: str) -> None:
    problem = refusal({"observation/image": FRAME, "goal/image": GOAL} | changes)
    assert str(problem).startswith(text), problem
