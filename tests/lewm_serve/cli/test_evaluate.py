"""`lewm evaluate` and `lewm demo` as they are typed."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageSequence
from typer.testing import CliRunner, Result

from lewm_models import checkpoint
from lewm_models.card import read_card
from lewm_serve.cli.main import app
from tests.lewm_serve.support.protection import Protection
from tests.lewm_serve.support.server_process import ServerProcess

QUICK_SOLVER = ("--samples", "4", "--iterations", "1", "--elites", "2")


def lewm(*arguments: str | Path) -> Result:
    """Run the program."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_results_do_not_depend_on_the_number_of_robots(
    server: ServerProcess, tmp_path: Path
) -> None:
    results = {}
    for robots in ("1", "3"):
        file = tmp_path / f"{robots}.json"
        result = lewm(
            *("evaluate", "--server", server.target, "--episodes", "4", "--robots", robots),
            *("--json", file, *QUICK_SOLVER),
        )
        assert result.exit_code == 0, result.output
        assert "of 4" in result.stdout
        results[robots] = json.loads(file.read_text())
    assert results["1"]["solver"]["samples"] == 4
    assert results["1"]["episodes"] == 4
    for name in ("successes", "plans", "steps_mean", "interval_95"):
        assert results["1"][name] == results["3"][name]


def test_results_are_written_to_the_card(quick_model: Path) -> None:
    card = quick_model / checkpoint.CARD_FILE
    before = read_card(card)
    setting = ("--setting", "momentum=0.3")
    arguments = ("--protocol", "cross-room", "--episodes", "1", *setting, "--write")
    result = lewm("evaluate", quick_model, *arguments)
    assert result.exit_code == 0, result.output
    results = read_card(card).figures["cross-room"]
    assert results["episodes"] == 1
    assert results["solver"] == {
        "name": "cem",
        "samples": 4,
        "iterations": 1,
        "elites": 2,
        "horizon": 5,
        "tolerance": 0,
        "objective": "latent",
        "momentum": 0.3,
        "deviation": 1,
    }
    assert before.with_figures(**{"cross-room": results}) == read_card(card)


def test_goals_by_states_are_those_that_the_probe_reads(tmp_path: Path) -> None:
    """Of the card's default search, a few episodes succeed; a frame as goal is not sent."""
    file = tmp_path / "results.json"
    result = lewm(
        *("evaluate", "two-room", "--goal-by", "state", "--episodes", "4", "--json", file)
    )
    assert result.exit_code == 0, result.output
    assert "paper-by-state" in result.stdout
    results = json.loads(file.read_text())
    assert (results["goal_by"], results["solver"]["objective"]) == ("state", "state")
    assert results["successes"] >= 3


@pytest.mark.parametrize("command", ["evaluate", "demo"])
def test_a_server_with_keys_and_certificates_of_clients(command: str, tmp_path: Path) -> None:
    protection = Protection.in_folder(tmp_path)
    with ServerProcess(tmp_path / "log", *protection.server_flags).wait_ready() as server:
        arguments: tuple[str | Path, ...] = (command, "--server", server.target)
        if command == "evaluate":
            arguments += ("--episodes", "1", *QUICK_SOLVER)
        else:
            arguments += ("--robots", "1", "--output", tmp_path / "demo.gif")
        without_key = lewm(*arguments, *protection.tls_options)
        with_key = lewm(*arguments, *protection.tls_options, *protection.key_options)
    assert without_key.exit_code == 1
    assert "unauthenticated" in without_key.stderr
    assert with_key.exit_code == 0, with_key.output
    assert "of 1" in with_key.stdout


