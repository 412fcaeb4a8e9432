"""The study of which measures rank models: how pairs of checkpoints are counted."""

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.judging import (
    InProcessPlanner,
    describe,
    markdown,
    pairs_by_gap,
    pairs_by_success,
    rank,
    summarise,
)
from lewm_models.checkpoint import Checkpoint
from lewm_models.evaluation.report import wilson_interval
from lewm_models.judging.judge import Judgement
from lewm_models.judging.measure import Estimate, Measure
from tests.lewm_models.examples import example_card, tiny_model


def result(reached: int, gap: float, **measures: tuple[float, str]) -> dict[str, Any]:
    found = {name: {"value": value, "better": better} for name, (value, better) in measures.items()}
    noise = np.random.default_rng(reached).normal(0, 1, 100)
    return {
        "success": reached / 100,
        "interval_95": wilson_interval(reached, 100),
        "reached": [1] * reached + [0] * (100 - reached),
        "gaps": (gap + noise - noise.mean()).tolist(),
        "mean_gap": gap,
        "measures": found,
    }


RESULTS = {
    "early": result(10, 9.0, error=(0.9, "lower"), rank=(5.0, "neither"), loss=(0.1, "lower")),
    "middle": result(60, 5.0, error=(0.5, "lower"), rank=(9.0, "neither"), loss=(0.3, "lower")),
    "final": result(61, 3.0, error=(0.1, "lower"), rank=(8.0, "neither"), loss=(0.2, "lower")),
}


def test_pairs_count_if_their_success_differs_clearly() -> None:
    assert pairs_by_success(RESULTS) == [("middle", "early"), ("final", "early")]
    assert set(pairs_by_gap(RESULTS)) == {
        ("middle", "early"),
        ("final", "early"),
        ("final", "middle"),
    }
    task = json.loads(json.dumps(describe(RESULTS)))
    assert "gaps" not in task["checkpoints"]["early"]
    rows = rank(task)
    assert [rows[name]["success"] for name in ("error", "rank", "loss")] == [(2, 2), (2, 2), (0, 2)]
    assert [rows[name]["gap"] for name in ("error", "rank", "loss")] == [(3, 3), (2, 3), (1, 3)]
    assert rows["error"]["spearman"] == pytest.approx(1)
    assert rows["rank"]["spearman"] == pytest.approx(0.5)
    assert rows["loss"]["spearman"] == pytest.approx(-0.5)
    table = markdown({"rooms": task})
    assert "| rooms | early | 10.0% | 5.5% to 17.4% | 9 |" in table
    lines = [line for line in table.splitlines() if line.startswith(("| error", "| loss"))]
    assert lines == ["| error | 2 of 2 | 3 of 3 | +1.00 |", "| loss | 0 of 2 | 1 of 3 | -0.50 |"]


def test_measures_are_compared_with_baselines_and_states_are_averaged() -> None:
    def measure(name: str, value: float, better: Any, **baselines: float) -> Measure:
        return Measure(
            name,
            Estimate(value),
            unit="",
            better=better,
            samples=1,
            baselines={name: Estimate(value) for name, value in baselines.items()},
        )

    judgement = Judgement(
        model="m",
        version="v",
        held_out_episodes=1,
        held_out_frames=1,
        training_frames=1,
        probe=None,
        measures=(
            measure("prediction_error_1", 0.2, "lower", copy=0.8),
            measure("cost_range", 3.0, "higher", nothing=1.0),
            measure("probe_r2_x", 0.9, "higher", pixels=0.1),
            measure("probe_r2_y", 0.7, "higher", pixels=0.1),
            measure("recovery_5_state_error_x", 2.0, "lower", stay=8.0, own=9.0),
            measure("recovery_5_state_error_y", 0.3, "lower", stay=0.4, own=0.1),
        ),
        notes=(),
    )
    assert summarise(judgement) == {
        "prediction_error_1": {"value": 0.2, "better": "lower"},
        "prediction_error_1 / copy": {"value": pytest.approx(0.25), "better": "lower"},
        "cost_range": {"value": 3.0, "better": "higher"},
        "probe_r2 (mean)": {"value": pytest.approx(0.8), "better": "higher"},
        "recovery_5_state_error (mean)": {"value": pytest.approx(0.5), "better": "lower"},
    }


def test_plans_are_in_the_units_of_the_environment() -> None:
    model = tiny_model()
    card = example_card(model)
    planner = InProcessPlanner(Checkpoint(model, card, "version"))
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    actions, _ = planner(frames[0], frames[1], 3)
    assert actions.shape == (card.solver.horizon * card.config.action_block, card.config.action_dim)
    assert (np.abs(actions) <= 1).all()
    assert (planner(frames[0], frames[1], 3)[0] == actions).all()
    assert (planner(frames[0], frames[1], 4)[0] != actions).any()
