"""`lewm pilot`: verdicts on good and bad recordings, and the report in a real browser."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from lewm_models.card import SolverConfig
from lewm_models.distance.trainer import DistanceTraining
from lewm_models.judging import measure, robustness
from lewm_models.judging.measure import Estimate
from lewm_models.probe import fit
from lewm_models.training import settings
from lewm_models.training.trainer import TrainingConfig
from lewm_serve.cli.main import app
from lewm_serve.cli.pilot_business import Kpi, business_figures, read_kpi
from lewm_serve.cli.pilot_checks import THRESHOLDS, Check, read_thresholds, verdict_of
from lewm_serve.cli.pilot_machine import Machine, SolverCost
from tests.lewm_models.training.sources import prepare, two_room, write_robot
from tests.lewm_serve.support.browser import open_page

LITTLE_DATA = "[episodes]\ngo = 10\n[steps]\ngo = 500\nlimit = 300\n"
KPI = "value_of_cycle = 0.5\ncycle_s = 10\ncost_of_stop = 20\ncost_of_core_hour = 0.1\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    quick = fit.ProbeTraining(steps=20, width=8, batch=64)
    monkeypatch.setattr(fit, "ProbeTraining", lambda: quick)
    monkeypatch.setattr(measure, "RESAMPLES", 10)
    monkeypatch.setattr(robustness, "MAX_FRAMES", 150)
    Path("little.toml").write_text(LITTLE_DATA)


def pilot(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["pilot", *map(str, arguments)])


def report_of(result: Result) -> dict[str, Any]:
    assert "report: pilot/report.html" in result.stdout, result.output
    report: dict[str, Any] = json.loads(Path("pilot/report.json").read_text())
    return report


def results(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["result"] for check in report["checks"]}


class Rooms:
    """A recording of Two-Room that a test changes before it is written."""

    def __init__(self, episodes: int = 16) -> None:
        data = prepare(two_room(episodes=episodes, steps=44, image_size=64, seed=9), Path("rooms"))
        self.frames = data.read_frames(np.arange(45 * episodes))
        self.actions = np.array(data.actions)
        self.episodes = episodes

    def order_within_episodes(self) -> NDArray[np.int64]:
        """Rows in a random order within each episode."""
        generator = np.random.default_rng(0)
        parts = [45 * number + generator.permutation(45) for number in range(self.episodes)]
        return np.concatenate(parts)

    def write(self, episodes: int | None = None) -> Path:
        count = episodes or self.episodes
        with h5py.File("rooms.h5", "w") as file:
            file["pixels"] = self.frames[: 45 * count]
            file["action"] = self.actions[: 45 * count]
            file["ep_len"], file["ep_offset"] = np.full(count, 45), np.arange(count) * 45
        return Path("rooms.h5")


def test_two_rooms_recording_gets_go_and_a_page_that_needs_nothing_else() -> None:
    Path("kpi.toml").write_text(KPI)
    result = pilot(
        *("--data", Rooms().write(), "--model", "two-room", "--rate", "0.01", "--plans", "6"),
        *("--thresholds", "little.toml", "--kpi", "kpi.toml"),
    )
    report = report_of(result)
    assert result.exit_code == 0, result.output
    assert report["verdict"] == "go"
    assert "verdict: go" in result.stdout
    assert results(report) == dict.fromkeys(THRESHOLDS, "go")
    assert all(check["passed"] for check in report["checks"])
    (steps,) = (check for check in report["checks"] if check["name"] == "steps")
    assert (steps["value"], steps["threshold"], steps["limit"]) == (720, 500, 300)
    assert report["judgement"]["measures"]["recovery_1_action_correlation"]["value"] > 0.8

    kinds = {found["kind"]: found for found in report["robustness"] if found["level"] in (0, 3)}
    assert set(kinds) == {
        *("none", "noise", "blur", "occlusion", "exposure", "shift"),
        *("dropped frames", "repeated frames"),
    }
    assert len(report["robustness"]) == 1 + 7 * 3
    for kind in ("noise", "blur", "occlusion", "exposure", "shift"):
        assert kinds[kind]["prediction_error"] > 10 * kinds["none"]["prediction_error"], kind
        assert kinds[kind]["noticed"] > 0.9 > kinds["none"]["noticed"]

    machine = report["machine"]
    assert machine["solvers"][0]["solver"] == "icem"
    assert {cost["solver"] for cost in machine["solvers"]} >= {"cem", "mppi", "random"}
    for cost in machine["solvers"]:
        assert 0 < cost["p50_s"] <= cost["p99_s"]
        assert cost["predictor_tokens"] > 0
    assert machine["peak_memory_mib"] > 50
    assert (machine["recommended_solver"], machine["rate_hz"]) == ("icem", 0.01)
    assert {figure["name"] for figure in report["business"]} >= {"value", "break_even"}

    page = Path("pilot/report.html").read_text()
    assert not re.findall(r"<script|<link|@import|url\(|(?:src|href)=\"(?!data:)", page)
    document, console = open_page(Path("pilot/report.html").resolve().as_uri())
    assert console == []
    assert re.search(r'id="verdict">go<', document)
    for text in ("recommended solver", "repeated frames", "data:image/png", "of two-room"):
        assert text in document
    for name in THRESHOLDS:
        assert f"<code>{name}</code>" in document


@pytest.mark.long
def test_actions_that_do_not_belong_to_the_frames_get_no_go() -> None:
    rooms = Rooms()
    rooms.actions = rooms.actions[rooms.order_within_episodes()]
    arguments = ("--data", rooms.write(), "--model", "two-room", "--rate", "0.01", "--plans", "6")
    result = pilot(*arguments, "--thresholds", "little.toml")
    assert result.exit_code == 4, result.output
    report = report_of(result)
    assert report["verdict"] == "no-go"
    found = results(report)
    assert found["succession"] == found["steps"] == found["latency"] == "go"
    assert found["recovery_correlation"] == "no-go"
    assert "no-go: recovery_correlation: correlation of planned and recorded" in result.stdout


def test_useless_recordings_get_no_go_before_anything_is_trained() -> None:
    rooms = Rooms()
    for name, reason in (
        ("constant", "varying_actions: share of the action dimensions that vary: 0"),
        ("few frames", "steps: usable steps of the recording: 180"),
        ("shuffled", "succession: difference of successive frames"),
        ("still", "the frames do not differ"),
        ("one episode", "episodes: usable episodes of the recording: 1"),
        ("no frames in a row", "pieces shorter than one sample"),
    ):
        changed = Rooms.__new__(Rooms)
        changed.frames, changed.actions = rooms.frames.copy(), rooms.actions.copy()
        changed.episodes = rooms.episodes
        episodes = {"few frames": 4, "one episode": 1}.get(name)
        if name == "constant":
            changed.actions[:] = 0.5
        elif name == "shuffled":
            order = rooms.order_within_episodes()
            changed.frames, changed.actions = changed.frames[order], changed.actions[order]
        elif name == "still":
            changed.frames[:] = 90
        elif name == "no frames in a row":
            changed.actions[::5] = np.nan
        result = pilot("--data", changed.write(episodes), "--thresholds", "little.toml")
        assert result.exit_code == 4, (name, result.output)
        report = report_of(result)
        assert report["verdict"] == "no-go"
        assert reason in result.stdout, (name, result.stdout)
        assert report["model"] is None
        assert not Path("pilot/training").exists()
        page = Path("pilot/report.html").read_text()
        assert "The recording failed, so no model was trained" in page


def test_without_a_model_one_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps = TrainingConfig(steps=2, learning_rate=1e-4, batch=8, directions=16)
    monkeypatch.setattr(settings, "PRESET_TRAINING", {"edge": few_steps})
    short_distance = DistanceTraining(steps=4, width=8, batch=16)
    monkeypatch.setattr(settings, "DISTANCE_TRAINING", short_distance)
    few_candidates = SolverConfig(samples=8, iterations=1, elites=2)
    monkeypatch.setattr(settings, "LARGE_ACTION_SOLVER", few_candidates)
    robot = write_robot(Path("robot.h5"), steps=[60] * 12)
    arguments = ("--data", robot, "--thresholds", "little.toml", "--plans", "2")
    result = pilot(*arguments)
    assert result.exit_code == 4, result.output
    report = report_of(result)
    assert report["model"]["trained_here"]
    assert report["training"][-1]["step"] == 2
    assert Path("pilot/training/model/model.json").is_file()
    found = results(report)
    assert found["varying_actions"] == "go"
    assert found["prediction_1"] == "no-go"
    assert found["false_alarms"] == "limits"  # too few frames to calibrate
    assert report["machine"]["rate_hz"] == 2  # 10 Hz, blocks of 5
    assert "Trained here for 2 steps" in Path("pilot/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "none.h5"), "none.h5: there is no such file or folder"),
        (("--data", "rooms"), "--data: expected a recording, rooms holds prepared data"),
        (("--data", "rooms.h5", "--model", "no"), "no"),
        (("--data", "rooms.h5", "--camera", "top"), "--camera: rooms.h5 has no 'top'"),
        (("--data", "robot.h5", "--model", "two-room"), "expected actions of 2 values (two-room)"),
        (("--data", "rooms.h5", "--thresholds", "a.toml"), "a.toml: speed: there is no such check"),
        (
            ("--data", "rooms.h5", "--thresholds", "b.toml"),
            "b.toml: surprise.go: expected a number, got 'x'",
        ),
        (
            ("--data", "rooms.h5", "--thresholds", "c.toml"),
            "c.toml: latency: go has to be at most limit, got 3 and 1",
        ),
        (("--data", "rooms.h5", "--thresholds", "kpi.json"), "kpi.json: expected TOML"),
        (
            ("--data", "rooms.h5", "--kpi", "kpi.json"),
            "kpi.json: cycle_s: expected a number of at least 0, got -1",
        ),
        (("--data", "rooms.h5", "--kpi", "a.toml"), "a.toml: speed: there is no such key"),
        (("--data", "rooms.h5", "--kpi", "d.toml"), "d.toml: value_of_cycle is missing"),
        (("--data", "rooms.h5", "--kpi", "list.json"), "list.json: expected an object, got list"),
        (("--data", "rooms.h5", "--device", "cuda"), "--device: there is no cuda here"),
        (("--data", "rooms.h5", "--output", "/proc/pilot"), "/proc/pilot"),
    ],
)
def test_what_is_wrong_is_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    Rooms(episodes=2).write()
    if "two-room" in arguments:
        write_robot(Path("robot.h5"), steps=[60] * 12)
    for name, content in {
        "a.toml": "[speed]\ngo = 1\n",
        "b.toml": "[surprise]\ngo = 'x'\n",
        "c.toml": "[latency]\ngo = 3\n",
        "d.toml": "cycle_s = 3\n",
        "kpi.json": '{"cycle_s": -1}',
        "list.json": "[1]",
    }.items():
        Path(name).write_text(content)
    result = pilot(
        *arguments, *(() if "--thresholds" in arguments else ("--thresholds", "little.toml"))
    )
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("lewm pilot: ")
    assert message in line


def test_a_verdict_is_that_of_the_worst_check() -> None:
    lower = replace(THRESHOLDS["latency"], go=1.0, limit=2.0)
    higher = replace(THRESHOLDS["surprise"], go=2.0, limit=1.0)
    for threshold, values in ((lower, (1.0, 1.5, 2.1)), (higher, (2.0, 1.5, 0.9))):
        checks = [Check(threshold, value) for value in values]
        assert [check.verdict for check in checks] == ["go", "limits", "no-go"]
        assert verdict_of(checks[:1]) == "go"
        assert verdict_of(checks[:2]) == "limits"
        assert verdict_of(checks) == "no-go"
    assert Check(lower, math.nan).verdict == "no-go"
    assert Check(lower, math.nan, unmeasured="limits").to_json()["value"] is None
    Path("limits.toml").write_text("[surprise]\ngo = 0.99\n")
    changed = read_thresholds(Path("limits.toml"))["surprise"]
    assert (changed.go, changed.limit) == (0.99, THRESHOLDS["surprise"].limit)


def test_business_figures_are_those_of_the_file() -> None:
    Path("kpi.json").write_text(
        '{"value_of_cycle": 2, "cycle_s": 36, "cost_of_stop": 10, "hours_per_year": 100,'
        ' "cost_of_core_hour": 3, "cost_of_kwh": 0.5, "currency": "USD"}'
    )
    kpi = read_kpi(Path("kpi.json"))
    assert kpi == Kpi(2, 36, 10, 1, 100, 3, 0.5, "USD")
    cost = SolverCost("icem", True, 0.1, 0.2, processor_s=0.1, energy_j=10, predictor_tokens=9)
    machine = Machine(2, 0.1, 0.1, 17, 500, (cost,), 1.0, 10.0, "icem", 400.0, ())
    alarms = Estimate(0.0001, (0.0, 0.001))
    found = {figure.name: figure for figure in business_figures(kpi, machine, alarms)}
    values = {name: figure.value for name, figure in found.items()}
    assert values["cycles"] == 10_000
    assert (values["value"], found["value"].unit) == (20_000, "USD a year")
    assert values["false_stops"] == pytest.approx(360)
    assert values["cost_of_false_stops"] == pytest.approx(3600)
    assert values["cost_of_computing"] == pytest.approx(10 * 3 + 0.5)
    assert values["break_even"] == pytest.approx(3630.5 / 20_000)
    unknown = {figure.name: figure for figure in business_figures(kpi, machine, None)}
    assert unknown["false_stops"].to_json()["value"] is None
