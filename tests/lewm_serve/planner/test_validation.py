"""What a request means for one model: the inputs of a search or prediction, or an error.

Actions of the model here have a mean of (0.25, −0.5), deviations of (0.5, 2) and bounds that are
not symmetric, so that rows, blocks and z-scores cannot be confused.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lewm_models.card import ModelCard, SolverConfig
from lewm_models.config import PRESETS
from lewm_models.random_weights import random_card
from lewm_serve.api.fields import parse
from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.errors import FieldProblem, InvalidRequest
from lewm_serve.planner.validation import (
    BOUND_TOLERANCE,
    PlanInputs,
    PredictInputs,
    validate_encode,
    validate_plan,
    validate_predict,
)
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.settings import Settings
from tests.lewm_serve.support.frames import ACTION_BLOCK, LATENT_DIM, latent
from tests.lewm_serve.support.requests import plan, predict

MEAN, STD = np.array([0.25, -0.5], np.float32), np.array([0.5, 2.0], np.float32)
LOW, HIGH = np.array([-1.0, -3.0], np.float32), np.array([2.0, 5.0], np.float32)
HISTORY = PRESETS["edge"].history
CARD_SOLVER = SolverConfig(
    "cem", samples=20, iterations=3, elites=6, horizon=3, momentum=0.25, objective="latent"
)
HORIZON_ROWS = CARD_SOLVER.horizon * ACTION_BLOCK

SETTINGS = Settings(max_samples=64, max_iterations=8, max_horizon=4, max_candidates=5, max_frames=2)


def model_with(**card_fields: Any) -> LoadedModel:
    """A model of which only the card and the statistics of actions matter."""
    fields: dict[str, Any] = {
        "action_mean": tuple(MEAN.tolist()),
        "action_std": tuple(STD.tolist()),
        "action_low": tuple(LOW.tolist()),
        "action_high": tuple(HIGH.tolist()),
        "solver": CARD_SOLVER,
    }
    card = replace(random_card("random", PRESETS["edge"], {}), **fields | card_fields)
    mean, std, low, high = (
        torch.tensor(values)
        for values in (card.action_mean, card.action_std, card.action_low, card.action_high)
    )
    unused: Any = None
    return LoadedModel(
        card=card,
        version="",
        backend=unused,
        latency=LatencyModel(),
        action_mean=mean,
        action_std=std,
        low=((low - mean) / std).repeat(ACTION_BLOCK),
        high=((high - mean) / std).repeat(ACTION_BLOCK),
    )


MODEL = model_with()


def action_rows(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Different rows inside the bounds, in the environment's units."""
    return np.random.default_rng(seed).uniform(LOW, HIGH, (count, 2)).astype(np.float32)


def zscored_blocks(rows: Any) -> Any:
    """Rows (R, 2) as z-scored blocks (R / 5, 10), computed by NumPy."""
    return ((np.asarray(rows) - MEAN) / STD).reshape(-1, 2 * ACTION_BLOCK)


def plan_inputs(model: LoadedModel = MODEL, **changes: Any) -> PlanInputs:
    """The inputs of a plan. Its frames are latents and its solver is the card's."""
    fields = {"frames": [latent()], "goal": latent(), "solver": ...} | changes
    return validate_plan(model, parse(PlanRequest, plan(**fields)), SETTINGS)


def predict_inputs(settings: Settings = SETTINGS, **changes: Any) -> PredictInputs:
    """The inputs of a prediction from latents."""
    fields = {"frames": [latent()], "actions": action_rows(2 * ACTION_BLOCK)} | changes
    return validate_predict(MODEL, parse(PredictRequest, predict(**fields)), settings)


def problem_of(validate: Callable[..., object], **changes: Any) -> FieldProblem:
    """The one refused field of a request."""
    with pytest.raises(InvalidRequest) as caught:
        validate(**changes)
    (problem,) = caught.value.errors
    assert caught.value.code == problem.code
    assert caught.value.detail == str(problem)
    return problem


def history(frames: int) -> list[dict[str, Any]]:
    return [latent(0.1 * index) for index in range(frames)]