def test_a_baseline_needs_no_server(quick_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rest.json"
    result = lewm(
        *("evaluate", quick_model, "--planner", "rest", "--episodes", "20", "--offset", "100"),
        *("--budget", "150", "--json", file, "--write"),
    )
    assert result.exit_code == 0, result.output
    assert "100 steps ahead, budget 150 steps" in result.stdout
    results = json.loads(file.read_text())
    assert (results["planner"], results["successes"], results["episodes"]) == ("rest", 0, 20)
    assert (results["offset"], results["budget"]) == (100, 150)
    card = read_card(quick_model / checkpoint.CARD_FILE)
    assert card.figures == {"offset-100-budget-150-rest": results}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no/such/model",), "no/such/model: is no folder and no embedded model"),
        (("--server", "127.0.0.1:1"), "unavailable"),
        (
            ("--server", "127.0.0.1:1", "--write"),
            "--write: expected a MODEL whose card can be written",
        ),
        (("--server", "127.0.0.1:1", "--seed", str(2**31)), "seed: expected"),
        (("--planner", "rest", "--goal-by", "state"), "--goal-by: rest has no goal"),
        (
            ("reacher", "--env", "reacher", "--goal-by", "state"),
            "--goal-by state: reacher has no probe that reads states of reacher; fit one with",
        ),
        (("--server", "127.0.0.1:1", "--json", "/proc/results.json"), "/proc/results.json"),
        (("--server", "127.0.0.1:1", "--setting", "momentum"), "--setting: expected NAME=VALUE"),
        (("--api-key-file", "key"), "--api-key-file: expected --server too"),
        (
            ("--server", "127.0.0.1:1", "--api-key-file", "/none/key"),
            "/none/key: No such file or directory",
        ),
        (
            ("--server", "127.0.0.1:1", "--api-key-file", __file__),
            "test_evaluate.py: expected the key alone, as `lewm keys add` ends",
        ),
        (
            ("--server", "127.0.0.1:1", "--tls-ca", "ca.pem", "--tls-key", "key"),
            "expected --tls-cert and --tls-key together",
        ),
        (
            ("--server", "127.0.0.1:1", "--tls-cert", "cert", "--tls-key", "key"),
            "--tls-cert: expected --tls-ca too",
        ),
        (("--protocol", "chess"), "--protocol: two-room has paper, cross-room, got 'chess'"),
        (("--env", "chess"), "--env: expected one of cube, "),
        (
            ("--protocol", "cross-room", "--offset", "9"),
            "--offset: cross-room draws its goals in another way",
        ),
        (
            ("--planner", "rest", "--samples", "9"),
            "--planner: rest has no server and no solver",
        ),
    ],
)
def test_a_failing_evaluation_is_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    result = lewm("evaluate", *arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("lewm evaluate: ")
    assert message in line


def test_only_the_card_of_the_evaluated_model_is_written(
    server: ServerProcess, model_folder: Path, quick_model: Path
) -> None:
    result = lewm("evaluate", quick_model, "--server", server.target, "--write", *QUICK_SOLVER)
    assert result.exit_code == 1
    assert "serves another version" in result.stderr
    assert not read_card(quick_model / checkpoint.CARD_FILE).figures


def test_a_demo_that_misses_goals_is_drawn_and_fails(quick_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "rooms.gif"
    arguments = ("--robots", "3", "--protocol", "paper", "--output", output)
    result = lewm("demo", quick_model, *arguments)
    assert result.exit_code == 1, result.output
    assert "of 3" in result.stdout
    assert "plan latency, one robot" in result.stdout
    assert "plans/s, frames and simulation included" in result.stdout
    assert "fewer than 90% of the goals were reached" in result.stderr
    for file in (output, output.with_stem("rooms-views")):
        with Image.open(file) as animation, Image.open(file.with_suffix(".png")) as picture:
            assert animation.size == picture.size
            assert 45 <= sum(1 for _ in ImageSequence.Iterator(animation)) <= 51


@pytest.mark.parametrize("output", ["/proc/rooms.gif", "/dev/null/rooms.gif"])
def test_a_demo_with_an_unusable_output_is_not_run(output: str) -> None:
    result = lewm("demo", "no/such/model", "--output", output)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("lewm demo: ")
    assert "/rooms.gif" in line or "/dev/null" in line


def test_a_demo_writes_only_gif_files(tmp_path: Path) -> None:
    result = lewm("demo", "--output", tmp_path / "rooms.png")
    assert result.exit_code == 1
    assert "expected a .gif file" in result.stderr


def test_states_are_sent_to_a_model_that_takes_them_or_hidden(
    states_server: ServerProcess, tmp_path: Path
) -> None:
    outcomes = []
    for options in ((), ("--hide-states",)):
        file = tmp_path / "results.json"
        arguments = ("--server", states_server.target, "--episodes", "2", "--json", file)
        result = lewm("evaluate", *arguments, *options, *QUICK_SOLVER)
        assert result.exit_code == 0, result.output
        assert ("paper-states-hidden" in result.stdout) == bool(options)
        outcomes.append(json.loads(file.read_text())["episodes"])
    assert outcomes == [2, 2]
    refused = lewm("evaluate", "--planner", "rest", "--hide-states")
    assert refused.exit_code == 1
    assert "--hide-states: rest sees nothing" in refused.output
