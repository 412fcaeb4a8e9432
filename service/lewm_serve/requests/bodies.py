"""The three requests: encode, predict, plan.

What depends on the model (widths, counts, bounds, known solvers, caps) is checked by the planner.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StrictInt,
    model_validator,
)

from lewm_serve.requests.arrays import Candidates, NoRowsIsNone, Rows, Vector, refusal
from lewm_serve.requests.base import RequestModel
from lewm_serve.requests.frames import Frame

MAX_SEED = 2**63 - 1
MAX_COUNT = 2**31 - 1
MAX_FRAMES = 4096  # of one request, whatever the settings say

Name = Annotated[str, Field(strict=True, max_length=256)]
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _count(value: object) -> object:
    """Refuse lists that no server takes before their frames are looked at."""
    if isinstance(value, list) and not value:
        raise refusal("shape_mismatch", "at least one frame", "[]")
    if isinstance(value, list) and len(value) > MAX_FRAMES:
        raise refusal("out_of_range", f"at most {MAX_FRAMES} frames", f"more than {MAX_FRAMES}")
    return value


Frames = Annotated[
    tuple[Frame, ...],
    FailFast(),
    BeforeValidator(_count),
    Field(json_schema_extra={"minItems": 1}),
]
History = Annotated[Frames, Field(description="oldest first, one action block apart")]
PastActions = Annotated[
    Rows | None,
    NoRowsIsNone,
    Field(
        description="the actions run between the frames: (frames − 1) · action_block rows; "
        "required when there are two frames or more"
    ),
]
ModelName = Annotated[Name | None, Field(description="the default model where left out")]

_PIXEL = {"pixels": {"data": "/wAA", "shape": [1, 1, 3]}}


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class EncodeRequest(RequestModel):
    """Frames to turn into latents."""

    model_config = _example(frames=[_PIXEL], encoding="float")

    model: ModelName = None
    frames: Frames
    encoding: Annotated[
        Literal["float", "base64"],
        Field(description="latents as lists, or as base64 of little-endian float32"),
    ] = "float"


class PredictRequest(RequestModel):
    """Frames and the actions to imagine from them: one sequence, or candidates."""

    model_config = _example(frames=[_PIXEL], actions=[[0.5, 0.0]] * 5)

    model: ModelName = None
    frames: History
    past_actions: PastActions = None
    actions: Annotated[Rows | None, Field(description="steps · action_block rows")] = None
    candidates: Annotated[
        Candidates | None, Field(description="N times steps · action_block rows")
    ] = None

    @model_validator(mode="after")
    def _actions_or_candidates(self) -> Self:
        if self.actions is None and self.candidates is None:
            raise refusal("missing_field", "actions or candidates", "neither of them")
        if self.actions is not None and self.candidates is not None:
            raise refusal("conflicting_fields", "either actions or candidates", "both")
        return self


class SolverSettings(RequestModel):
    """Settings of the search; what is left out comes from the model's card."""

    name: Annotated[Name | None, Field(description="cem, icem, mppi, random or gradient")] = None
    samples: Annotated[Count | None, Field(description="candidates an iteration")] = None
    iterations: Count | None = None
    elites: Annotated[
        Count | None, Field(description="cem, icem: candidates kept, at most samples")
    ] = None
    horizon: Annotated[Count | None, Field(description="action blocks to look ahead")] = None
    tolerance: Annotated[
        Annotated[Real, Field(ge=0)] | None,
        Field(
            description="stop once the search looks no further than this in any component, "
            "in deviations of the training actions; 0: no early stop"
        ),
    ] = None
    momentum: Annotated[
        Annotated[Real, Field(ge=0, lt=1)] | None,
        Field(description="cem, icem: share of the old mean and deviation in the new ones"),
    ] = None
    deviation: Annotated[
        Annotated[Real, Field(gt=0, le=100)] | None,
        Field(
            description="how far from its start the search looks at first, in deviations of the "
            "training actions"
        ),
    ] = None
    noise_exponent: Annotated[
        Annotated[Real, Field(ge=0, le=10)] | None,
        Field(
            description="icem, mppi, random: the noise's power falls with frequency to this power; "
            "0 is white, 2 a random walk"
        ),
    ] = None
    temperature: Annotated[
        Annotated[Real, Field(gt=0)] | None,
        Field(
            description="mppi: cost at which a candidate counts 1/e of the best, in mean distances "
            "of the iteration's costs from the best"
        ),
    ] = None
    learning_rate: Annotated[
        Annotated[Real, Field(gt=0, le=100)] | None,
        Field(description="gradient: length of a step, in deviations of the training actions"),
    ] = None

    @model_validator(mode="after")
    def _elites_within_samples(self) -> Self:
        if self.elites is not None and self.samples is not None and self.elites > self.samples:
            expected = f"at most samples, {self.samples}"
            raise refusal("out_of_range", expected, str(self.elites), ".elites")
        return self


class Fallback(RequestModel):
    """Who answers when the planner cannot."""

    controller: Annotated[
        Name, Field(description="none, hold, tail, or one of the model's own")
    ] = "none"
    state: Annotated[Vector | None, Field(description="what the controller needs to know")] = None


class PlanRequest(RequestModel):
    """Where the robot is, and what it should see."""

    model_config = _example(
        frames=[_PIXEL],
        goal={"latent_id": "a07c6be1f05d4c2b93d8e4471c60f2a5"},
        solver={"samples": 128, "iterations": 10, "elites": 16, "horizon": 5},
        seed=7,
        deadline_ms=500,
    )

    model: ModelName = None
    frames: History
    past_actions: PastActions = None
    goal: Frame
    solver: SolverSettings | None = None
    warm_start: Annotated[
        Rows | None,
        NoRowsIsNone,
        Field(description="where to start: up to horizon · action_block rows"),
    ] = None
    seed: Annotated[
        Annotated[StrictInt, Field(ge=0, le=MAX_SEED)] | None,
        Field(description="the same request with the same seed gives the same plan"),
    ] = None
    deadline_ms: Annotated[
        Annotated[Real, Field(gt=0, le=1e9)] | None,
        Field(description="stop with the best plan found this long after arrival"),
    ] = None
    min_iterations: Annotated[
        Count | None,
        Field(
            description="be admitted when at least so many iterations fit before the deadline; "
            "left out: as many as on an idle server"
        ),
    ] = None
    priority: Annotated[StrictInt, Field(ge=0, le=9, description="9 goes first")] = 5
    fallback: Fallback = Fallback()
    include: Annotated[
        tuple[Literal["trajectory"], ...],
        FailFast(),
        Field(max_length=8, description="parts of the answer that are left out otherwise"),
    ] = ()