def test_without_a_warm_start_the_search_starts_at_the_mean_action() -> None:
    start = plan_inputs().search_space.start
    assert start.shape == (CARD_SOLVER.horizon, 2 * ACTION_BLOCK)
    assert torch.equal(start, torch.zeros_like(start))
    assert np.array_equal(MODEL.to_rows(start), np.tile(MEAN, (HORIZON_ROWS, 1)))


def test_the_search_space_is_that_of_the_model() -> None:
    space = plan_inputs().search_space
    blocks = zscored_blocks(np.tile(np.stack([LOW, HIGH]), (1, ACTION_BLOCK)).reshape(-1, 2))
    assert space.low.numpy() == pytest.approx(blocks[0])
    assert space.high.numpy() == pytest.approx(blocks[1])
    assert space.action_dim == 2


def test_a_full_warm_start_is_the_start_of_the_search() -> None:
    warm_start = action_rows(HORIZON_ROWS)
    start = plan_inputs(warm_start=warm_start).search_space.start
    assert start.numpy() == pytest.approx(zscored_blocks(warm_start), abs=1e-6)
    assert MODEL.to_rows(start) == pytest.approx(warm_start, abs=1e-6)


@pytest.mark.parametrize("count", [1, ACTION_BLOCK, ACTION_BLOCK + 2, HORIZON_ROWS - 1])
def test_a_short_warm_start_is_followed_by_the_mean_action(count: int) -> None:
    """It may end inside a block, because the last plan is being run."""
    warm_start = action_rows(count)
    start = plan_inputs(warm_start=warm_start).search_space.start
    assert start.shape == (CARD_SOLVER.horizon, 2 * ACTION_BLOCK)
    rows = start.reshape(-1, 2).numpy()
    assert rows[:count] == pytest.approx((warm_start - MEAN) / STD, abs=1e-6)
    assert not rows[count:].any()


def test_the_horizon_of_the_request_limits_the_warm_start() -> None:
    short = {"horizon": 1}
    assert plan_inputs(
        warm_start=action_rows(ACTION_BLOCK), solver=short
    ).search_space.start.shape == (
        1,
        2 * ACTION_BLOCK,
    )
    warm_start = action_rows(ACTION_BLOCK + 1)
    assert problem_of(plan_inputs, warm_start=warm_start, solver=short) == FieldProblem(
        "warm_start", "shape_mismatch", "6 rows", "at most 5 rows: horizon · action_block"
    )


def test_a_warm_start_beyond_the_horizon_is_refused() -> None:
    assert problem_of(plan_inputs, warm_start=action_rows(HORIZON_ROWS + 1)) == FieldProblem(
        "warm_start", "shape_mismatch", "16 rows", "at most 15 rows: horizon · action_block"
    )


def test_a_warm_start_of_another_width_is_refused() -> None:
    assert problem_of(plan_inputs, warm_start=[[0.0] * 3]) == FieldProblem(
        "warm_start", "shape_mismatch", "3 numbers a row", "2 (the model's action_dim)"
    )


@pytest.mark.parametrize(
    ("row", "column", "value", "received", "bounds"),
    [
        (0, 0, 2.5, "2.5", "within [-1, 2], the model's bounds"),
        (3, 1, -3.25, "-3.25", "within [-3, 5], the model's bounds"),
        (
            6,
            1,
            5.5,
            "5.5",
            "within [-3, 5], the model's bounds",
        ),  # the last row of a part of a block
    ],
)
def test_a_warm_start_outside_the_bounds_is_refused_with_its_path(
    row: int, column: int, value: float, received: str, bounds: str
) -> None:
    warm_start = action_rows(7)
    warm_start[row, column] = value
    assert problem_of(plan_inputs, warm_start=warm_start) == FieldProblem(
        f"warm_start[{row}][{column}]", "out_of_range", received, bounds
    )


