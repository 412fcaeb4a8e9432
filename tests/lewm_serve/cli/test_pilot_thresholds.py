"""The thresholds of `lewm pilot` are held to the checkpoints of docs/judging.md."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lewm_models.judging.measure import Estimate, Measure
from lewm_models.judging.robustness import Disturbance
from lewm_serve.cli.pilot_checks import THRESHOLDS, model_checks, verdict_of

STUDY = Path(__file__).parents[3] / "benchmarks" / "judging.json"


@pytest.mark.parametrize(
    ("task", "verdicts"),
    [
        (
            "two-room",
            {"early": "limits", "middle": "go", "final": "go", "λ = 0": "no-go", "λ = 0.5": "go"},
        ),
        ("reacher", dict.fromkeys(("early", "middle", "final", "λ = 0", "λ = 0.5"), "no-go")),
    ],
)
def test_the_thresholds_sort_the_checkpoints_of_the_study(
    task: str, verdicts: dict[str, str]
) -> None:
    """Their success in closed loop is in docs/judging.md."""
    checkpoints = json.loads(STUDY.read_text())["details"]["tasks"][task]["checkpoints"]
    found = {}
    for name, content in checkpoints.items():
        judgement: Any = SimpleNamespace(measures=_measures(content["measures"]))
        undisturbed = Disturbance("none", "", 0, 0.0, 1.0, 0.0)
        checks = model_checks(THRESHOLDS, judgement, [undisturbed], horizon=5)
        judged = [check for check in checks if check.threshold.name != "false_alarms"]
        found[name] = verdict_of(judged)  # the models of the study are not calibrated
    assert found == verdicts


def _measures(content: dict[str, Any]) -> list[Measure]:
    """The measures of the study, which has quotients ``NAME / BASELINE`` in place of baselines."""
    measures = []
    for name, item in content.items():
        if " / " in name:
            continue
        baselines = {
            quotient.partition(" / ")[2]: Estimate(item["value"] / ratio["value"])
            for quotient, ratio in content.items()
            if quotient.startswith(f"{name} / ") and ratio["value"]
        }
        measures.append(Measure(name, Estimate(item["value"]), "", "neither", 1, baselines))
    return measures
