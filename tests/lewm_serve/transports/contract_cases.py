"""The contract, a case a line: what is asked, and what must come back over either protocol."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lewm_serve.solvers import SOLVERS
from tests.lewm_serve.support.frames import (
    ACTION_DIM,
    ACTION_BLOCK,
    LATENT_DIM,
    base64_of,
    encoded,
    image,
    latent,
    pixels,
    rows,
)

Document = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A request and its answer. `only` names the one protocol that can express it."""

    name: str
    method: str
    request: Document
    status: int = 200
    code: str = "ok"
    check: Callable[[Document], bool] = lambda _: True
    only: str | None = None

    def __str__(self) -> str:
        return f"{self.method}-{self.name}"


SOLVER: Document = {"samples": 16, "iterations": 2, "elites": 4}


def plan(**changes: Any) -> Document:
    """A small plan, changed; `...` takes a field away."""
    request = {"frames": [pixels(0)], "goal": pixels(1), "solver": SOLVER, "seed": 7} | changes
    return {name: value for name, value in request.items() if value is not ...}


def predict(**changes: Any) -> Document:
    """A prediction of two steps, changed."""
    request = {"frames": [pixels(0)], "actions": rows(2 * ACTION_BLOCK)} | changes
    return {name: value for name, value in request.items() if value is not ...}


def shape(value: Any) -> tuple[int, ...]:
    """The shape of nested lists."""
    return (len(value), *shape(value[0])) if isinstance(value, list) else ()


def solver(**changes: Any) -> Document:
    """A plan with other solver settings."""
    return plan(solver=SOLVER | changes)


def refused(
    name: str, method: str, request: Document, code: str, status: int = 422, only: str | None = None
) -> Case:
    """A case that ends in an error."""
    return Case(name, method, request, status, code, only=only)


def searched_by(name: str, **changes: Any) -> Document:
    """A plan by another solver than the card's, with settings of its own."""
    return plan(solver={"name": name, "samples": 16, "iterations": 2} | changes)


def given(settings: Document) -> Document:
    """Solver settings without those that gRPC leaves out."""
    return {name: value for name, value in settings.items() if value is not None}


TUNED = {
    "name": "mppi",
    "samples": 16,
    "iterations": 2,
    "horizon": 5,
    "tolerance": 0,
    "temperature": 0.5,
    "deviation": 0.7,
    "noise_exponent": 0,
}


def is_found_by(name: str, document: Document) -> bool:
    """A plan that a solver ended with two iterations, and said what it ran with."""
    shared = {"name", "samples", "iterations", "horizon", "tolerance"}
    return (
        document["status"] == "completed"
        and document["iterations"] == 2
        and math.isfinite(document["cost"])
        and given(document["solver"]).keys() == shared | SOLVERS[name].own.keys()
    )


WAYPOINT: Document = {"controller": "waypoint", "state": [50.0, 50.0, 60.0, 60.0]}


def falls_back(document: Document, controller: str) -> bool:
    """An answer by that controller, since there was no time for a frame to be looked at."""
    return (
        document["status"] == "fallback"
        and document["fallback"] == {"controller": controller, "reason": "deadline"}
        and (document["cost"], document["latent_ids"]) == (None, None)
        and (document["iterations"], document["candidates"]) == (0, 0)
        and document["health"]["status"] == "unknown"
        and document.get("trajectory") is None
    )


def is_whole_plan(document: Document) -> bool:
    """Everything a plan's answer must hold."""
    inside = all(-1 <= value <= 1 for row in document["actions"] for value in row)
    return (
        shape(document["actions"]) == (5 * ACTION_BLOCK, ACTION_DIM)
        and inside
        and document["action_block"] == ACTION_BLOCK
        and math.isfinite(document["cost"])
        and document["status"] == "completed"
        and document["iterations"] == 2
        and document["candidates"] >= 32
        and document["solver"]["name"] == "cem"
        and document["solver"]["samples"] == 16
        and document["seed"] == 7
        and len(document["latent_ids"]["frames"]) == 1
        and document["fallback"] is None
        and document.get("trajectory") is None
        and document["timing_ms"]["total"] > 0
    )


