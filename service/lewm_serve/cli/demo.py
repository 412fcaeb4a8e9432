"""`lewm demo`: many robots find their goals from camera frames alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lewm_serve.cli.protocol import Protocol

ENOUGH = 0.9
"""Share of the goals that must be reached."""


def demo(
    model: Annotated[
        Path | None, typer.Argument(help="model folder; default: the embedded two-room")
    ] = None,
    robots: Annotated[int, typer.Option(min=1, help="driven at once")] = 24,
    protocol: Annotated[Protocol, typer.Option(help="where goals lie")] = Protocol.PAPER,
    seed: Annotated[int, typer.Option(min=0, help="of starts, goals and plans")] = 0,
    replan_steps: Annotated[
        int, typer.Option(min=1, help="actions of a plan that are run before the next")
    ] = 25,
    output: Annotated[
        Path, typer.Option(help="the animation; a .png of its end lands beside it")
    ] = Path("demo/two-room.gif"),
) -> None:
    """Start a server, drive robots to their goals over gRPC, and draw how they went.

    Fails if less than nine of ten goals were reached.
    """
    from rich.console import Console

    from lewm_client import PlannerClient, PlannerError
    from lewm_models.checkpoint import PRETRAINED
    from lewm_models.evaluation.protocol import PROTOCOLS
    from lewm_models.evaluation.report import EvaluationReport
    from lewm_serve.cli.destinations import check_writable
    from lewm_serve.cli.episodes import run_with_progress, table
    from lewm_serve.cli.local_server import LocalServerError, local_server
    from lewm_serve.cli.picture import draw_episodes
    from lewm_serve.cli.remote_planner import RemotePlanner, two_room_model

    console = Console()
    try:
        if output.suffix != ".gif":
            raise ValueError(f"--output: expected a .gif file, got {output}")
        output.parent.mkdir(parents=True, exist_ok=True)
        for drawn in (output, output.with_suffix(".png")):
            check_writable(drawn)
        tasks = replace(PROTOCOLS[protocol](robots, seed), plan_steps=replan_steps)
        console.print("starting the server")
        with (
            local_server(model or PRETRAINED / "two-room") as server,
            PlannerClient(server.target) as client,
        ):
            served = two_room_model(client, None)
            console.print(f"{robots} robots plan with {served.name} on {served.device}")

            def make_planner() -> RemotePlanner:
                return RemotePlanner(client, replan_steps, model=served.name)

            started = time.perf_counter()
            outcomes = run_with_progress(make_planner, tasks, seed=seed, robots=robots)
            seconds = time.perf_counter() - started
        report = EvaluationReport.of(tasks.protocol, outcomes)
        speed = f"{report.plans / seconds:.1f} plans/s"
        console.print(table(f"{robots} robots at once, {speed}", report))
        p50, p99 = report.plan_latency_p50_ms, report.plan_latency_p99_ms
        title = f"{robots} robots, each sent to its goal from camera frames alone"
        latency = f"plan latency p50 {p50:,.0f} ms, p99 {p99:,.0f} ms"
        animation, picture = draw_episodes(tasks, outcomes, title, latency, output)
    except (LocalServerError, OSError, PlannerError, ValueError) as error:
        typer.echo(f"lewm demo: {error}", err=True)
        raise typer.Exit(1) from None
    console.print(f"see {picture} and {animation}")
    if report.success_rate < ENOUGH:
        typer.echo(f"lewm demo: less than {ENOUGH:.0%} of the goals were reached", err=True)
        raise typer.Exit(1)
