"""`lewm models import`: statistics from a recording, and the choice of the solver."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.card import SolverConfig
from lewm_models.random_weights import random_card
from lewm_serve.cli.main import app
from lewm_serve.cli.solver_comparison import (
    candidates,
    compare_solvers,
    icem_within,
    within,
)
from tests.lewm_models.examples import (
    TINY,
    import_card,
    public_config,
    tiny_model,
    write_public_checkpoint,
)

STEPS = (60, 45)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A public checkpoint whose blocks are 5 actions of 2 numbers."""
    return write_public_checkpoint(
        tmp_path / "public", tiny_model(seed=1).state_dict(), public_config()
    )


def write_recording(path: Path, *, height: int = 32, width: int = 32, dim: int = 2) -> np.ndarray:
    """A recording in stable-worldmodel's layout; returns its actions."""
    generator = np.random.default_rng(0)
    count = sum(STEPS)
    actions = generator.normal([1.0, -2.0, 0.5][:dim], [0.1, 3.0, 1.0][:dim], (count, dim))
    actions = actions.astype(np.float32)
    actions[np.cumsum(STEPS) - 1] = np.nan
    with h5py.File(path, "w") as file:
        file["pixels"] = generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        file["action"] = actions
        file["ep_len"] = np.array(STEPS)
        file["ep_offset"] = np.array([0, STEPS[0]])
    return actions


