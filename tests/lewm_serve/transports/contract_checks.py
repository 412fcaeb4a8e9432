"""The content of a good answer: one check for each endpoint, for the random model.

Each check takes the request and its answer as JSON documents. Fields that gRPC leaves out are None.
"""

import base64
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lewm_models.card import SolverConfig
from lewm_serve.solvers import SOLVERS
from tests.lewm_serve.support.frames import ACTION_BLOCK, ACTION_DIM, LATENT_DIM
from tests.lewm_serve.support.random_model import MODEL_NAME, STATES
from tests.lewm_serve.support.requests import Document

LATENT_ID = re.compile(r"[0-9a-f]{32}")
MODEL_VERSION = re.compile(r"[0-9a-f]{16}")

CARD_SOLVER: Document = {
    "name": "cem",
    "samples": 300,
    "iterations": 30,
    "horizon": 5,
    "tolerance": 0.0,
    "objective": "latent",
}
"""The settings that every solver has, with the values of the random model's card."""

OWN_SETTINGS: dict[str, Document] = {
    "cem": {"elites": 30, "momentum": 0.0, "deviation": 1.0},
    "icem": {"elites": 30, "momentum": 0.1, "deviation": 1.0, "noise_exponent": 2.0},
    "mppi": {"temperature": 0.1, "deviation": 1.0, "noise_exponent": 2.0},
    "random": {"deviation": 1.0, "noise_exponent": 2.0},
    "gradient": {"learning_rate": 0.2, "deviation": 1.0},
}
"""The settings of each solver, with their defaults."""


ANSWER_FIELDS = {"request_id", "model", "model_version", "health", "timing_ms"}
PLAN_FIELDS = ANSWER_FIELDS | {
    "backend",
    "precision",
    "actions",
    "action_block",
    "cost",
    "status",
    "iterations",
    "candidates",
    "solver",
    "seed",
    "latent_ids",
    "fallback",
    "distance",
}


def given(settings: Document | None) -> Document:
    """A document without the fields that are None."""
    return {name: value for name, value in (settings or {}).items() if value is not None}


def resolved_solver(request: Document) -> Document:
    """All settings of a plan's search: those of the request, the card and the solver."""
    requested = given(request.get("solver"))
    settings = CARD_SOLVER | requested
    if "state" in request["goal"]:
        settings["objective"] = "state"
    settings = OWN_SETTINGS[settings["name"]] | settings
    if "elites" in settings:
        settings["elites"] = min(settings["elites"], settings["samples"])
    return settings


def check_encode(request: Document, answer: Document) -> None:
    """One finite latent for each frame, with its id, its norm and whether it was cached."""
    assert answer.keys() == {*ANSWER_FIELDS, "latents"}
    check_common_fields(answer, frames=1)
    assert len(answer["latents"]) == len(request["frames"])
    for item in answer["latents"]:
        latent = item["latent"]
        if request.get("encoding") == "base64":
            latent = np.frombuffer(base64.b64decode(latent), "<f4")
        check_array(latent, (LATENT_DIM,))
        assert item["norm"] == pytest.approx(np.linalg.norm(latent), rel=1e-5)
        assert LATENT_ID.fullmatch(item["latent_id"])
        assert isinstance(item["cached"], bool)
        assert item["norm_zscore"] is None
    norms = [item["norm"] for item in answer["latents"]]
    assert answer["health"]["latent_norm"] == pytest.approx(norms[-1])
    assert (answer["timing_ms"]["queue"], answer["timing_ms"]["solve"]) == (0, 0)


