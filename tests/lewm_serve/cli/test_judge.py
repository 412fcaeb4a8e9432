"""`lewm evaluate MODEL --data`: a model is judged on recorded episodes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.card import ModelCard, SolverConfig
from lewm_models.distance.network import GoalDistance
from lewm_models.judging import measure
from lewm_models.probe import fit
from lewm_models.recordings.recording import open_recording
from lewm_models.recordings.usable import usable_episodes
from lewm_models.training.preparation import fingerprint
from lewm_serve.cli.judge import default_plans
from lewm_serve.cli.main import app
from lewm_serve.cli.recorded_data import DataChoice, open_data
from lewm_serve.cli.search import DefaultSearch
from tests.lewm_models.examples import example_card, tiny_model
from tests.lewm_models.training.sources import prepare, two_room
from tests.lewm_serve.cli.test_probe import write_rooms

QUICK = SolverConfig(name="icem", samples=8, iterations=1, elites=2)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    quick = fit.ProbeTraining(steps=20, width=8, batch=64)
    monkeypatch.setattr(fit, "ProbeTraining", lambda: quick)
    monkeypatch.setattr(measure, "RESAMPLES", 10)


def write_model(folder: Path = Path("model"), **changes: object) -> Path:
    model = tiny_model()
    card = replace(example_card(model), solver=QUICK, **changes)  # type: ignore[arg-type]
    checkpoint.save(folder, model, card)
    return folder


def evaluate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_a_judgement_is_a_table_and_json() -> None:
    recording = write_rooms(Path("rooms.h5"), "state", episodes=12)
    arguments = ("--data", recording, "--plans", "4", "--json", "judgement.json")
    result = evaluate(write_model(), *arguments)
    assert result.exit_code == 0, result.output
    judgement = json.loads(Path("judgement.json").read_text())
    assert judgement["model"] == "example"
    assert judgement["model_version"] == checkpoint.version(Path("model"))
    assert judgement["data"]["path"] == "rooms.h5"
    assert judgement["trained_on_data"] is None
    assert judgement["probe"] == "fitted"
    assert judgement["held_out_episodes"] >= 1
    measures = judgement["measures"]
    for name in (
        *(f"prediction_error_{horizon}" for horizon in range(1, 6)),
        *("action_sensitivity_1", "action_sensitivity_5", "cost_range"),
        *("recovery_1_action_error", "recovery_5_latent_error", "recovery_5_state_error_state_0"),
        *("rank_correlation_latent", "straightness", "effective_rank"),
        *("probe_r2_state_1", "probe_error_state_1"),
        *("surprise_true", "surprise_shuffled", "surprise_jumped", "surprise_frozen"),
    ):
        low, high = measures[name]["interval_95"]
        assert low <= measures[name]["value"] <= high, name
        assert measures[name]["baselines"], name
    assert set(measures["prediction_error_1"]["baselines"]) == {"copy the last", "linear model"}
    error = measures["prediction_error_1"]["value"]
    row = next(line for line in result.stdout.splitlines() if re.match(r"  1 +", line))
    assert row.split()[1] == f"{error:.3g}"
    assert "prediction error (blocks)" in result.stdout
    assert "The model is not calibrated" in result.stdout
    assert "does not say whether the model was trained" in result.stdout


def test_prepared_data_and_the_models_own_probe() -> None:
    write_rooms(Path("rooms.h5"), "state", episodes=12)  # from the data in rooms/
    folder = write_model()
    probed = CliRunner().invoke(app, ["models", "probe", str(folder), "rooms"])
    assert probed.exit_code == 0, probed.output
    result = evaluate(folder, "--data", "rooms", "--plans", "4", "--json", "judgement.json")
    assert result.exit_code == 0, result.output
    judgement = json.loads(Path("judgement.json").read_text())
    card = checkpoint.load(folder).card.probe
    assert judgement["probe"] == "model"
    assert card is not None
    assert judgement["measures"]["probe_r2_x"]["value"] == pytest.approx(card.r2[0], rel=1e-3)
    assert judgement["data"]["environment"] == "two-room"


def test_a_recording_without_states_is_judged_without_them() -> None:
    recording = write_rooms(Path("rooms.h5"), episodes=12)
    result = evaluate(
        write_model(), "--data", recording, "--plans", "4", "--json", "judgement.json"
    )
    assert result.exit_code == 0, result.output
    judgement = json.loads(Path("judgement.json").read_text())
    assert judgement["probe"] is None
    assert not [name for name in judgement["measures"] if "state" in name]
    assert "The data have no states: nothing is measured in their units." in judgement["notes"]


def test_a_good_model_is_told_from_actions_that_do_not_belong_to_the_frames() -> None:
    prepare(two_room(episodes=16, steps=45, image_size=64, seed=9), Path("rooms64"))
    found = {}
    for name in ("true", "mixed"):
        arguments = ("--plans", "8", "--json", "judgement.json")
        result = evaluate("two-room", "--data", "rooms64", *arguments)
        assert result.exit_code == 0, result.output
        found[name] = json.loads(Path("judgement.json").read_text())["measures"]
        actions = np.load(Path("rooms64/actions.npy"), mmap_mode="r+")
        actions[:] = np.random.default_rng(0).permutation(actions)
        actions.flush()
    for name, is_good in (("true", True), ("mixed", False)):
        measures = found[name]
        error = measures["prediction_error_1"]
        copied = error["baselines"]["copy the last"]["value"]
        assert (error["value"] < 0.1 * copied) == is_good
        assert (measures["action_sensitivity_1"]["interval_95"][0] > 5) == is_good
        correlation = measures["recovery_1_action_correlation"]["value"]
        assert (correlation > 0.9) if is_good else abs(correlation) < 0.6


def was_trained_on(card: ModelCard, path: Path, **made_from: object) -> bool | None:
    card = replace(card, provenance={"recording": made_from})
    with open_data(DataChoice(path), card) as data:
        return data.was_trained_on


def test_a_trained_model_knows_its_data() -> None:
    path = write_rooms(Path("rooms.h5"), "state", episodes=3)  # from the data in rooms/
    card = checkpoint.load(write_model()).card
    with open_recording(path) as recording:
        usable = usable_episodes(recording, action="action", min_steps=16)
        found = fingerprint(recording, usable.ranges, action="action", camera="pixels")
    assert was_trained_on(card, path) is None
    assert was_trained_on(card, path, fingerprint=found) is True
    assert was_trained_on(card, path, fingerprint="0" * 16) is False
    rooms = {"environment": "two-room", "seed": 0, "episodes": 3, "steps": 39}
    assert was_trained_on(card, Path("rooms"), **rooms) is True
    assert was_trained_on(card, Path("rooms"), **{**rooms, "seed": 1}) is False
    assert was_trained_on(card, Path("rooms"), fingerprint=found) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "rooms.h5"), "--data: expected a MODEL too"),
        (("model", "--data", "none.h5"), "none.h5: there is no such file or folder"),
        (("model", "--data", "rooms.h5", "--episodes", "3"), "--episodes: cannot be given with"),
        (("model", "--data", "rooms.h5", "--env", "two-room"), "--env: cannot be given with"),
        (("model", "--data", "rooms.h5", "--samples", "9"), "--samples: cannot be given with"),
        (("model", "--data", "rooms.h5", "--write"), "--write: cannot be given with --data"),
        (("model", "--plans", "9"), "--plans: is for --data"),
        (("model", "--period", "x=1"), "--period: is for --data"),
        (("model", "--data", "rooms.h5", "--camera", "top"), "--camera: rooms.h5 has no 'top'"),
        (("model", "--data", "rooms", "--state", "x"), "--state: rooms holds prepared data"),
        (("other", "--data", "rooms.h5"), "expected actions of 3 values (example), got 2"),
        (("other", "--data", "rooms"), "expected actions of 3 values (example), got 2"),
        (("model", "--data", "rooms.h5", "--device", "cuda"), "--device: there is no cuda here"),
        (("model", "--data", "rooms.h5", "--json", "/proc/x.json"), "/proc/x.json"),
        (("model", "--data", "one.h5"), "episodes: expected at least 2, one of them held out"),
    ],
)
def test_what_is_wrong_is_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    write_model()
    other = tiny_model(action_dim=3)
    checkpoint.save(Path("other"), other, example_card(other))
    write_rooms(Path("rooms.h5"), "state", episodes=2)
    write_rooms(Path("one.h5"), "state", episodes=1)
    result = evaluate(*arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("lewm evaluate: ")
    assert message in line


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "random", "gradient"])
@pytest.mark.parametrize("objective", ["latent", "distance"])
def test_plans_of_all_solvers_are_as_long_as_asked(name: str, objective: str) -> None:
    import torch

    model = tiny_model()
    torch.manual_seed(0)
    distance = GoalDistance(torch.zeros(8), torch.ones(8), width=4).requires_grad_(False)
    solver = replace(QUICK, name=name, objective=objective)
    card = replace(example_card(model))
    object.__setattr__(card, "solver", solver)  # a card checks that its distance is there
    loaded = checkpoint.Checkpoint(model, card, "version", distance=distance)
    plan = DefaultSearch(loaded, torch.device("cpu"))
    start, goal = torch.randn(2, 8)
    for blocks in (1, 3, 7):
        actions = plan(start, goal, blocks=blocks, seed=4)
        assert actions.shape == (blocks, card.config.block_width)
        assert torch.equal(actions, plan(start, goal, blocks=blocks, seed=4))


def test_slow_solvers_make_fewer_plans() -> None:
    assert default_plans(SolverConfig(samples=300, iterations=30)) == 22
    assert default_plans(QUICK) == 100
    assert default_plans(SolverConfig(samples=10_000, iterations=30)) == 20
