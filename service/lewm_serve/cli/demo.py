"""`lewm demo`: many robots drive to their goals, with camera frames as their only input."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lewm_serve.cli.messages import describe_error
from lewm_serve.cli.options import EnvironmentOption

REQUIRED_SUCCESS = 0.9
"""The share of the goals that must be reached."""


def demo(
    model: Annotated[
        Path | None, typer.Argument(help="model folder; default: the embedded model")
    ] = None,
    env: EnvironmentOption = None,
    robots: Annotated[int, typer.Option(min=1, help="robots that drive at once")] = 24,
    protocol: Annotated[str, typer.Option(help="where the goals lie")] = "paper",
    seed: Annotated[int, typer.Option(min=0, help="seed of starts, goals and plans")] = 0,
    replan_steps: Annotated[
        int, typer.Option(min=1, help="actions of a plan to execute before the next")
    ] = 25,
    output: Annotated[
        Path | None,
        typer.Option(
            help="file of the animation; a .png of its last frame is written beside it; "
            "default: demo/ENV.gif"
        ),
    ] = None,
) -> None:
    """Start a server, drive robots to their goals over gRPC, and draw their paths.

    Fails if fewer than nine of ten goals are reached.
    """
    from rich.console import Console

    from lewm_client import PlannerClient, PlannerError
    from lewm_models.checkpoint import EMBEDDED_MODEL
    from lewm_models.environments.registry import find_environment
    from lewm_models.evaluation.protocol import sample_episodes
    from lewm_models.evaluation.report import EvaluationReport
    from lewm_serve.cli.closed_loop import (
        check_writable,
        drive_with_model,
        find_model,
        results_table,
    )
    from lewm_serve.cli.episode_picture import draw_episodes
    from lewm_serve.cli.local_server import LocalServerError, local_server

    console = Console()
    try:
        environment = find_environment(env)
        output = output or Path("demo") / f"{environment.name}.gif"
        if output.suffix != ".gif":
            raise ValueError(f"--output: expected a .gif file, got {output}")
        output.parent.mkdir(parents=True, exist_ok=True)
        for file in (output, output.with_suffix(".png")):
            check_writable(file)
        episodes = sample_episodes(environment, protocol, robots, seed, plan_steps=replan_steps)
        console.print("starting the server")
        with (
            local_server(model or EMBEDDED_MODEL) as server,
            PlannerClient(server.target) as client,
        ):
            loaded = find_model(client, None, environment)
            console.print(f"{robots} robots plan with {loaded.name} on {loaded.device}")
            started = time.perf_counter()
            outcomes, _ = drive_with_model(
                client, loaded, episodes, solver={}, seed=seed, robots=robots
            )
            seconds = time.perf_counter() - started
        report = EvaluationReport.from_outcomes(episodes, outcomes)
        speed = f"{report.plans / seconds:.1f} plans/s"
        console.print(results_table(f"{robots} robots at once, {speed}", report))
        p50, p99 = report.plan_latency_p50_ms, report.plan_latency_p99_ms
        title = f"{robots} robots find their goals from camera frames alone"
        latency = f"plan latency p50 {p50:,.0f} ms, p99 {p99:,.0f} ms"
        animation, picture = draw_episodes(
            episodes, outcomes, title=title, caption=latency, output=output
        )
    except (LocalServerError, OSError, PlannerError, ValueError) as error:
        typer.echo(f"lewm demo: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None
    console.print(f"see {picture} and {animation}")
    if report.success_rate < REQUIRED_SUCCESS:
        typer.echo(
            f"lewm demo: fewer than {REQUIRED_SUCCESS:.0%} of the goals were reached", err=True
        )
        raise typer.Exit(1)