def test_a_warm_start_that_rounding_put_outside_the_bounds_is_moved_to_the_bound() -> None:
    rounded = np.tile(MEAN, (2, 1))
    rounded[0, 0] = HIGH[0] + 0.5 * BOUND_TOLERANCE * (HIGH - LOW)[0]
    rounded[1, 1] = LOW[1] - 0.5 * BOUND_TOLERANCE * (HIGH - LOW)[1]
    assert rounded[0, 0] > HIGH[0]
    assert rounded[1, 1] < LOW[1]
    space = plan_inputs(warm_start=rounded).search_space
    assert space.start[0, 0] == space.high[0]
    assert space.start[0, 3] == space.low[3]
    rounded[0, 0] = HIGH[0] + 2 * BOUND_TOLERANCE * (HIGH - LOW)[0]
    assert problem_of(plan_inputs, warm_start=rounded).field == "warm_start[0][0]"


def test_a_mean_action_outside_the_bounds_is_moved_to_the_bound() -> None:
    """As when an operator narrows the bounds of a robot."""
    narrow = model_with(action_low=(0.5, -3.0), action_high=(1.0, 5.0))
    for warm_start in (..., np.array([[0.75, 0.0]], np.float32)):
        space = plan_inputs(narrow, warm_start=warm_start).search_space
        assert torch.equal(space.start[1], space.low.where(space.low > 0, 0.0))
        rows = narrow.to_rows(space.start)
        assert (rows >= narrow.card.action_low).all()
        assert (rows <= narrow.card.action_high).all()


@given(
    count=st.integers(1, HORIZON_ROWS),
    fractions=st.lists(st.floats(0, 1), min_size=2 * HORIZON_ROWS, max_size=2 * HORIZON_ROWS),
)
def test_every_warm_start_inside_the_bounds_comes_back(count: int, fractions: list[float]) -> None:
    warm_start = LOW + (HIGH - LOW) * np.array(fractions, np.float32).reshape(-1, 2)[:count]
    space = plan_inputs(warm_start=warm_start.astype(np.float32)).search_space
    assert (space.start >= space.low).all()
    assert (space.start <= space.high).all()
    rows = MODEL.to_rows(space.start)
    assert rows[:count] == pytest.approx(warm_start, abs=1e-5)
    assert rows[count:] == pytest.approx(np.tile(MEAN, (len(rows) - count, 1)), abs=1e-6)


@pytest.mark.parametrize("validate", [plan_inputs, predict_inputs])
def test_one_frame_has_no_past_actions(validate: Callable[..., Any]) -> None:
    assert validate().past_actions.shape == (0, 2 * ACTION_BLOCK)
    assert validate(past_actions=[]).past_actions.shape == (0, 2 * ACTION_BLOCK)


@pytest.mark.parametrize("validate", [plan_inputs, predict_inputs])
@pytest.mark.parametrize("frames", [2, HISTORY])
def test_past_actions_are_zscored_blocks(validate: Callable[..., Any], frames: int) -> None:
    rows = action_rows((frames - 1) * ACTION_BLOCK)
    past_actions = validate(frames=history(frames), past_actions=rows).past_actions
    assert past_actions.shape == (frames - 1, 2 * ACTION_BLOCK)
    assert past_actions.numpy() == pytest.approx(zscored_blocks(rows), abs=1e-6)


@pytest.mark.parametrize("validate", [plan_inputs, predict_inputs])
def test_wrong_past_actions_are_refused(validate: Callable[..., Any]) -> None:
    for frames, count in ((2, 5), (3, 10)):
        expected = f"{count} rows, the actions between {frames} frames"
        assert problem_of(validate, frames=history(frames)) == FieldProblem(
            "past_actions", "missing_field", "nothing", expected
        )
    expected = "5 rows: (frames − 1) · action_block"
    for count in (4, 6):
        rows = action_rows(count)
        assert problem_of(validate, frames=history(2), past_actions=rows) == FieldProblem(
            "past_actions", "shape_mismatch", f"{count} rows", expected
        )
    assert problem_of(validate, past_actions=action_rows(5)) == FieldProblem(
        "past_actions", "shape_mismatch", "5 rows", "0 rows: (frames − 1) · action_block"
    )
    assert problem_of(validate, frames=history(2), past_actions=[[0.0]] * 5) == FieldProblem(
        "past_actions", "shape_mismatch", "1 numbers a row", "2 (the model's action_dim)"
    )
    rows = action_rows(5)
    rows[2, 0] = -1.5
    assert problem_of(validate, frames=history(2), past_actions=rows) == FieldProblem(
        "past_actions[2][0]", "out_of_range", "-1.5", "within [-1, 2], the model's bounds"
    )


