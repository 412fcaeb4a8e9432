"""The requests that a client may send: encode, predict and plan; and the context of a request.

The request types check what can be known without a model. What depends on the model (widths,
counts, bounds, solvers, the server's limits) is checked in `lewm_serve.planner.validation`.
"""

import binascii
import math
import re
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetPydanticSchema,
    PlainValidator,
    StrictInt,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import core_schema

from lewm_models.card import ObjectiveName
from lewm_serve.api.fields import (
    Candidates,
    FloatArray,
    OptionalRows,
    RequestModel,
    Rows,
    Vector,
    exactly_one_of,
    refusal,
)
from lewm_serve.constants import MAX_FRAMES_PER_REQUEST, MAX_LATENT_VALUE, Endpoint, Protocol
from lewm_serve.errors import shorten

MAX_SEED = 2**63 - 1
MAX_COUNT = 2**31 - 1

FRAME_SOURCES = ("image", "pixels", "latent", "latent_id")
GOAL_SOURCES = (*FRAME_SOURCES, "state")

MAX_STATES = 256
"""The most states that a goal or a region names."""

MAX_REGIONS = 32
MAX_STATE_VALUE = 1e15
"""Squares of states up to this fit in float32."""

PRINTABLE = re.compile(r"[\x20-\x7e]{1,128}")
"""Header values that are safe to repeat in logs and headers."""


@dataclass(frozen=True)
class RequestContext:
    """What a transport knows about a request besides its content.

    Attributes:
        request_id: the client's id of the request, or a new one.
        endpoint: what the request asks for.
        protocol: the transport.
        received: when it was received, a reading of `time.monotonic()` in seconds.
        deadline: the transport's deadline, a reading of the same clock: a gRPC call's deadline,
            less the time that the answer needs to travel. None: there is none.
        traceparent: what the client sent to trace the request.
        robot: the name that the robot gives itself, for logs and traces alone.
        max_answer_values: the most values in the answer to a predict request. None: the transport
            has no such limit.
        client: what tells clients apart: the key, or without keys the address of the other end of
            the connection.
        key: the name of the key that the client presented. None: the server asks for none.
    """

    request_id: str
    endpoint: Endpoint
    protocol: Protocol
    received: float
    deadline: float | None = None
    traceparent: str | None = None
    robot: str | None = None
    max_answer_values: int | None = None
    client: str = ""
    key: str | None = None

    def earliest_deadline(self, deadline_ms: float | None = None) -> float:
        """The transport's deadline or the request's own, whichever is earlier.

        ``deadline_ms`` counts from ``received``. Infinity where there is no deadline.
        """
        of_transport = math.inf if self.deadline is None else self.deadline
        of_request = math.inf if deadline_ms is None else self.received + deadline_ms / 1000
        return min(of_transport, of_request)


def printable_or_none(header: str | None) -> str | None:
    """The header's value if it has 1 to 128 printable ASCII characters, else None."""
    return header if header is not None and PRINTABLE.fullmatch(header) else None


def request_id_from(header: str | None) -> str:
    """The client's own request id, or a new one if it sent none that can be used."""
    return printable_or_none(header) or uuid.uuid4().hex


STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
"""From base64's URL-safe alphabet to the standard one."""

NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=_\-\s]", re.ASCII)


