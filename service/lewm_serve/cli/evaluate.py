"""`lewm evaluate`: closed-loop episodes through the public API."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from lewm_serve.cli.protocol import Protocol


def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="model folder; default: the embedded two-room")
    ] = None,
    protocol: Annotated[Protocol, typer.Option(help="kind of episodes")] = Protocol.PAPER,
    episodes: Annotated[int, typer.Option(min=1, help="how many")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="of the episodes and their plans")] = 0,
    robots: Annotated[int, typer.Option(min=1, help="episodes run at once")] = 4,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="gRPC server; default: starts one")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="name of the solver")] = None,
    samples: Annotated[int | None, typer.Option(help="candidates an iteration")] = None,
    iterations: Annotated[int | None, typer.Option(help="solver iterations")] = None,
    elites: Annotated[int | None, typer.Option(help="candidates kept")] = None,
    horizon: Annotated[int | None, typer.Option(help="action blocks to look ahead")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="a setting of the solver's own; may be repeated"),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="put the figures on the card")] = False,
    output: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the figures there too")
    ] = None,
) -> None:
    """Run Two-Room episodes over gRPC, from camera frames alone, and report how many succeed.

    Solver settings that are left out are those of the model's card.
    """
    from rich.console import Console

    from lewm_client import PlannerClient, PlannerError
    from lewm_models import checkpoint
    from lewm_models.card import read_card
    from lewm_models.checkpoint import PRETRAINED
    from lewm_models.evaluation.protocol import PROTOCOLS
    from lewm_models.evaluation.report import EvaluationReport
    from lewm_serve.cli.destinations import check_writable
    from lewm_serve.cli.episodes import run_with_progress, table
    from lewm_serve.cli.local_server import LocalServerError, local_server
    from lewm_serve.cli.remote_planner import RemotePlanner, two_room_model

    changes = {
        "name": solver,
        "samples": samples,
        "iterations": iterations,
        "elites": elites,
        "horizon": horizon,
    }
    changed: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    folder = model or (None if server else PRETRAINED / "two-room")
    try:
        changed |= _settings(setting or [])
        card = None if folder is None else read_card(folder / checkpoint.CARD)
        if write and card is None:
            raise ValueError("--write needs the MODEL whose card it is to write")
        if write and folder is not None:
            check_writable(folder / checkpoint.CARD)
        if output is not None:
            check_writable(output)
        tasks = PROTOCOLS[protocol](episodes, seed)
        with ExitStack() as stack:
            target = server or stack.enter_context(local_server(folder)).target
            client = stack.enter_context(PlannerClient(target))
            served = two_room_model(client, None if card is None else card.name)
            if write and folder is not None and served.version != checkpoint.version(folder):
                raise ValueError(f"{target} serves another version of {served.name}")

            planners: list[RemotePlanner] = []

            def make_planner() -> RemotePlanner:
                planner = RemotePlanner(client, tasks.plan_steps, model=served.name, solver=changed)
                planners.append(planner)
                return planner

            outcomes = run_with_progress(make_planner, tasks, seed=seed, robots=robots)
        plan = planners[0].last
        assert plan is not None  # there is an episode, and it starts with a plan
        report = EvaluationReport.of(tasks.protocol, outcomes)
        figures = report.to_json() | {
            "seed": seed,
            "robots": robots,
            "solver": plan.solver,
            "backend": plan.backend,
            "device": served.device,
            "precision": plan.precision,
        }
        Console().print(table(f"{served.name}, protocol {report.protocol}", report))
        if write and folder is not None and card is not None:
            checkpoint.write_card(folder, card.with_figures(**{report.protocol: figures}))
        if output is not None:
            output.write_text(json.dumps(figures, indent=2) + "\n")
    except (LocalServerError, OSError, PlannerError, ValueError) as error:
        typer.echo(f"lewm evaluate: {error}", err=True)
        raise typer.Exit(1) from None


def _settings(given: list[str]) -> dict[str, float]:
    """Solver settings given as NAME=VALUE; `ValueError` for what is none."""
    settings = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            settings[name] = float(value)
        except ValueError:
            raise ValueError(f"--setting: expected NAME=VALUE with a number, got {text}") from None
    return settings
