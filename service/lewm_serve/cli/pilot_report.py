"""`report.json` and `report.html` of `lewm pilot`. The page needs nothing but itself."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lewm_models.checkpoint import replace_file
from lewm_models.judging.judge import Judgement
from lewm_models.judging.robustness import Disturbance
from lewm_serve.cli.judge import SECTIONS, section_of
from lewm_serve.cli.pilot_checks import VERDICT_WORDS
from lewm_serve.cli.pilot_run import TRAINING_FOLDER, Pilot

TEMPLATE = "pilot_report.html.jinja"
REPORT_PAGE, REPORT_JSON = "report.html", "report.json"

CHART_WIDTH, CHART_HEIGHT = 560, 200
"""The inner size of a chart in units of its own; it is as wide as the page lets it."""


def write_report(pilot: Pilot, output: Path) -> None:
    """Write both files. Each is replaced as a whole.

    Raises:
        OSError: a file cannot be written.
    """
    content = json.dumps(pilot.to_json(), indent=2, allow_nan=False, default=_plain)
    replace_file(output / REPORT_JSON, (content + "\n").encode())
    replace_file(output / REPORT_PAGE, render(pilot, output).encode())


def render(pilot: Pilot, output: Path) -> str:
    """The page; ``output`` has the pictures."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, picture=_picture, json=_pretty)
    judgement = pilot.judgement
    training_picture = output / TRAINING_FOLDER / "training.png"
    return environment.get_template(TEMPLATE).render(
        pilot=pilot,
        facts=pilot.to_json(),
        words=VERDICT_WORDS,
        training_picture=training_picture if pilot.training else None,
        chart=None if judgement is None else _prediction_chart(judgement),
        sections=[] if judgement is None else _sections(judgement),
        disturbances=_disturbance_rows(pilot.disturbances),
        is_number=math.isfinite,
    )


def _sections(judgement: Judgement) -> list[tuple[str, list[Any]]]:
    """The measures under the headings of `lewm evaluate --data`."""
    found: dict[str, list[Any]] = {}
    for measure in judgement.measures:
        found.setdefault(SECTIONS[section_of(measure.name)], []).append(measure)
    return list(found.items())


def _prediction_chart(judgement: Judgement) -> dict[str, Any] | None:
    """Curves of the prediction error by horizon: points of polylines, and the axes' ends."""
    errors = [m for m in judgement.measures if m.name.startswith("prediction_error_")]
    if len(errors) < 2:
        return None
    curves: dict[str, list[float]] = {"model": [m.estimate.value for m in errors]}
    for name in errors[0].baselines:
        curves[name] = [m.baselines[name].value for m in errors if name in m.baselines]
    top = max(max(values) for values in curves.values())
    step = CHART_WIDTH / (len(errors) - 1)
    return {
        "width": CHART_WIDTH,
        "height": CHART_HEIGHT,
        "top": top,
        "blocks": len(errors),
        "step": step,
        "curves": [
            (
                name,
                " ".join(
                    f"{place * step:.1f},{CHART_HEIGHT * (1 - value / top):.1f}"
                    for place, value in enumerate(values)
                ),
            )
            for name, values in curves.items()
        ],
    }


def _disturbance_rows(disturbances: Sequence[Disturbance]) -> list[tuple[Disturbance, float]]:
    """The disturbances, and the length of each one's bar: its error over the largest one."""
    largest = max((found.action_error for found in disturbances), default=1.0) or 1.0
    return [(found, found.action_error / largest) for found in disturbances]


def _number(value: float | None, digits: int = 3) -> str:
    """A number for people: three digits that count, and thousands with commas."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _picture(path: Path) -> str:
    """A PNG as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON does not know: numbers of NumPy, and paths."""
    return value.item() if hasattr(value, "item") else str(value)