GOOD = [
    Case("pixels", "encode", {"frames": [pixels()]}, check=lambda d: len(d["latents"]) == 1),
    Case("png", "encode", {"frames": [image("PNG")]}),
    Case("jpeg", "encode", {"frames": [image("JPEG")]}),
    Case("other-size", "encode", {"frames": [pixels(0, 100), pixels(0, 33)]}),
    Case(
        "three",
        "encode",
        {"frames": [pixels(1), image("PNG", 2), image("JPEG", 3)]},
        check=lambda d: [len(e["latent"]) for e in d["latents"]] == [LATENT_DIM] * 3,
    ),
    Case(
        "base64",
        "encode",
        {"frames": [pixels()], "encoding": "base64"},
        check=lambda d: len(d["latents"][0]["latent"]) == len(base64_of(bytes(4 * LATENT_DIM))),
        only="rest",
    ),
    Case(
        "health",
        "encode",
        {"frames": [pixels()]},
        check=lambda d: d["health"]["sigreg"] is None and d["health"]["latent_norm"] > 0,
    ),
    Case("actions", "predict", predict(), check=lambda d: shape(d["latents"]) == (2, LATENT_DIM)),
    Case(
        "candidates",
        "predict",
        predict(actions=..., candidates=[rows(2 * ACTION_BLOCK, a) for a in (-0.5, 0.0, 0.5)]),
        check=lambda d: shape(d["latents"]) == (3, 2, LATENT_DIM),
    ),
    Case(
        "history",
        "predict",
        predict(frames=[pixels(0), pixels(1), pixels(2)], past_actions=rows(2 * ACTION_BLOCK)),
    ),
    Case("whole", "plan", plan(), check=is_whole_plan),
    Case("images", "plan", plan(frames=[image("JPEG")], goal=image("PNG", 1))),
    Case("latents", "plan", plan(frames=[latent(0.1)], goal=latent(0.2))),
    Case("history", "plan", plan(frames=[pixels(0), pixels(1)], past_actions=rows(ACTION_BLOCK))),
    Case("no-past", "plan", plan(past_actions=[])),
    Case("nulls", "plan", plan(past_actions=None, deadline_ms=None, priority=None)),
    Case("warm-start", "plan", plan(warm_start=rows(2 * ACTION_BLOCK))),
    Case("horizon-one", "plan", solver(horizon=1), check=lambda d: len(d["actions"]) == ACTION_BLOCK),
    Case("one-elite", "plan", solver(elites=1), check=lambda d: math.isfinite(d["cost"])),
    *(
        Case(f"solver-{name}", "plan", searched_by(name), check=partial(is_found_by, name))
        for name in SOLVERS
    ),
    Case(
        "tuned",
        "plan",
        searched_by("mppi", temperature=0.5, deviation=0.7, noise_exponent=0),
        check=lambda d: given(d["solver"]) == TUNED,
    ),
    Case(
        "converged",
        "plan",
        solver(iterations=50, tolerance=3.0),
        check=lambda d: (d["status"], d["iterations"], d["candidates"]) == ("converged", 1, 17),
    ),
    Case("deadline", "plan", plan(deadline_ms=3_600_000)),
    Case("priority", "plan", plan(priority=9)),
    Case("min-iterations", "plan", plan(min_iterations=2, deadline_ms=3_600_000)),
    Case("random-seed", "plan", plan(seed=...), check=lambda d: d["seed"] >= 0),
    Case("largest-seed", "plan", plan(seed=2**63 - 1), check=lambda d: d["seed"] == 2**63 - 1),
    Case("no-fallback", "plan", plan(fallback={"controller": "none"})),
    Case("unused-fallback", "plan", plan(fallback={"controller": "hold"}), check=is_whole_plan),
    Case(
        "hold-when-it-is-too-late",
        "plan",
        plan(fallback={"controller": "hold"}, deadline_ms=1e-6),
        check=lambda d: (
            falls_back(d, "hold")
            and shape(d["actions"]) == (25, 2)
            and all(value == 0 for row in d["actions"] for value in row)
        ),
    ),
    Case(
        "tail-when-it-is-too-late",
        "plan",
        plan(fallback={"controller": "tail"}, warm_start=rows(7), deadline_ms=1e-6),
        check=lambda d: falls_back(d, "tail") and d["actions"] == rows(7) + rows(18, 0.0),
    ),
    Case(
        "trajectory",
        "plan",
        plan(include=["trajectory"]),
        check=lambda d: shape(d["trajectory"]) == (5, LATENT_DIM),
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
    refused("wide-actions", "predict", predict(actions=[[0.0] * 3] * ACTION_BLOCK), "shape_mismatch"),
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
    refused("past-without-frames", "plan", plan(past_actions=rows(ACTION_BLOCK)), "shape_mismatch"),
    refused(
        "short-past",
        "plan",
        plan(frames=[pixels(0), pixels(1)], past_actions=rows(ACTION_BLOCK - 1)),
        "shape_mismatch",
    ),
    refused("long-warm-start", "plan", plan(warm_start=rows(6 * ACTION_BLOCK)), "shape_mismatch"),
    refused("wide-warm-start", "plan", plan(warm_start=[[0.0] * 3]), "shape_mismatch"),
    refused("nan-warm-start", "plan", plan(warm_start=rows(ACTION_BLOCK, math.nan)), "not_finite"),
    refused("elites", "plan", solver(samples=8, elites=9), "out_of_range"),
    refused("no-samples", "plan", solver(samples=0), "out_of_range"),
    refused("negative-samples", "plan", solver(samples=-1), "out_of_range"),
    refused("many-samples", "plan", solver(samples=1_000_000), "out_of_range"),
    refused("many-iterations", "plan", solver(iterations=1_000_000), "out_of_range"),
    refused("far-horizon", "plan", solver(horizon=1_000_000), "out_of_range"),
    refused("no-elites", "plan", solver(elites=0), "out_of_range"),
    refused("tolerance", "plan", solver(tolerance=-0.1), "out_of_range"),
    refused("nan-tolerance", "plan", solver(tolerance=math.nan), "not_finite"),
    refused("half-sample", "plan", solver(samples=1.5), "wrong_type", only="rest"),
    refused("true-sample", "plan", solver(samples=True), "wrong_type", only="rest"),
    refused("text-sample", "plan", solver(samples="16"), "wrong_type", only="rest"),
    refused("vast-sample", "plan", solver(samples=10**40), "out_of_range", only="rest"),
    refused("solver", "plan", solver(name="oracle"), "unknown_solver"),
    refused("solver-field", "plan", solver(speed=1), "unknown_field"),
    refused("not-its-own", "plan", solver(temperature=1), "conflicting_fields"),
    refused("no-elites-in-mppi", "plan", solver(name="mppi"), "conflicting_fields"),
    refused("momentum", "plan", solver(momentum=1), "out_of_range"),
    refused("negative-momentum", "plan", solver(momentum=-0.1), "out_of_range"),
    refused("no-deviation", "plan", solver(deviation=0), "out_of_range"),
    refused("vast-deviation", "plan", solver(deviation=101), "out_of_range"),
    refused("nan-deviation", "plan", solver(deviation=math.nan), "not_finite"),
    refused("noise-exponent", "plan", searched_by("icem", noise_exponent=11), "out_of_range"),
    refused("no-temperature", "plan", searched_by("mppi", temperature=0), "out_of_range"),
    refused("learning-rate", "plan", searched_by("gradient", learning_rate=0), "out_of_range"),
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
        "bad-frame-in-spite-of-fallback",
        "plan",
        plan(frames=[{"latent": [0.1]}], fallback={"controller": "hold"}),
        "shape_mismatch",
    ),
    refused("unknown-model", "plan", plan(model="m"), "unknown_model", 404),
    refused("unknown-field", "plan", plan(colour=1), "unknown_field"),
    refused("tiny-deadline", "plan", plan(deadline_ms=1e-6), "deadline_exceeded", 504),
]

CASES = [*GOOD, *BAD_FRAMES, *BAD_REQUESTS, *BAD_PLANS]