def _decode_base64(value: object) -> bytes:
    """The bytes of a field: as they are over gRPC, from base64 or a data URL in JSON."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise refusal("wrong_type", "a base64 string")
    try:
        return binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
    except ValueError:
        return _decode_unusual_base64(value)


def _decode_unusual_base64(text: str) -> bytes:
    """The bytes of base64 without padding, with line breaks, URL-safe or in a data URL (RFC 2397).

    Most requests have none of these, so they are only tried when the strict form has failed.
    """
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise refusal("invalid_image", "a data URL with base64: data:image/png;base64,…")
        if "%" in text:
            text = unquote(text)
    if unusable := NOT_BASE64.search(text):
        found = shorten(unusable[0])
        expected = f"the bytes in base64, or a data URL; {found} is not in its alphabet"
        raise refusal("invalid_image", expected)
    digits = text.encode("ascii").translate(STANDARD_ALPHABET, b" \t\r\n\v\f").rstrip(b"=")
    try:
        return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4), strict_mode=True)
    except ValueError:
        expected = "base64 of a possible length, with its padding at the end"
        raise refusal("invalid_image", expected) from None


def _not_empty(data: bytes) -> bytes:
    if not data:
        raise refusal("invalid_image", "a PNG or JPEG image", received="nothing")
    return data


def _base64_schema(description: str) -> WithJsonSchema:
    schema = {"type": "string", "format": "byte", "contentEncoding": "base64"}
    return WithJsonSchema(schema | {"description": description})


EncodedImage = Annotated[
    bytes,
    PlainValidator(lambda value: _not_empty(_decode_base64(value))),
    _base64_schema("base64 of a square PNG or JPEG image, or a data URL"),
]
RawBytes = Annotated[
    bytes,
    PlainValidator(_decode_base64),
    _base64_schema("base64 of height × width × 3 bytes, row-major RGB"),
]


def _check_shape_length(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 3:
        raise refusal("shape_mismatch", "[height, width, 3]")
    return value


class Pixels(RequestModel):
    """Raw pixels: ``data`` holds height × width × 3 unsigned bytes, row-major RGB."""

    data: RawBytes
    shape: Annotated[
        tuple[StrictInt, StrictInt, StrictInt],
        BeforeValidator(_check_shape_length),
        Field(description="[height, width, 3]"),
    ]


def _to_pixels(pixels: Pixels) -> NDArray[np.uint8]:
    """The array (height, width, 3) uint8 over the received bytes, without a copy."""
    height, width, channels = pixels.shape
    if height < 1 or width < 1 or channels != 3:
        expected, received = "[height, width, 3], all positive", shorten(pixels.shape)
        raise refusal("shape_mismatch", expected, received=received, at=".shape")
    size = math.prod(pixels.shape)
    if len(pixels.data) != size:
        expected = f"{shorten(size)} bytes, height × width × 3"
        received = f"{len(pixels.data)} bytes"
        raise refusal("shape_mismatch", expected, received=received, at=".data")
    return np.frombuffer(pixels.data, dtype=np.uint8).reshape(pixels.shape)


def _pixels_schema(_source: Any, handler: Any) -> core_schema.CoreSchema:
    return core_schema.no_info_after_validator_function(_to_pixels, handler(Pixels))


PixelArray = Annotated[NDArray[np.uint8], GetPydanticSchema(_pixels_schema)]


class Frame(RequestModel):
    """One frame, given by exactly one of its four sources, perhaps with the robot's states.

    After validation ``image`` is still encoded, ``pixels`` is (height, width, 3) uint8,
    ``latent`` is (latent_dim,) float32, and ``vector`` is (X,) float32.
    """

    model_config = ConfigDict(json_schema_extra=exactly_one_of(*FRAME_SOURCES))
    sources: ClassVar[tuple[str, ...]] = FRAME_SOURCES

    image: EncodedImage | None = None
    pixels: PixelArray | None = None
    latent: Vector | None = None
    latent_id: Annotated[
        str | None,
        Field(
            strict=True,
            min_length=1,
            max_length=128,
            description="the `latent_id` of an earlier response, while it is in the cache",
        ),
    ] = None

    vector: Annotated[
        Vector | None,
        Field(
            description="the robot's states with this image or these pixels, in their units and in "
            "the order of `state_input` on the model's card; left out: the model does without them"
        ),
    ] = None

    @property
    def source(self) -> str:
        """The name of the source that is given."""
        return next(name for name in self.sources if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _exactly_one_source(self) -> Self:
        given = [name for name in self.sources if getattr(self, name) is not None]
        if not given:
            expected = f"one of {', '.join(self.sources)}"
            raise refusal("missing_field", expected, received="none of them")
        if len(given) > 1:
            expected = f"exactly one of {', '.join(self.sources)}"
            raise refusal("conflicting_fields", expected, received=" and ".join(given))
        if self.latent is not None:
            _check_latent(self.latent)
        if self.vector is not None and self.image is None and self.pixels is None:
            expected = "image or pixels with a vector; a latent holds the states already"
            raise refusal("conflicting_fields", expected, received=self.source, at=".vector")
        return self


def _check_latent(latent: FloatArray) -> None:
    largest = float(np.abs(latent).max())
    if largest > MAX_LATENT_VALUE:
        expected = f"numbers within ±{MAX_LATENT_VALUE:g}"
        raise refusal("out_of_range", expected, received=f"{largest:g}", at=".latent")


Name = Annotated[str, Field(strict=True, max_length=256)]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _check_state_count(value: object) -> object:
    if isinstance(value, dict) and not 1 <= len(value) <= MAX_STATES:
        expected = f"1 to {MAX_STATES} states by name"
        raise refusal("shape_mismatch", expected, received=f"{len(value)} states")
    return value


def _check_range(value: object) -> object:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise refusal("shape_mismatch", "[low, high]", received=f"{len(value)} items")
    return value


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    low, high = value
    if not low < high:
        expected = "[low, high] with low below high"
        raise refusal("out_of_range", expected, received=shorten(value))
    return value


StateValue = Annotated[Real, Field(ge=-MAX_STATE_VALUE, le=MAX_STATE_VALUE)]
StateCount = (
    BeforeValidator(_check_state_count),
    Field(json_schema_extra={"minProperties": 1, "maxProperties": MAX_STATES}),
)
States = Annotated[dict[Name, StateValue], *StateCount]
StateRange = Annotated[
    tuple[StateValue, StateValue], BeforeValidator(_check_range), AfterValidator(_check_order)
]


class Goal(Frame):
    """What the robot should see at the end, or some of the states that it should have then."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of(*GOAL_SOURCES))
    sources: ClassVar[tuple[str, ...]] = GOAL_SOURCES

    state: Annotated[
        States | None,
        Field(
            description="some of the states that the model's probe reads, by name, in their units"
        ),
    ] = None


