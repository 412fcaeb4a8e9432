"""The contract as a table: requests, and what either protocol must answer."""

import math
from dataclasses import dataclass, field

from lewm_serve.solvers import SOLVERS
from tests.lewm_serve.support.frames import (
    ACTION_BLOCK,
    LATENT_DIM,
    base64_of,
    encoded,
    image,
    latent,
    pixels,
)
from tests.lewm_serve.support.requests import (
    HOLD,
    WAYPOINT,
    Document,
    plan,
    plan_by,
    plan_with_solver,
    predict,
    rows,
)


@dataclass(frozen=True)
class Case:
    """A request and its answer.

    Attributes:
        name: a name that is unique for its method.
        method: the endpoint.
        request: the request.
        code: the code of the error, or ``ok``.
        http_status: the HTTP status, from which the gRPC status follows.
        expected: fields that a good answer has. `contract_checks` checks the rest of its content.
        only: the protocol that can express the request, if only one can.
    """

    name: str
    method: str
    request: Document
    code: str = "ok"
    http_status: int = 200
    expected: Document = field(default_factory=dict)
    only: str | None = None

    def __str__(self) -> str:
        return f"{self.method}-{self.name}"


def encode(name: str, *frames: Document, only: str | None = None, **fields: str) -> Case:
    """A good encode request."""
    return Case(name, "encode", {"frames": list(frames), **fields}, only=only)


def with_vector(frame: Document, *vector: float) -> Document:
    """A frame with the robot's states beside it; by default two of them."""
    return frame | {"vector": list(vector or (40.0, 120.5))}


def prediction(name: str, request: Document) -> Case:
    """A good predict request."""
    return Case(name, "predict", request)


def planned(name: str, request: Document, **expected: object) -> Case:
    """A good plan request. Its search is completed unless ``expected`` says otherwise."""
    return Case(name, "plan", request, expected={"status": "completed"} | expected)


def refused(
    name: str,
    method: str,
    request: Document,
    code: str,
    http_status: int = 422,
    only: str | None = None,
) -> Case:
    """A request that ends with an error."""
    return Case(name, method, request, code, http_status, only=only)


GOAL_STATE: Document = {"state": {"x": 40.0, "y": 120.5}}
BOX: Document = {"state": {"x": [60.0, 90.0], "y": [30.0, 50.0]}, "weight": 2.0}
DISC: Document = {"centre": {"x": 75.0, "y": 40.0}, "radius": 20.0}