@pytest.mark.parametrize(("frames", "committed", "context"), [(1, 0, 1), (1, 1, 2), (2, 4, 3)])
def test_committed_actions_lengthen_the_context(frames: int, committed: int, context: int) -> None:
    past, rows = (action_rows(ACTION_BLOCK * count) for count in (frames - 1, committed))
    inputs = plan_inputs(frames=history(frames), past_actions=past, committed_actions=rows)
    assert inputs.shape.context == context
    if committed == 0:
        assert inputs.committed_actions is None
    else:
        assert inputs.committed_actions is not None
        assert inputs.committed_actions.numpy() == pytest.approx(zscored_blocks(rows), abs=1e-6)


def test_a_plan_follows_the_last_committed_action() -> None:
    rows = action_rows(2 * ACTION_BLOCK)
    previous = plan_inputs(committed_actions=rows).search_space.previous_action
    assert previous is not None
    assert previous.numpy() == pytest.approx((rows[-1] - MEAN) / STD, abs=1e-6)


def test_wrong_committed_actions_are_refused() -> None:
    expected = "a multiple of 5 (the model's action_block)"
    assert problem_of(plan_inputs, committed_actions=action_rows(6)) == FieldProblem(
        "committed_actions", "shape_mismatch", "6 rows", expected
    )
    expected = "at most 20 rows, 4 action blocks, on this server"
    assert problem_of(plan_inputs, committed_actions=action_rows(25)) == FieldProblem(
        "committed_actions", "out_of_range", "25 rows", expected
    )
    rows = action_rows(5)
    rows[2, 0] = -1.5
    assert problem_of(plan_inputs, committed_actions=rows) == FieldProblem(
        "committed_actions[2][0]", "out_of_range", "-1.5", "within [-1, 2], the model's bounds"
    )


@pytest.mark.parametrize("validate", [plan_inputs, predict_inputs])
def test_more_frames_than_the_history_are_refused(
    validate: Callable[..., Any],
) -> None:
    frames = history(HISTORY + 1)
    past_actions = action_rows(HISTORY * ACTION_BLOCK)
    assert problem_of(validate, frames=frames, past_actions=past_actions) == FieldProblem(
        "frames", "shape_mismatch", "4 frames", "at most 3 (the model's history)"
    )


def test_the_actions_of_a_prediction_are_one_candidate() -> None:
    rows = action_rows(3 * ACTION_BLOCK)
    candidates = predict_inputs(actions=rows).candidates
    assert candidates.shape == (1, 3, 2 * ACTION_BLOCK)
    assert candidates[0].numpy() == pytest.approx(zscored_blocks(rows), abs=1e-6)


def test_the_candidates_of_a_prediction_are_zscored_blocks() -> None:
    rows = np.stack([action_rows(2 * ACTION_BLOCK, seed) for seed in range(5)])
    candidates = predict_inputs(actions=..., candidates=rows).candidates
    assert candidates.shape == (5, 2, 2 * ACTION_BLOCK)
    for blocks, candidate in zip(candidates, rows, strict=True):
        assert blocks.numpy() == pytest.approx(zscored_blocks(candidate), abs=1e-6)


def test_a_prediction_may_be_as_long_as_the_server_allows() -> None:
    rows = action_rows(SETTINGS.max_horizon * ACTION_BLOCK)
    assert predict_inputs(actions=rows).candidates.shape[1] == SETTINGS.max_horizon