class Region(RequestModel):
    """A region of states to avoid: a box or a disc."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [exactly_one_of("state", "centre"), exactly_one_of("state", "radius")]
        }
    )

    state: Annotated[
        Annotated[dict[Name, StateRange], *StateCount] | None,
        Field(description="a box: [low, high] of each state that it bounds"),
    ] = None
    centre: Annotated[States | None, Field(description="the centre of a disc")] = None
    radius: Annotated[
        Annotated[Real, Field(gt=0, le=MAX_STATE_VALUE)] | None,
        Field(description="the radius of a disc, in the unit of its states"),
    ] = None
    weight: Annotated[
        Annotated[Real, Field(gt=0, le=1e6)],
        Field(description="how much a step inside costs"),
    ] = 10.0

    @model_validator(mode="after")
    def _box_or_disc(self) -> Self:
        given = [name for name in ("state", "centre", "radius") if getattr(self, name) is not None]
        if given not in (["state"], ["centre", "radius"]):
            code = "conflicting_fields" if "state" in given else "missing_field"
            received = " and ".join(given) or "none of them"
            raise refusal(code, "either state, or centre and radius", received=received)
        return self


def _check_frame_count(value: object) -> object:
    """Refuse lists of impossible length before their frames are read."""
    if isinstance(value, list) and not value:
        raise refusal("shape_mismatch", "at least one frame", received="[]")
    if isinstance(value, list) and len(value) > MAX_FRAMES_PER_REQUEST:
        limit = MAX_FRAMES_PER_REQUEST
        raise refusal("out_of_range", f"at most {limit} frames", received=f"more than {limit}")
    return value


Frames = Annotated[
    tuple[Frame, ...],
    FailFast(),
    BeforeValidator(_check_frame_count),
    Field(json_schema_extra={"minItems": 1, "maxItems": MAX_FRAMES_PER_REQUEST}),
]
History = Annotated[Frames, Field(description="oldest first, one action block apart")]
PastActions = Annotated[
    OptionalRows,
    Field(
        description="the actions executed between the frames: (frames − 1) · action_block rows; "
        "required for two or more frames"
    ),
]
ModelName = Annotated[Name | None, Field(description="left out: the default model")]


class EncodeRequest(RequestModel):
    """Frames to turn into latents."""

    model: ModelName = None
    frames: Frames
    encoding: Annotated[
        Literal["float", "base64"],
        Field(description="latents as lists, or as base64 of little-endian float32"),
    ] = "float"


class PredictRequest(RequestModel):
    """Frames, and the actions whose outcome is predicted: one sequence, or candidates."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("actions", "candidates"))

    model: ModelName = None
    frames: History
    past_actions: PastActions = None
    actions: Annotated[Rows | None, Field(description="steps · action_block rows")] = None
    candidates: Annotated[
        Candidates | None, Field(description="sequences of steps · action_block rows")
    ] = None

    @model_validator(mode="after")
    def _actions_or_candidates(self) -> Self:
        if self.actions is None and self.candidates is None:
            raise refusal("missing_field", "actions or candidates", received="neither of them")
        if self.actions is not None and self.candidates is not None:
            raise refusal("conflicting_fields", "either actions or candidates", received="both")
        return self