GOOD = [
    encode("pixels", pixels()),
    encode("png", image("PNG")),
    encode("jpeg", image("JPEG")),
    encode("other-size", pixels(0, 100), pixels(0, 33)),
    encode("three", pixels(1), image("PNG", 2), image("JPEG", 3)),
    encode("latent", latent(0.1)),
    encode("base64", pixels(), only="rest", encoding="base64"),
    prediction("actions", predict()),
    prediction(
        "candidates",
        predict(
            actions=...,
            candidates=[rows(2 * ACTION_BLOCK, value) for value in (-0.5, 0.0, 0.5)],
        ),
    ),
    prediction(
        "history",
        predict(frames=[pixels(0), pixels(1), pixels(2)], past_actions=rows(2 * ACTION_BLOCK)),
    ),
    planned("small", plan()),
    planned("images", plan(frames=[image("JPEG")], goal=image("PNG", 1))),
    planned("latents", plan(frames=[latent(0.1)], goal=latent(0.2))),
    planned("history", plan(frames=[pixels(0), pixels(1)], past_actions=rows(ACTION_BLOCK))),
    planned("empty-past", plan(past_actions=[])),
    planned("nulls", plan(past_actions=None, deadline_ms=None, priority=None)),
    planned("committed", plan(committed_actions=rows(2 * ACTION_BLOCK))),
    planned("nothing-committed", plan(committed_actions=[])),
    planned("warm-start", plan(warm_start=rows(2 * ACTION_BLOCK))),
    planned("horizon-one", plan_with_solver(horizon=1)),
    planned("one-elite", plan_with_solver(elites=1)),
    planned("card-elites-within-samples", plan(solver={"samples": 8, "iterations": 1})),
    *(planned(f"solver-{name}", plan_by(name)) for name in SOLVERS),
    planned("tuned", plan_by("mppi", temperature=0.5, deviation=0.7, noise_exponent=0)),
    planned(
        "converged",
        plan_with_solver(iterations=50, tolerance=3.0),
        status="converged",
        iterations=1,
        candidates=17,
    ),
    planned("deadline", plan(deadline_ms=3_600_000)),
    planned("priority", plan(priority=9)),
    planned("min-iterations", plan(min_iterations=2, deadline_ms=3_600_000)),
    planned("random-seed", plan(seed=...)),
    planned("largest-seed", plan(seed=2**63 - 1)),
    planned("no-fallback", plan(fallback={"controller": "none"})),
    planned("unused-fallback", plan(fallback=HOLD)),
    planned(
        "hold-when-it-is-too-late",
        plan(fallback=HOLD, deadline_ms=1e-6),
        status="fallback",
        actions=rows(25, 0.0),
    ),
    planned(
        "tail-when-it-is-too-late",
        plan(fallback={"controller": "tail"}, warm_start=rows(7), deadline_ms=1e-6),
        status="fallback",
        actions=rows(7) + rows(18, 0.0),
    ),
    planned("trajectory", plan(include=["trajectory"])),
    planned("goal-state", plan(goal=GOAL_STATE)),
    planned("goal-angle", plan(goal={"state": {"angle": 900.0}})),
    *(planned(f"goal-state-{name}", plan_by(name) | {"goal": GOAL_STATE}) for name in SOLVERS),
    planned("goal-state-objective", plan_with_solver(objective="state") | {"goal": GOAL_STATE}),
    planned("avoid", plan(avoid=[BOX, DISC])),
    planned("avoid-on-the-way-to-a-state", plan(goal=GOAL_STATE, avoid=[BOX, DISC])),
    planned("avoid-by-gradients", plan_by("gradient") | {"goal": GOAL_STATE, "avoid": [BOX, DISC]}),
    planned(
        "avoid-everything",
        plan(avoid=[{"state": {"x": [-1e6, 1e6]}}]),
        violations=[0, 1, 2, 3, 4],
    ),
    planned("avoid-what-is-far-away", plan(avoid=[{"state": {"x": [1e6, 2e6]}}]), violations=[]),
    planned("avoid-nothing", plan(avoid=[])),
    planned(
        "states-when-it-is-too-late",
        plan(goal=GOAL_STATE, avoid=[BOX], fallback=HOLD, deadline_ms=1e-6),
        status="fallback",
        actions=rows(25, 0.0),
    ),
]

_PNG = encoded("PNG")
_JPEG = encoded("JPEG")


def _frames(frame: Document) -> Document:
    return {"frames": [frame]}


def _pixels(data: bytes, *size: int) -> Document:
    return _frames({"pixels": {"data": base64_of(data), "shape": list(size)}})


def _image(data: bytes) -> Document:
    return _frames({"image": base64_of(data)})