def test_wrong_candidates_are_refused() -> None:
    many = np.stack([action_rows(ACTION_BLOCK)] * 6)
    assert problem_of(predict_inputs, actions=..., candidates=many) == FieldProblem(
        "candidates", "out_of_range", "6", "at most 5 on this server"
    )
    assert problem_of(predict_inputs, actions=action_rows(ACTION_BLOCK + 1)) == FieldProblem(
        "actions", "shape_mismatch", "6 rows", "a multiple of 5 (the model's action_block)"
    )
    assert problem_of(predict_inputs, actions=[[0.0] * 3] * ACTION_BLOCK) == FieldProblem(
        "actions", "shape_mismatch", "3 numbers a row", "2 (the model's action_dim)"
    )
    outside = many[:2].copy()
    outside[1, 4, 1] = 6
    assert problem_of(predict_inputs, actions=..., candidates=outside) == FieldProblem(
        "candidates[1][4][1]", "out_of_range", "6.0", "within [-3, 5], the model's bounds"
    )
    assert problem_of(predict_inputs, actions=action_rows(5 * ACTION_BLOCK)) == FieldProblem(
        "actions", "out_of_range", "5 action blocks", "at most 4 action blocks on this server"
    )


def test_a_prediction_that_does_not_fit_into_an_answer_is_refused() -> None:
    size = 4 * 2 * LATENT_DIM
    fits = Settings(max_body_bytes=size)
    assert predict_inputs(fits).candidates.shape[:2] == (1, 2)
    too_small = Settings(max_body_bytes=size + 1)
    actions = action_rows(3 * ACTION_BLOCK)
    assert problem_of(predict_inputs, settings=too_small, actions=actions) == FieldProblem(
        "actions",
        "out_of_range",
        f"{4 * 3 * LATENT_DIM} bytes of latents",
        f"candidates whose latents fit in {size + 1} bytes",
    )


def test_without_solver_settings_those_of_the_card_are_used() -> None:
    assert plan_inputs().solver_settings == CARD_SOLVER
    assert plan_inputs(solver={}).solver_settings == CARD_SOLVER


def test_settings_of_the_request_replace_those_of_the_card() -> None:
    requested: dict[str, Any] = {
        "samples": 30,
        "iterations": 5,
        "elites": 7,
        "horizon": 2,
        "tolerance": 0.5,
        "momentum": 0.0,
        "deviation": 0.75,
    }
    assert plan_inputs(solver=requested).solver_settings == SolverConfig(
        "cem", objective="latent", **requested
    )
    assert plan_inputs(solver={"iterations": 1}).solver_settings == replace(
        CARD_SOLVER, iterations=1
    )


def test_another_solver_keeps_the_settings_of_the_card_that_it_has() -> None:
    solver = plan_inputs(solver={"name": "mppi", "temperature": 0.5}).solver_settings
    assert solver == replace(CARD_SOLVER, name="mppi", temperature=0.5)


def test_elites_of_the_card_are_lowered_to_the_samples() -> None:
    assert plan_inputs(solver={"samples": 4}).solver_settings.elites == 4
    assert plan_inputs(solver={"samples": 6}).solver_settings.elites == 6
    assert plan_inputs(solver={"samples": 64}).solver_settings.elites == 6
    assert plan_inputs(solver={"elites": 64}).solver_settings.elites == CARD_SOLVER.samples
    few_samples = model_with(solver=replace(CARD_SOLVER, samples=2))
    assert plan_inputs(few_samples).solver_settings.elites == 2


def test_an_unknown_solver_is_refused() -> None:
    assert problem_of(plan_inputs, solver={"name": "oracle"}) == FieldProblem(
        "solver.name", "unknown_solver", "'oracle'", "one of cem, icem, mppi, random, gradient"
    )