def check_predict(request: Document, answer: Document) -> None:
    """One finite latent for each predicted step, for each candidate if there are candidates."""
    assert answer.keys() == {*ANSWER_FIELDS, "latents"}
    check_common_fields(answer, frames=len(request["frames"]))
    if request.get("candidates") is None:
        shape: tuple[int, ...] = (len(request["actions"]) // ACTION_BLOCK, LATENT_DIM)
    else:
        steps = len(request["candidates"][0]) // ACTION_BLOCK
        shape = (len(request["candidates"]), steps, LATENT_DIM)
    check_array(answer["latents"], shape)
    assert answer["timing_ms"]["solve"] > 0


def check_plan(request: Document, answer: Document) -> None:
    """Actions inside the bounds, with their cost, the settings of the search and latent ids."""
    assert answer.get("distance") is None  # the random model has no learned distance
    assert answer.keys() - {"trajectory", "states", "violations"} == PLAN_FIELDS
    solver = resolved_solver(request)
    check_array(answer["actions"], (solver["horizon"] * ACTION_BLOCK, ACTION_DIM))
    assert np.abs(answer["actions"]).max() <= 1
    assert answer["action_block"] == ACTION_BLOCK
    assert (answer["backend"], answer["precision"]) == ("onnx", "float32")
    assert given(answer["solver"]) == pytest.approx(solver)
    if request.get("seed") is None:
        assert 0 <= answer["seed"] < 2**63
    else:
        assert answer["seed"] == request["seed"]
    if answer["status"] == "fallback":
        check_fallback(request, answer)
    else:
        check_search(request, answer, solver)


def check_search(request: Document, answer: Document, solver: Document) -> None:
    """The part of a plan that a fallback does not have."""
    check_common_fields(answer, frames=len(request["frames"]))
    assert math.isfinite(answer["cost"])
    assert answer["cost"] >= 0
    assert answer["fallback"] is None
    if answer["status"] == "completed":
        settings = SolverConfig(**solver)
        candidates = SOLVERS[solver["name"]].candidates_per_ask(settings)
        assert answer["iterations"] == solver["iterations"]
        assert answer["candidates"] == sum(candidates)
    latent_ids = answer["latent_ids"]
    assert len(latent_ids["frames"]) == len(request["frames"])
    assert all(map(LATENT_ID.fullmatch, latent_ids["frames"]))
    if "state" in request["goal"]:
        assert latent_ids["goal"] == ""
    else:
        assert LATENT_ID.fullmatch(latent_ids["goal"])
    check_states(request, answer, solver["horizon"])
    if "trajectory" in request.get("include", []):
        check_array(answer["trajectory"], (solver["horizon"], LATENT_DIM))
    else:
        assert answer.get("trajectory") is None
    assert answer["timing_ms"]["solve"] > 0


def check_states(request: Document, answer: Document, horizon: int) -> None:
    """The states at both ends of the plan, and the steps inside regions, if the request has any."""
    if "state" not in request["goal"] and not request.get("avoid"):
        assert answer.get("states") is None
        assert not answer.get("violations")
        return
    for end in ("start", "end"):
        states = answer["states"][end]
        assert set(states) == set(STATES.states)
        assert all(map(math.isfinite, states.values()))
        assert abs(states["angle"]) <= 180
    assert set(answer["violations"]) <= set(range(horizon))
    if not request.get("avoid"):
        assert answer["violations"] == []


def check_fallback(request: Document, answer: Document) -> None:
    """The answer of a fallback for which the server had no time to see the frames."""
    check_common_fields(answer, frames=0)
    controller = request["fallback"]["controller"]
    assert answer["fallback"] == {"controller": controller, "reason": "deadline"}
    assert (answer["cost"], answer["latent_ids"], answer.get("trajectory")) == (None, None, None)
    assert answer.get("states") is None
    assert (answer["iterations"], answer["candidates"]) == (0, 0)


def check_common_fields(answer: Document, frames: int) -> None:
    """Model, health and timing. ``frames`` is the number of context frames that were seen."""
    assert answer["model"] == MODEL_NAME
    assert MODEL_VERSION.fullmatch(answer["model_version"])
    health = answer["health"]
    assert health.keys() == {
        "status",
        "latent_norm",
        "latent_norm_zscore",
        "surprise",
        "sigreg",
        "reasons",
        "latent_mahalanobis",
    }
    assert len(health["reasons"]) == 1
    assert (health["latent_norm_zscore"], health["latent_mahalanobis"]) == (None, None)
    assert health["sigreg"] is None or health["sigreg"] >= 0  # once many latents were encoded
    if frames:
        assert health["status"] == "uncalibrated"
        assert math.isfinite(health["latent_norm"])
        assert health["latent_norm"] > 0
    else:
        assert (health["status"], health["latent_norm"]) == ("unknown", None)
    if frames > 1:
        assert math.isfinite(health["surprise"])
        assert health["surprise"] > 0
    else:
        assert health["surprise"] is None
    timing = answer["timing_ms"]
    assert timing.keys() == {"queue", "decode", "encode", "solve", "total"}
    assert min(timing.values()) >= 0
    stages = timing["queue"] + timing["decode"] + timing["encode"] + timing["solve"]
    assert stages <= timing["total"] * (1 + 1e-9)


def check_array(value: Any, shape: tuple[int, ...]) -> None:
    """Nested lists or an array of this shape, all finite."""
    assert np.shape(value) == shape
    assert np.isfinite(value).all()


CHECKS: dict[str, Callable[[Document, Document], None]] = {
    "encode": check_encode,
    "predict": check_predict,
    "plan": check_plan,
}