BAD_FRAMES = [
    refused("no-frames", "encode", {"frames": []}, "shape_mismatch"),
    refused("empty-frame", "encode", _frames({}), "missing_field"),
    refused("too-many", "encode", {"frames": [latent()] * 300}, "out_of_range"),
    refused(
        "two-sources", "encode", _frames(pixels() | latent()), "conflicting_fields", only="rest"
    ),
    refused("not-square", "encode", _frames(pixels(0, 64, 48)), "not_square"),
    refused("image-not-square", "encode", _frames(image("PNG", width=32)), "not_square"),
    refused("short-pixels", "encode", _pixels(b"abc", 64, 64, 3), "shape_mismatch"),
    refused("grey-pixels", "encode", _pixels(bytes(64 * 64), 64, 64, 1), "shape_mismatch"),
    refused("flat-pixels", "encode", _pixels(bytes(12), 12), "shape_mismatch"),
    refused("negative-pixels", "encode", _pixels(bytes(12), -2, -2, 3), "shape_mismatch"),
    refused("no-pixels", "encode", _pixels(b"", 0, 0, 3), "shape_mismatch"),
    refused("huge-shape", "encode", _pixels(b"abc", 2**62, 2**62, 3), "shape_mismatch"),
    refused(
        "large-pixels", "encode", _pixels(bytes(2100**2 * 3), 2100, 2100, 3), "image_too_large"
    ),
    refused("no-image", "encode", _image(b""), "invalid_image"),
    refused("gif", "encode", _image(b"GIF89a" + bytes(30)), "invalid_image"),
    refused("cut-png", "encode", _image(_PNG[: len(_PNG) // 2]), "invalid_image"),
    refused("cut-jpeg", "encode", _image(_JPEG[: len(_JPEG) // 2]), "invalid_image"),
    refused(
        "not-base64", "encode", _frames({"image": "not base64!"}), "invalid_image", only="rest"
    ),
    refused("padding", "encode", _frames({"image": "aGVsbG8"}), "invalid_image", only="rest"),
    refused("wide-latent", "encode", _frames({"latent": [0.0] * 7}), "shape_mismatch"),
    refused("deep-latent", "encode", _frames({"latent": [[0.0]]}), "shape_mismatch"),
    refused("empty-latent", "encode", _frames({"latent": []}), "shape_mismatch"),
    refused("nan-latent", "encode", _frames({"latent": [math.nan] * LATENT_DIM}), "not_finite"),
    refused("inf-latent", "encode", _frames({"latent": [-math.inf] * LATENT_DIM}), "not_finite"),
    refused("huge-latent", "encode", _frames(latent(1e30)), "out_of_range"),
    refused("bool-latent", "encode", _frames({"latent": [True]}), "wrong_type", only="rest"),
    refused("text-latent", "encode", _frames({"latent": ["1"]}), "wrong_type", only="rest"),
    refused("big-integer", "encode", _frames({"latent": [10**60]}), "out_of_range", only="rest"),
    refused("empty-id", "encode", _frames({"latent_id": ""}), "out_of_range"),
    refused("unknown-id", "encode", _frames({"latent_id": "x"}), "unknown_latent", 404),
    refused("frame-field", "encode", _frames(pixels() | {"depth": 1}), "unknown_field"),
    refused("frames-type", "encode", {"frames": "all"}, "wrong_type", only="rest"),
    refused("frame-type", "encode", {"frames": [3]}, "wrong_type", only="rest"),
]

BAD_REQUESTS = [
    refused("no-fields", "encode", {}, "missing_field", only="rest"),
    refused("unknown-field", "encode", {"frames": [pixels()], "colour": 1}, "unknown_field"),
    refused("unknown-model", "encode", {"model": "m", "frames": [pixels()]}, "unknown_model", 404),
    refused("model-type", "encode", {"model": 3, "frames": [pixels()]}, "wrong_type", only="rest"),
    refused(
        "encoding",
        "encode",
        {"frames": [pixels()], "encoding": "hex"},
        "invalid_choice",
        only="rest",
    ),
    refused("no-actions", "predict", predict(actions=...), "missing_field"),
    refused("empty-actions", "predict", predict(actions=[]), "shape_mismatch"),
    refused("both", "predict", predict(candidates=[rows(5)]), "conflicting_fields", only="rest"),
    refused("half-block", "predict", predict(actions=rows(ACTION_BLOCK + 1)), "shape_mismatch"),
    refused(
        "wide-actions", "predict", predict(actions=[[0.0] * 3] * ACTION_BLOCK), "shape_mismatch"
    ),
    refused("flat-actions", "predict", predict(actions=[0.0] * ACTION_BLOCK), "shape_mismatch"),
    refused("nan-actions", "predict", predict(actions=rows(ACTION_BLOCK, math.nan)), "not_finite"),
    refused("inf-actions", "predict", predict(actions=rows(ACTION_BLOCK, math.inf)), "not_finite"),
    refused(
        "ragged-actions",
        "predict",
        predict(actions=[[0.0, 0.0], [0.0]]),
        "shape_mismatch",
        only="rest",
    ),
    refused("many-steps", "predict", predict(actions=rows(51 * ACTION_BLOCK)), "out_of_range"),
    refused(
        "many-candidates",
        "predict",
        predict(actions=..., candidates=[rows(ACTION_BLOCK)] * 4097),
        "out_of_range",
    ),
    refused("no-past", "predict", predict(frames=[pixels(0), pixels(1)]), "missing_field"),
    refused(
        "long-history",
        "predict",
        predict(frames=[latent()] * 4, past_actions=rows(3 * ACTION_BLOCK)),
        "shape_mismatch",
    ),
    refused("unknown-model", "predict", predict(model="m"), "unknown_model", 404),
    refused("unknown-field", "predict", predict(colour=1), "unknown_field"),
]

BAD_PLANS = [
    refused("no-goal", "plan", plan(goal=...), "missing_field"),
    refused("empty-goal", "plan", plan(goal={}), "missing_field"),
    refused("goal-type", "plan", plan(goal=[]), "wrong_type", only="rest"),
    refused("goal-id", "plan", plan(goal={"latent_id": "x"}), "unknown_latent", 404),
    refused(
        "two-goals", "plan", plan(goal=pixels() | GOAL_STATE), "conflicting_fields", only="rest"
    ),
    refused("state-of-a-frame", "plan", plan(frames=[GOAL_STATE]), "unknown_field"),
    refused("no-states", "plan", plan(goal={"state": {}}), "shape_mismatch"),
    refused("unknown-state", "plan", plan(goal={"state": {"z": 1.0}}), "invalid_choice"),
    refused("state-out-of-range", "plan", plan(goal={"state": {"x": 300.0}}), "out_of_range"),
    refused("vast-state", "plan", plan(goal={"state": {"angle": 1e40}}), "out_of_range"),
    refused("nan-state", "plan", plan(goal={"state": {"x": math.nan}}), "not_finite"),
    refused("state-type", "plan", plan(goal={"state": [1.0]}), "wrong_type", only="rest"),
    refused("text-state", "plan", plan(goal={"state": {"x": "1"}}), "wrong_type", only="rest"),
    refused(
        "states-by-the-latent",
        "plan",
        plan_with_solver(objective="latent") | {"goal": GOAL_STATE},
        "conflicting_fields",
    ),
    refused("frame-by-states", "plan", plan_with_solver(objective="state"), "conflicting_fields"),
    refused("avoid-half-a-disc", "plan", plan(avoid=[{"radius": 1.0}]), "missing_field"),
    refused("avoid-box-and-disc", "plan", plan(avoid=[BOX | DISC]), "conflicting_fields"),
    refused("avoid-without-region", "plan", plan(avoid=[{}]), "missing_field"),
    refused("avoid-no-states", "plan", plan(avoid=[{"state": {}}]), "shape_mismatch"),
    refused("avoid-unknown", "plan", plan(avoid=[{"state": {"z": [0.0, 1.0]}}]), "invalid_choice"),
    refused("avoid-backwards", "plan", plan(avoid=[{"state": {"x": [9.0, 1.0]}}]), "out_of_range"),
    refused("avoid-no-radius", "plan", plan(avoid=[DISC | {"radius": 0.0}]), "out_of_range"),
    refused("avoid-no-weight", "plan", plan(avoid=[BOX | {"weight": 0.0}]), "out_of_range"),
    refused("avoid-nan", "plan", plan(avoid=[DISC | {"radius": math.nan}]), "not_finite"),
    refused("avoid-field", "plan", plan(avoid=[BOX | {"colour": 1}]), "unknown_field"),
    refused(
        "avoid-all-angles",
        "plan",
        plan(avoid=[{"state": {"angle": [0.0, 360.0]}}]),
        "out_of_range",
    ),
    refused("avoid-many", "plan", plan(avoid=[BOX] * 33), "out_of_range"),
    refused(
        "avoid-range",
        "plan",
        plan(avoid=[{"state": {"x": [1.0]}}]),
        "shape_mismatch",
        only="rest",
    ),
    refused("past-without-frames", "plan", plan(past_actions=rows(ACTION_BLOCK)), "shape_mismatch"),
    refused(
        "short-past",
        "plan",
        plan(frames=[pixels(0), pixels(1)], past_actions=rows(ACTION_BLOCK - 1)),
        "shape_mismatch",
    ),
    refused("half-committed", "plan", plan(committed_actions=rows(3)), "shape_mismatch"),
    refused(
        "long-committed", "plan", plan(committed_actions=rows(51 * ACTION_BLOCK)), "out_of_range"
    ),
    refused(
        "nan-committed",
        "plan",
        plan(committed_actions=rows(ACTION_BLOCK, math.nan)),
        "not_finite",
    ),
    refused("long-warm-start", "plan", plan(warm_start=rows(6 * ACTION_BLOCK)), "shape_mismatch"),
    refused("wide-warm-start", "plan", plan(warm_start=[[0.0] * 3]), "shape_mismatch"),
    refused("nan-warm-start", "plan", plan(warm_start=rows(ACTION_BLOCK, math.nan)), "not_finite"),
    refused("elites", "plan", plan_with_solver(samples=8, elites=9), "out_of_range"),
    refused("no-samples", "plan", plan_with_solver(samples=0), "out_of_range"),
    refused("negative-samples", "plan", plan_with_solver(samples=-1), "out_of_range"),
    refused("many-samples", "plan", plan_with_solver(samples=1_000_000), "out_of_range"),
    refused("many-iterations", "plan", plan_with_solver(iterations=1_000_000), "out_of_range"),
    refused("far-horizon", "plan", plan_with_solver(horizon=1_000_000), "out_of_range"),
    refused("no-elites", "plan", plan_with_solver(elites=0), "out_of_range"),
    refused("tolerance", "plan", plan_with_solver(tolerance=-0.1), "out_of_range"),
    refused("nan-tolerance", "plan", plan_with_solver(tolerance=math.nan), "not_finite"),
    refused("half-sample", "plan", plan_with_solver(samples=1.5), "wrong_type", only="rest"),
    refused("boolean-sample", "plan", plan_with_solver(samples=True), "wrong_type", only="rest"),
    refused("text-sample", "plan", plan_with_solver(samples="16"), "wrong_type", only="rest"),
    refused("vast-sample", "plan", plan_with_solver(samples=10**40), "out_of_range", only="rest"),
    refused("solver", "plan", plan_with_solver(name="oracle"), "unknown_solver"),
    refused("solver-field", "plan", plan_with_solver(speed=1), "unknown_field"),
    refused("not-its-own", "plan", plan_with_solver(temperature=1), "conflicting_fields"),
    refused("no-elites-in-mppi", "plan", plan_with_solver(name="mppi"), "conflicting_fields"),
    refused("momentum", "plan", plan_with_solver(momentum=1), "out_of_range"),
    refused("negative-momentum", "plan", plan_with_solver(momentum=-0.1), "out_of_range"),
    refused("no-deviation", "plan", plan_with_solver(deviation=0), "out_of_range"),
    refused("vast-deviation", "plan", plan_with_solver(deviation=101), "out_of_range"),
    refused("nan-deviation", "plan", plan_with_solver(deviation=math.nan), "not_finite"),
    refused("noise-exponent", "plan", plan_by("icem", noise_exponent=11), "out_of_range"),
    refused("no-temperature", "plan", plan_by("mppi", temperature=0), "out_of_range"),
    refused("learning-rate", "plan", plan_by("gradient", learning_rate=0), "out_of_range"),
    refused("objective", "plan", plan_with_solver(objective="goal"), "invalid_choice"),
    refused("no-distance", "plan", plan_with_solver(objective="distance"), "out_of_range"),
    refused("seed", "plan", plan(seed=-1), "out_of_range"),
    refused("large-seed", "plan", plan(seed=2**63), "out_of_range", only="rest"),
    refused("half-seed", "plan", plan(seed=0.5), "wrong_type", only="rest"),
    refused("no-deadline", "plan", plan(deadline_ms=0), "out_of_range"),
    refused("past-deadline", "plan", plan(deadline_ms=-5), "out_of_range"),
    refused("nan-deadline", "plan", plan(deadline_ms=math.nan), "not_finite"),
    refused("inf-deadline", "plan", plan(deadline_ms=math.inf), "not_finite"),
    refused("no-min-iterations", "plan", plan(min_iterations=0), "out_of_range"),
    refused("many-min-iterations", "plan", plan(min_iterations=3), "out_of_range"),
    refused("half-iteration", "plan", plan(min_iterations=1.5), "wrong_type", only="rest"),
    refused("high-priority", "plan", plan(priority=10), "out_of_range"),
    refused("negative-priority", "plan", plan(priority=-1), "out_of_range"),
    refused("include", "plan", plan(include=["everything"]), "invalid_choice"),
    refused("fallback", "plan", plan(fallback={"controller": "who"}), "invalid_choice"),
    refused("fallback-of-others", "plan", plan(fallback=WAYPOINT), "invalid_choice"),
    refused("tail-of-nothing", "plan", plan(fallback={"controller": "tail"}), "missing_field"),
    refused(
        "fallback-state-nan",
        "plan",
        plan(fallback=WAYPOINT | {"state": [0.0, math.nan]}),
        "not_finite",
    ),
    refused(
        "bad-frame-with-a-fallback",
        "plan",
        plan(frames=[{"latent": [0.1]}], fallback=HOLD),
        "shape_mismatch",
    ),
    refused("unknown-model", "plan", plan(model="m"), "unknown_model", 404),
    refused("unknown-field", "plan", plan(colour=1), "unknown_field"),
    refused("tiny-deadline", "plan", plan(deadline_ms=1e-6), "deadline_exceeded", 504),
]

VECTORS_FOR_A_MODEL_OF_PIXELS = [
    refused("vector", "encode", _frames(with_vector(pixels())), "invalid_choice"),
    refused("vector", "predict", predict(frames=[with_vector(pixels())]), "invalid_choice"),
    refused("vector", "plan", plan(frames=[with_vector(pixels())]), "invalid_choice"),
    refused("goal-vector", "plan", plan(goal=with_vector(pixels(1))), "invalid_choice"),
    refused(
        "vector-with-a-fallback",
        "plan",
        plan(frames=[with_vector(pixels())], fallback=HOLD),
        "invalid_choice",
    ),
]

CASES = [*GOOD, *BAD_FRAMES, *BAD_REQUESTS, *BAD_PLANS, *VECTORS_FOR_A_MODEL_OF_PIXELS]

VECTOR_CASES = [
    encode("vector", with_vector(pixels())),
    encode("vector-of-a-jpeg", with_vector(image("JPEG"))),
    encode("without-vector", pixels()),
    encode("some-vectors", with_vector(pixels()), pixels(1), with_vector(image("PNG", 2), 1, 2)),
    encode("latent-without-vector", latent(0.1)),
    prediction("vector", predict(frames=[with_vector(pixels())])),
    prediction(
        "vectors",
        predict(
            frames=[with_vector(pixels(value), value, 0.0) for value in range(3)],
            past_actions=rows(2 * ACTION_BLOCK),
        ),
    ),
    planned("vectors", plan(frames=[with_vector(pixels())], goal=with_vector(pixels(1), 90, 9))),
    planned("vector", plan(frames=[with_vector(image("PNG"))])),
    planned("goal-vector", plan(goal=with_vector(image("PNG", 1)))),
    planned("without-vectors", plan()),
    planned(
        "history",
        plan(
            frames=[with_vector(pixels()), with_vector(pixels(1), 41, 120)],
            past_actions=rows(ACTION_BLOCK),
        ),
    ),
    planned(
        "vector-of-the-newest-frame",
        plan(frames=[pixels(0), with_vector(pixels(1))], past_actions=rows(ACTION_BLOCK)),
    ),
    planned("vector-and-goal-state", plan(frames=[with_vector(pixels())], goal=GOAL_STATE)),
    refused("short", "encode", _frames(with_vector(pixels(), 1)), "shape_mismatch"),
    refused("long", "encode", _frames(with_vector(pixels(), 1, 2, 3)), "shape_mismatch"),
    refused("empty", "encode", _frames(pixels() | {"vector": []}), "shape_mismatch"),
    refused("nested", "encode", _frames(pixels() | {"vector": [[1.0, 2.0]]}), "shape_mismatch"),
    refused("nan", "encode", _frames(with_vector(pixels(), math.nan, 1)), "not_finite"),
    refused("infinite", "encode", _frames(with_vector(pixels(), 1, math.inf)), "not_finite"),
    refused("vast", "encode", _frames(with_vector(pixels(), 1, 1e12)), "out_of_range"),
    refused(
        "text",
        "encode",
        _frames(pixels() | {"vector": ["1", "2"]}),
        "wrong_type",
        only="rest",
    ),
    refused(
        "names",
        "encode",
        _frames(pixels() | {"vector": {"x": 1.0, "y": 2.0}}),
        "wrong_type",
        only="rest",
    ),
    refused("latent", "encode", _frames(with_vector(latent())), "conflicting_fields"),
    refused("id", "encode", _frames(with_vector({"latent_id": "0" * 32})), "conflicting_fields"),
    refused("alone", "encode", _frames({"vector": [1.0, 2.0]}), "missing_field"),
    refused("short", "predict", predict(frames=[with_vector(pixels(), 1)]), "shape_mismatch"),
    refused("short", "plan", plan(frames=[with_vector(pixels(), 1)]), "shape_mismatch"),
    refused("long-goal", "plan", plan(goal=with_vector(pixels(), 1, 2, 3)), "shape_mismatch"),
    refused("nan-goal", "plan", plan(goal=with_vector(pixels(), math.nan, 1)), "not_finite"),
    refused(
        "of-the-second-frame",
        "plan",
        plan(frames=[pixels(), with_vector(pixels(1), 1)], past_actions=rows(ACTION_BLOCK)),
        "shape_mismatch",
    ),
    refused("states-and-vector", "plan", plan(goal=with_vector(GOAL_STATE)), "conflicting_fields"),
    refused(
        "short-with-a-fallback",
        "plan",
        plan(frames=[with_vector(pixels(), 1)], fallback=HOLD),
        "shape_mismatch",
    ),
]
"""Vectors beside frames, for a model that takes two states."""