@pytest.mark.parametrize(
    ("solver", "field", "received", "expected"),
    [
        (
            {"temperature": 0.5},
            "solver.temperature",
            "0.5",
            "only settings of cem: elites, momentum, deviation",
        ),
        (
            {"name": "mppi", "elites": 3},
            "solver.elites",
            "3",
            "only settings of mppi: temperature, deviation, noise_exponent",
        ),
        (
            {"name": "gradient", "deviation": 0.5, "momentum": 0.5},
            "solver.momentum",
            "0.5",
            "only settings of gradient: learning_rate, deviation",
        ),
    ],
)
def test_settings_of_another_solver_are_refused(
    solver: dict[str, Any], field: str, received: str, expected: str
) -> None:
    assert problem_of(plan_inputs, solver=solver) == FieldProblem(
        field, "conflicting_fields", received, expected
    )


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("samples", SETTINGS.max_samples),
        ("iterations", SETTINGS.max_iterations),
        ("horizon", SETTINGS.max_horizon),
    ],
)
def test_the_limits_of_the_server(name: str, limit: int) -> None:
    assert getattr(plan_inputs(solver={name: limit}).solver_settings, name) == limit
    assert problem_of(plan_inputs, solver={name: limit + 1}) == FieldProblem(
        f"solver.{name}", "out_of_range", str(limit + 1), f"at most {limit} on this server"
    )


def test_the_limits_of_the_server_hold_for_the_card_too() -> None:
    long = model_with(solver=replace(CARD_SOLVER, iterations=9))
    assert problem_of(plan_inputs, model=long) == FieldProblem(
        "solver.iterations", "out_of_range", "9", "at most 8 on this server"
    )


def test_min_iterations_are_at_most_those_of_the_solver() -> None:
    assert plan_inputs(min_iterations=3).solver_settings.iterations == 3
    assert plan_inputs(min_iterations=5, solver={"iterations": 5}).solver_settings.iterations == 5
    assert problem_of(plan_inputs, min_iterations=4) == FieldProblem(
        "min_iterations", "out_of_range", "4", "at most the solver's iterations, 3"
    )


def test_the_frames_of_an_encode_request_are_limited() -> None:
    validate_encode(parse(EncodeRequest, {"frames": history(2)}), SETTINGS)
    with pytest.raises(InvalidRequest) as caught:
        validate_encode(parse(EncodeRequest, {"frames": history(3)}), SETTINGS)
    assert caught.value.errors == (
        FieldProblem("frames", "out_of_range", "3", "at most 2 frames a request"),
    )


def test_the_card_of_these_tests_is_valid() -> None:
    assert ModelCard.from_json(MODEL.card.to_json()) == MODEL.card


@pytest.mark.parametrize(
    ("solver", "steps", "product"),
    [
        ({"samples": 64, "iterations": 8}, 1539, "513 candidates in all × horizon 3"),
        (
            {"name": "gradient", "samples": 20, "iterations": 4, "horizon": 2},
            480,
            "80 candidates in all × horizon 2 × 3 (gradients)",
        ),
    ],
)
def test_a_search_that_is_too_long_is_refused(
    solver: dict[str, Any], steps: int, product: str
) -> None:
    """The product counts: each factor may be allowed."""
    for limit in (steps, steps - 1):
        settings = SETTINGS.model_copy(update={"max_candidate_steps": limit})
        request = parse(PlanRequest, plan(frames=[latent()], goal=latent(), solver=solver))
        if limit == steps:
            validate_plan(MODEL, request, settings)
            continue
        assert problem_of(partial(validate_plan, MODEL, request, settings)) == FieldProblem(
            "solver",
            "out_of_range",
            f"{steps} candidate-steps ({product})",
            f"at most {limit} on this server (LEWM_MAX_CANDIDATE_STEPS)",
        )


def test_a_prediction_that_is_too_long_is_refused() -> None:
    settings = SETTINGS.model_copy(update={"max_candidate_steps": 9})
    candidates = np.stack([action_rows(3 * ACTION_BLOCK)] * 4)
    problem = problem_of(predict_inputs, settings=settings, actions=..., candidates=candidates)
    assert problem.field == "candidates"
    assert problem.received == "12 candidate-steps (4 candidates in all × horizon 3)"


def test_by_default_a_request_takes_about_ten_seconds() -> None:
    """But the model's own solver may always run."""
    fast = replace(MODEL, latency=LatencyModel([(1, 0.001), (1000, 0.01)]))
    assert fast.max_candidate_steps == 1_000_000
    slow = replace(MODEL, latency=LatencyModel([(1, 1.0)]))
    assert slow.max_candidate_steps == (20 * 3 + 1) * 3