def lewm(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", "import", *map(str, arguments)])


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return card


def error_line(*arguments: object) -> str:
    result = lewm(*arguments)
    assert result.exit_code == 1, result.output
    [line] = result.stderr.splitlines()
    return line


def test_a_recording_gives_what_the_checkpoint_lacks(tmp_path: Path, source: Path) -> None:
    actions = write_recording(tmp_path / "robot.h5")
    destination = tmp_path / "my-robot"
    result = lewm(source, destination, "--data", tmp_path / "robot.h5")
    assert result.exit_code == 0, result.output
    card = card_of(destination)
    finite = actions[~np.isnan(actions).any(axis=1)].astype(np.float64)
    assert card["name"] == "my-robot"
    assert (card["action_dim"], card["action_block"]) == (2, 5)
    assert card["action_mean"] == pytest.approx(finite.mean(axis=0), rel=1e-5)
    assert card["action_std"] == pytest.approx(finite.std(axis=0), rel=1e-5)
    low, high = np.quantile(finite, (0.001, 0.999), axis=0)
    assert card["action_low"] == pytest.approx(low, rel=1e-5)
    assert card["action_high"] == pytest.approx(high, rel=1e-5)
    statistics = card["provenance"]["action_statistics"]
    assert statistics == {"recording": "robot.h5", "actions": "action", "steps": 105}
    assert "precision_judged_on" not in card["provenance"]
    frames = checkpoint.load(destination).frames
    assert frames is not None
    assert tuple(frames.shape) == (16, 16, 16, 3)
    assert "8 pairs of start and goal among frames of the recording" in result.stdout


def test_the_card_overrides_the_recording(tmp_path: Path, source: Path) -> None:
    write_recording(tmp_path / "robot.h5")
    (tmp_path / "card.json").write_text(json.dumps({"name": "arm", "action_low": [-9.0, -9.0]}))
    options = ("--data", tmp_path / "robot.h5", "--card", tmp_path / "card.json")
    result = lewm(source, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    card = card_of(tmp_path / "out")
    assert (card["name"], card["action_low"]) == ("arm", [-9.0, -9.0])
    assert card["action_high"][0] < 2


def test_without_a_card_and_a_recording_the_command_is_named(tmp_path: Path, source: Path) -> None:
    destination = tmp_path / "out"
    line = error_line(source, destination)
    assert f"lewm models import {source} {destination} --data RECORDING" in line
    assert "--card FILE.json" in line
    (tmp_path / "card.json").write_text('{"name": "arm"}')
    line = error_line(source, destination, "--card", tmp_path / "card.json")
    assert "action_dim, action_block, action_mean" in line
    assert "a recording (--data) has to give them" in line
    assert not destination.exists()


def test_actions_of_another_robot_are_refused(tmp_path: Path, source: Path) -> None:
    write_recording(tmp_path / "robot.h5", dim=3)
    line = error_line(source, tmp_path / "out", "--data", tmp_path / "robot.h5")
    assert "'action' has 3 numbers in each action" in line
    assert "action blocks have 10 numbers" in line
    line = error_line(source, tmp_path / "out", "--data", tmp_path / "absent.h5")
    assert line.endswith("absent.h5: there is no such file or folder")
    options = ("--data", tmp_path / "robot.h5", "--action", "torque")
    assert "--action: " in error_line(source, tmp_path / "out", *options)


def test_frames_that_are_not_square_need_a_choice(tmp_path: Path, source: Path) -> None:
    write_recording(tmp_path / "robot.h5", width=48)
    options = ("--data", tmp_path / "robot.h5")
    line = error_line(source, tmp_path / "out", *options)
    assert "--crop: the frames of" in line
    assert "are 48 × 32 pixels, not square" in line
    result = lewm(source, tmp_path / "out", *options, "--crop", "center")
    assert result.exit_code == 0, result.output
    assert card_of(tmp_path / "out")["crop"] == "center"
    assert "center or pad or stretch" in line
    for crop in ("pad", "stretch"):
        result = lewm(source, tmp_path / crop, *options, "--crop", crop)
        assert result.exit_code == 0, result.output
        assert card_of(tmp_path / crop)["crop"] == crop


def test_a_constant_action_is_imported(tmp_path: Path, source: Path) -> None:
    write_recording(tmp_path / "robot.h5")
    with h5py.File(tmp_path / "robot.h5", "a") as file:
        file["action"][:, 1] = 0.25
    result = lewm(source, tmp_path / "out", "--data", tmp_path / "robot.h5")
    assert result.exit_code == 0, result.output
    card = card_of(tmp_path / "out")
    assert (card["action_mean"][1], card["action_std"][1]) == (0.25, 1.0)
    assert card["action_low"][1] < 0.25 < card["action_high"][1]


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(import_card()))
    return path


def test_the_solvers_are_compared_and_one_is_chosen(
    tmp_path: Path, source: Path, card_file: Path
) -> None:
    result = lewm(source, tmp_path / "out", "--card", card_file)
    assert result.exit_code == 0, result.output
    _, header, cem, icem, basis = result.stdout.splitlines()
    assert "a plan takes here" in header
    assert cem.startswith("cem 300 × 30")
    assert "(300 × 1)" in cem
    assert icem.startswith("icem 96 × 6")
    assert basis.startswith("4 pairs of start and goal among synthetic frames")
    [chosen] = [line for line in (cem, icem) if line.rstrip().endswith("in the card")]
    assert chosen.startswith(card_of(tmp_path / "out")["solver"]["name"])
    version = checkpoint.version(tmp_path / "out")
    again = lewm(source, tmp_path / "again", "--card", card_file)
    assert again.exit_code == 0, again.output
    assert checkpoint.version(tmp_path / "again") == version


@pytest.mark.parametrize(
    ("solver", "expected"),
    [("cem", ("cem", 300, 30)), ("icem", ("icem", 96, 6)), ("keep", ("cem", 300, 30))],
)
def test_an_option_chooses_the_solver(
    tmp_path: Path, source: Path, card_file: Path, solver: str, expected: tuple[str, int, int]
) -> None:
    result = lewm(source, tmp_path / "out", "--card", card_file, "--solver", solver)
    assert result.exit_code == 0, result.output
    written = card_of(tmp_path / "out")["solver"]
    assert (written["name"], written["samples"], written["iterations"]) == expected
    assert ("a plan takes here" in result.stdout) == (solver != "keep")


@pytest.mark.parametrize("name", ["icem", "gradient"])
def test_a_solver_of_the_card_that_cannot_be_compared_is_kept(
    tmp_path: Path, source: Path, name: str
) -> None:
    solver = {"name": name, "samples": 12, "iterations": 2, "elites": 3, "horizon": 4}
    (tmp_path / "card.json").write_text(json.dumps(import_card(solver=solver)))
    result = lewm(source, tmp_path / "out", "--card", tmp_path / "card.json")
    assert result.exit_code == 0, result.output
    written = card_of(tmp_path / "out")["solver"]
    assert {field: written[field] for field in solver} == solver
    assert "a plan takes here" not in result.stdout


def test_both_solvers_get_the_same_number_of_candidates() -> None:
    paper = SolverConfig()
    icem = icem_within(candidates(paper), horizon=5)
    assert (candidates(paper), candidates(icem)) == (9001, 353)
    assert candidates(within(paper, 353)) == 301
    for usual in (SolverConfig(samples=32, iterations=3), SolverConfig(samples=1, iterations=1)):
        budget = candidates(icem_within(candidates(usual), horizon=5))
        assert budget <= candidates(usual)
        assert 1 <= candidates(within(usual, budget)) <= max(2, budget)


def test_a_comparison_does_not_depend_on_time() -> None:
    model = tiny_model()
    card = replace(random_card("tiny", TINY, {}), solver=SolverConfig(samples=64, iterations=5))
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, TINY.image_size, TINY.image_size, 3)
    pairs = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    results = [compare_solvers(model, card, pairs, device=torch.device("cpu")) for _ in range(2)]
    costs = [
        (r.usual.equal_cost, r.usual.full_cost, r.icem.equal_cost, r.icem.full_cost)
        for r in results
    ]
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)
    assert results[0].usual.full_cost <= results[0].usual.equal_cost
    assert results[0].pairs == 3
    assert results[0].better in (results[0].usual, results[0].icem)
