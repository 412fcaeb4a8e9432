"""From an observation to a plan request, and from a plan to the answer.

An observation is a map. `OBSERVATION` names its keys; the other fields of a plan request may be
there too, under their own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_serve.api.requests import PlanRequest
from lewm_serve.api.responses import ModelDescription, ModelList, PlanResponse
from lewm_serve.constants import MAX_FRAMES_PER_REQUEST
from lewm_serve.errors import InvalidRequest, Unquoted
from lewm_serve.planner.fallback import NO_FALLBACK

Document = dict[str, Any]

IMAGE, LATENT, LATENT_ID = "image", "latent", "latent_id"
SOURCES = (IMAGE, LATENT, LATENT_ID)
"""How a frame may be given, after ``observation/`` or ``goal/``."""

VECTOR = "vector"
"""What a frame may hold beside its image, after ``observation/`` or ``goal/``."""

GOAL_STATE = "goal/state"

STACK_AXES = {IMAGE: 4, LATENT: 2, VECTOR: 2}
"""How many axes the array of several frames has."""

STATE, PROMPT = "observation/state", "prompt"

OBSERVATION = {
    "observation/image": "what the robot sees: uint8 (height, width, 3), or the bytes of a PNG or "
    "JPEG image; with earlier frames uint8 (frames, height, width, 3) or a list, oldest first",
    "observation/state": "the state for the fallback controller; without one, it is not used",
    "observation/vector": "for a model with a state input: the robot's states beside the image, in "
    "the order of the model's state_input; with earlier frames (frames, states) or a list",
    "goal/image": "what the robot should see, like one frame; left out: the connection's last goal",
    "goal/vector": "for a model with a state input: the states beside goal/image",
    GOAL_STATE: "in place of goal/image: a map of some states that the model's probe reads",
    "prompt": "not used: the goal is an image",
}
"""The keys of an observation."""

FRAME_FIELD = re.compile(
    r"(?P<folder>frames|goal)(?:\[\d+\])?(?:\.(?P<source>pixels|image|latent_id|latent|state|vector))?"
    r"(?P<rest>(?:[.\[].*)?)"
)
"""The name of a field of a frame in a request."""

FIELDS = frozenset(PlanRequest.model_fields) - {"frames", "goal"}


def metadata_of(models: ModelList, version: str) -> Document:
    """What a client gets first: what the server expects, and what each model needs and answers."""
    described = {model.name: _describe(model) for model in models.models}
    default = next((model.name for model in models.models if model.default), None)
    return {
        "server": f"lewm-serve {version}",
        "observation": OBSERVATION,
        "fields": sorted(FIELDS),
        "model": default,
        "models": described,
        **(described[default] if default is not None else {}),
    }


def _describe(model: ModelDescription) -> Document:
    card = model.card
    return {
        "model_version": model.version,
        "image_size": card["image_size"],
        "history": card["history"],
        "action_dim": card["action_dim"],
        "action_block": card["action_block"],
        "action_horizon": card["solver"]["horizon"] * card["action_block"],
        "action_low": card["action_low"],
        "action_high": card["action_high"],
        "controllers": card["controllers"],
        "state_input": card.get("state_input"),
    }


def to_request(observation: object, kept_goal: Document | None) -> Document:
    """The document of a plan request.

    Args:
        observation: what a message holds.
        kept_goal: the goal of the connection, as a frame.

    Raises:
        InvalidRequest: the observation is not a map, has an unknown key, or lacks frame or goal.
    """
    if not isinstance(observation, Mapping):
        expected = "a map of observation/image and goal/image"
        raise InvalidRequest("wrong_type", "observation", received=observation, expected=expected)
    request: Document = {}
    frames: dict[str, Any] = {}
    goal: dict[str, Any] = {}
    for key, value in observation.items():
        if value is None:
            continue
        folder, _, name = key.partition("/") if isinstance(key, str) else ("", "", "")
        if name in (*SOURCES, VECTOR) and folder in ("observation", "goal"):
            (frames if folder == "observation" else goal)[name] = value
        elif key == GOAL_STATE:
            goal["state"] = value
        elif key in FIELDS:
            request[key] = value
        elif key == PROMPT and isinstance(value, str):
            pass
        elif key != STATE:
            raise _unknown_key(key)
    if frames.keys() <= {VECTOR}:
        raise InvalidRequest.missing("observation/image", OBSERVATION["observation/image"])
    request["frames"] = _frames(frames)
    if goal:
        request["goal"] = _one_frame(goal, "goal")
    elif kept_goal is not None:
        request["goal"] = kept_goal
    else:
        raise InvalidRequest.missing("goal/image", "a goal in the connection's first observation")
    _add_state(request, observation.get(STATE))
    return request


def _unknown_key(key: object) -> InvalidRequest:
    name = key if isinstance(key, str) else Unquoted(f"a key of type {type(key).__name__}")
    known = ", ".join([*OBSERVATION, *sorted(FIELDS)])
    return InvalidRequest("unknown_field", "observation", received=name, expected=f"one of {known}")


def _frames(sources: Mapping[str, Any]) -> list[Document]:
    """The frames of an observation, oldest first."""
    given = [source for source in SOURCES if source in sources]
    if len(given) > 1 or not _is_stack(given[0], sources[given[0]]):
        return [_one_frame(sources, "observation")]  # which refuses several
    source, value = given[0], sources[given[0]]
    if len(value) > MAX_FRAMES_PER_REQUEST:
        raise InvalidRequest(
            "out_of_range",
            f"observation/{source}",
            received=f"{len(value)} frames",
            expected=f"at most {MAX_FRAMES_PER_REQUEST}",
        )
    vectors = sources.get(VECTOR, [None] * len(value))
    if not _is_stack(VECTOR, vectors) or len(vectors) != len(value):
        expected = f"a vector for each of {len(value)} frames"
        raise InvalidRequest(
            "shape_mismatch", f"observation/{VECTOR}", received=vectors, expected=expected
        )
    return [
        _one_frame({source: item, VECTOR: vector}, "observation")
        for item, vector in zip(value, vectors, strict=True)
    ]


def _is_stack(key: str, value: Any) -> bool:
    """Whether a value has a part for each of several frames."""
    if isinstance(value, np.ndarray):
        return value.ndim == STACK_AXES.get(key)
    return isinstance(value, list) and (key != VECTOR or not value or not _is_number(value[0]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _one_frame(sources: Mapping[str, Any], folder: str) -> Document:
    """A frame as `lewm_serve.api.requests.Frame` takes it."""
    frame: Document = {}
    for source, value in sources.items():
        if source == IMAGE and isinstance(value, np.ndarray):
            frame["pixels"] = _pixels(value, f"{folder}/{source}")
        else:
            frame[source] = value
    return frame


def _pixels(array: NDArray[Any], field: str) -> Document:
    if array.dtype != np.uint8:
        received = Unquoted(f"an array of {array.dtype}")
        raise InvalidRequest("wrong_type", field, received=received, expected="an array of uint8")
    if array.ndim != 3:
        expected = "an array of shape [height, width, 3]"
        raise InvalidRequest("shape_mismatch", field, received=array, expected=expected)
    return {"data": array.tobytes(), "shape": list(array.shape)}


def _add_state(request: Document, state: object) -> None:
    """Give the state to the fallback controller, unless it has one."""
    fallback = request.get("fallback")
    if state is None or not isinstance(fallback, dict):
        return
    if fallback.get("controller", NO_FALLBACK) != NO_FALLBACK and fallback.get("state") is None:
        request["fallback"] = fallback | {"state": state}


def in_words_of_observations(error: InvalidRequest) -> InvalidRequest:
    """The error with the names that an observation has for the fields of a request."""

    def renamed(field: str) -> str:
        match = FRAME_FIELD.fullmatch(field)
        if match is None:
            return field
        folder = "observation" if match["folder"] == "frames" else "goal"
        source = match["source"] or IMAGE
        return f"{folder}/{IMAGE if source == 'pixels' else source}{match['rest']}"

    problems = [replace(problem, field=renamed(problem.field)) for problem in error.errors]
    return InvalidRequest.of(*problems)


def to_answer(response: PlanResponse, previous_ms: float | None) -> Document:
    """The answer to an observation. `actions` is its only array, unless more was asked for.

    Args:
        response: the plan.
        previous_ms: the time from the arrival of the last observation to its answer.
    """
    answer: Document = _to_maps(response)
    timing = {"infer_ms": response.timing_ms.total}
    if previous_ms is not None:
        timing["prev_total_ms"] = previous_ms
    return answer | {"server_timing": timing}


def _to_maps(value: Any) -> Any:
    """Dataclasses as maps, tuples as lists. What was not asked for is left out."""
    if is_dataclass(value) and not isinstance(value, type):
        items = {item.name: getattr(value, item.name) for item in fields(value)}
        if items.get("trajectory", value) is None:
            del items["trajectory"]
        if items.get("states", value) is None:
            del items["states"], items["violations"]
        return {name: _to_maps(item) for name, item in items.items()}
    if isinstance(value, tuple | list):
        return [_to_maps(item) for item in value]
    return value
