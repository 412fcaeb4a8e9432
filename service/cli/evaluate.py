"""`lewm evaluate`: closed-loop episodes through the public API."""

from __future__ import annotations

import json
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lewm.v1 import planner_pb2 as pb
    from rich.table import Table

    from models.evaluation.report import EvaluationReport
    from service.rpc.client import PlannerClient


class Protocol(StrEnum):
    """Those of `models.evaluation.protocol`, here so that `--help` need not load torch."""

    PAPER = "paper"
    CROSS_ROOM = "cross-room"


class EvaluationError(RuntimeError):
    """What was asked for cannot be done; the message says why."""


SolverOption = Annotated[int | None, typer.Option(min=1, help="instead of the card's")]


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
    samples: SolverOption = None,
    iterations: SolverOption = None,
    elites: SolverOption = None,
    horizon: SolverOption = None,
    write: Annotated[bool, typer.Option("--write", help="put the figures on the card")] = False,
    output: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the figures there too")
    ] = None,
) -> None:
    """Run Two-Room episodes over gRPC, from camera frames alone, and report how many succeed."""
    from rich.console import Console

    from models import checkpoint
    from models.card import CardError, read_card
    from models.checkpoint import CheckpointError
    from service.cli.local_server import LocalServerError, local_server
    from service.rpc.client import PlannerClient, PlannerError
    from service.served import EMBEDDED

    solver = {
        name: value
        for name, value in (
            ("samples", samples),
            ("iterations", iterations),
            ("elites", elites),
            ("horizon", horizon),
        )
        if value is not None
    }
    try:
        folder = model or (None if server else EMBEDDED / "two-room")
        card = None if folder is None else read_card(folder / checkpoint.CARD)
        if write and card is None:
            raise EvaluationError("--write needs the MODEL whose card it writes")
        with ExitStack() as stack:
            target = server or stack.enter_context(local_server(folder)).target
            client = stack.enter_context(PlannerClient(target))
            served = two_room_model(client, None if card is None else card.name)
            if write and folder is not None and served.version != checkpoint.version(folder):
                raise EvaluationError(f"{target} serves another version of {served.name}")
            report = measure(client, served, protocol, episodes, seed, robots, solver)
        figures = report.to_json() | conditions(served, seed, robots, solver)
        if write and folder is not None and card is not None:
            checkpoint.write_card(folder, card.with_figures(**{report.protocol: figures}))
        if output is not None:
            output.write_text(json.dumps(figures, indent=2) + "\n")
    except (
        CardError, CheckpointError, EvaluationError, LocalServerError, OSError, PlannerError,
        ValueError,
    ) as error:
        typer.echo(f"lewm evaluate: {error}", err=True)
        raise typer.Exit(1) from None
    Console().print(table(f"{served.name} on {report.protocol}", report))


def two_room_model(client: PlannerClient, name: str | None) -> pb.Model:
    """The model that a server would use, which must act as Two-Room does.

    Raises:
        EvaluationError: there is no such model, or it acts otherwise.
        PlannerError: the server cannot be reached.
    """
    models = client.models()
    chosen = [model for model in models if (model.name == name if name else model.default)]
    if not chosen:
        known = ", ".join(model.name for model in models)
        raise EvaluationError(f"no model {name or 'by default'} on the server, which has {known}")
    if chosen[0].card["action_dim"] != 2:
        raise EvaluationError(f"{chosen[0].name} is no model of Two-Room: its action_dim is not 2")
    return chosen[0]


def measure(
    client: PlannerClient,
    model: pb.Model,
    protocol: str,
    episodes: int,
    seed: int,
    robots: int,
    solver: dict[str, Any],
) -> EvaluationReport:
    """Run the episodes with a progress bar on standard error."""
    import torch
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from models.evaluation.episode import Outcome, run_episodes
    from models.evaluation.protocol import PROTOCOLS
    from models.evaluation.report import EvaluationReport
    from service.cli.remote_planner import RemotePlanner

    torch.set_num_threads(1)  # what is simulated here is small, and the cores are the server's
    tasks = PROTOCOLS[protocol](episodes, seed)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("no success yet", total=episodes)
        reached = 0

        def show(outcome: Outcome) -> None:
            nonlocal reached
            reached += outcome.reached
            progress.update(task, advance=1, description=f"{reached} reached")

        outcomes = run_episodes(
            lambda: RemotePlanner(
                client, plan_steps=tasks.plan_steps, model=model.name, solver=solver
            ),
            tasks,
            seed=seed,
            robots=robots,
            report=show,
        )
    return EvaluationReport.of(tasks.protocol, outcomes)


def conditions(
    model: pb.Model, seed: int, robots: int, solver: dict[str, Any]
) -> dict[str, object]:
    """What the figures depend on besides the weights."""
    from google.protobuf.json_format import MessageToDict

    card = MessageToDict(model.card)
    defaults = {name: int(card["solver"][name]) for name in SOLVER_FIGURES}
    return {
        "solver": {"name": card["solver"]["name"], **defaults, **solver},
        "seed": seed,
        "robots": robots,
        "backend": model.backend,
        "device": model.device,
        "precision": model.precision,
    }


SOLVER_FIGURES = ("samples", "iterations", "elites", "horizon")


def table(title: str, report: EvaluationReport) -> Table:
    """The figures for a person."""
    from rich.table import Table

    low, high = report.interval_95
    rows = Table(title=title, show_header=False, title_justify="left")
    rows.add_row("reached", f"{report.successes} of {report.episodes}")
    rows.add_row("success", f"{report.success_rate:.1%} (95 %: {low:.1%} to {high:.1%})")
    p50, p99 = report.plan_latency_p50_ms, report.plan_latency_p99_ms
    rows.add_row("plan latency", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, {report.plans} plans")
    if report.steps_mean is not None:
        used = f"mean {report.steps_mean:.1f}, median {report.steps_median:.0f}"
        rows.add_row("steps to success", used)
    return rows