class SolverSettings(RequestModel):
    """Settings of the search. What is left out comes from the model's card."""

    name: Annotated[Name | None, Field(description="cem, icem, mppi, random or gradient")] = None
    samples: Annotated[Count | None, Field(description="candidates per iteration")] = None
    iterations: Count | None = None
    elites: Annotated[
        Count | None,
        Field(description="cem, icem: how many of the best candidates count, at most samples"),
    ] = None
    horizon: Annotated[Count | None, Field(description="action blocks to plan ahead")] = None
    tolerance: Annotated[
        Annotated[Real, Field(ge=0)] | None,
        Field(
            description="stop when the spread of the search is at most this in every component, "
            "in standard deviations of the training actions; 0: no early stop"
        ),
    ] = None
    momentum: Annotated[
        Annotated[Real, Field(ge=0, lt=1)] | None,
        Field(description="cem, icem: weight of the old mean and deviation in the new ones"),
    ] = None
    deviation: Annotated[
        Annotated[Real, Field(gt=0, le=100)] | None,
        Field(
            description="initial spread of the search, in standard deviations of the training "
            "actions"
        ),
    ] = None
    noise_exponent: Annotated[
        Annotated[Real, Field(ge=0, le=10)] | None,
        Field(
            description="icem, mppi, random: the power of the noise falls as 1 / frequency to this "
            "exponent; 0 is white noise, 2 a random walk"
        ),
    ] = None
    temperature: Annotated[
        Annotated[Real, Field(gt=0)] | None,
        Field(
            description="mppi: cost above the best at which a candidate has 1/e of its weight, in "
            "means of the iteration's costs above the best"
        ),
    ] = None
    learning_rate: Annotated[
        Annotated[Real, Field(gt=0, le=100)] | None,
        Field(description="gradient: step length, in standard deviations of the training actions"),
    ] = None
    objective: Annotated[
        Literal[ObjectiveName, "state"] | None,
        Field(
            description="what a candidate costs: the squared distance of its last latent from the "
            "goal's, or the mean learned distance of its latents from the goal, if the model has "
            "one. A goal by states always has the objective state"
        ),
    ] = None

    @model_validator(mode="after")
    def _elites_within_samples(self) -> Self:
        if self.elites is not None and self.samples is not None and self.elites > self.samples:
            expected = f"at most samples, {self.samples}"
            raise refusal("out_of_range", expected, received=str(self.elites), at=".elites")
        return self


class Fallback(RequestModel):
    """The controller that answers when the planner cannot."""

    controller: Annotated[
        Name, Field(description="none, hold, tail, or a controller of the model")
    ] = "none"
    state: Annotated[Vector | None, Field(description="the state that the controller needs")] = None


def _check_region_count(value: object) -> object:
    """Refuse lists of impossible length before their regions are read."""
    if isinstance(value, list) and len(value) > MAX_REGIONS:
        received = f"more than {MAX_REGIONS}"
        raise refusal("out_of_range", f"at most {MAX_REGIONS} regions", received=received)
    return value


class PlanRequest(RequestModel):
    """What the robot sees now, and what it should see."""

    model: ModelName = None
    frames: History
    past_actions: PastActions = None
    committed_actions: Annotated[
        OptionalRows,
        Field(
            description="the actions that will have been executed when the plan starts, a multiple "
            "of action_block rows; the plan, `warm_start` and a fallback follow them"
        ),
    ] = None
    goal: Goal
    avoid: Annotated[
        tuple[Region, ...],
        FailFast(),
        BeforeValidator(_check_region_count),
        Field(
            description="regions of states that the way should not enter",
            json_schema_extra={"maxItems": MAX_REGIONS},
        ),
    ] = ()
    solver: SolverSettings | None = None
    warm_start: Annotated[
        OptionalRows,
        Field(description="where the search starts: up to horizon · action_block rows of actions"),
    ] = None
    seed: Annotated[
        Annotated[StrictInt, Field(ge=0, le=MAX_SEED)] | None,
        Field(description="the same request with the same seed gives the same plan"),
    ] = None
    deadline_ms: Annotated[
        Annotated[Real, Field(gt=0, le=1e9)] | None,
        Field(description="answer with the best plan so far this long after arrival"),
    ] = None
    min_iterations: Annotated[
        Count | None,
        Field(
            description="admit the plan if at least this many iterations fit before the deadline; "
            "left out: as many as on an idle server"
        ),
    ] = None
    priority: Annotated[StrictInt, Field(ge=0, le=9, description="9 is served first")] = 5
    fallback: Fallback = Fallback()
    include: Annotated[
        tuple[Literal["trajectory"], ...],
        FailFast(),
        Field(max_length=8, description="parts of the answer that are left out by default"),
    ] = ()
