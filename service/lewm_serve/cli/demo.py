"""`lewm demo`: robots drive to their goals, with camera frames as their only input."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from lewm_serve.cli.messages import describe_error
from lewm_serve.cli.options import (
    ApiKeyFileOption,
    EnvironmentOption,
    ServerOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    access_settings,
)

REQUIRED_SUCCESS = 0.9
"""The share of the goals that must be reached."""

LONE_ROBOTS, WATCHED_ROBOTS = 8, 4
"""Robots that drive one after another, each alone, and those of them that are drawn."""


def demo(
    model: Annotated[
        Path | None,
        typer.Argument(help="model folder, or embedded model; default: that of the environment"),
    ] = None,
    env: EnvironmentOption = None,
    robots: Annotated[int, typer.Option(min=1, help="robots that drive at once")] = 24,
    protocol: Annotated[
        str | None, typer.Option(help="where the goals lie; default: the environment's choice")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of starts, goals and plans")] = 0,
    replan_steps: Annotated[
        int, typer.Option(min=1, help="actions of a plan to execute before the next")
    ] = 25,
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="file of the animation; a .png is written beside it; default: demo/ENV.gif"
        ),
    ] = None,
) -> None:
    """Drive robots to their goals over gRPC, by a server of its own, and draw what they see.

    A few robots drive alone first, which gives the latency of a plan. The animation shows their
    cameras, their goals, and what the model imagines. Then many robots drive at once. In Two-Room
    another animation shows their ways. Fails if fewer than nine of ten of their goals are reached.
    """
    from rich.console import Console

    from lewm_client import PlannerClient, PlannerError
    from lewm_models.card import read_card
    from lewm_models.checkpoint import CARD_FILE, model_of_environment, resolve_folder
    from lewm_models.environments.registry import find_environment
    from lewm_models.environments.two_room_environment import CROSS_ROOM, TwoRoom
    from lewm_models.evaluation.protocol import sample_episodes
    from lewm_models.evaluation.report import EvaluationReport
    from lewm_serve.cli.closed_loop import (
        check_writable,
        drive_with_model,
        find_model,
        input_states,
        results_table,
    )
    from lewm_serve.cli.episode_picture import draw_episodes
    from lewm_serve.cli.imagination import remember, watch
    from lewm_serve.cli.local_server import LocalServerError, local_server
    from lewm_serve.cli.views_picture import draw_views

    console = Console()
    try:
        environment = find_environment(env)
        output = output or Path("demo") / f"{environment.name}.gif"
        if output.suffix != ".gif":
            raise ValueError(f"--output: expected a .gif file, got {output}")
        has_map = isinstance(environment, TwoRoom)
        views = output.with_stem(f"{output.stem}-views") if has_map else output
        output.parent.mkdir(parents=True, exist_ok=True)
        for file in dict.fromkeys((output, views)):
            check_writable(file)
            check_writable(file.with_suffix(".png"))
        access = access_settings(
            server,
            api_key_file=api_key_file,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
        folder = None if model is None else resolve_folder(model)
        if folder is None and not server:
            folder = model_of_environment(environment.name)
        tasks = sample_episodes(
            environment,
            protocol or environment.demo_protocol,
            robots + LONE_ROBOTS,
            seed,
            plan_steps=replan_steps,
        )
        with ExitStack() as stack:
            if not server:
                console.print("starting the server")
                server = stack.enter_context(local_server(folder)).target
            client = stack.enter_context(PlannerClient(server, **access))
            name = None if folder is None else read_card(folder / CARD_FILE).name
            loaded = find_model(client, name, environment)
            console.print(f"{loaded.name} plans on {loaded.device}; recording frames for pictures")
            memory = remember(client, environment, loaded, seed=seed)
            console.print(f"{LONE_ROBOTS} robots drive one after another")
            watched, lone = watch(
                client, loaded, memory, tasks, range(robots, len(tasks)), seed=seed
            )
            console.print(f"{robots} robots drive at once")
            started = time.perf_counter()
            outcomes, _ = drive_with_model(
                client,
                loaded,
                tasks.first(robots),
                solver={},
                seed=seed,
                robots=robots,
                inputs=input_states(loaded, environment),
            )
            seconds = time.perf_counter() - started
        report = EvaluationReport.from_outcomes(tasks, outcomes)
        alone = EvaluationReport.from_outcomes(tasks, lone)
        table = results_table(f"{robots} robots at once", report, with_latency=False)
        p50, p99 = alone.plan_latency_p50_ms, alone.plan_latency_p99_ms
        latency = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        table.add_row("plan latency, one robot", f"{latency} ({alone.plans} plans)")
        speed = f"{report.plans / seconds:.0f} plans/s"
        table.add_row("throughput", f"{speed}, frames and simulation included")
        console.print(table)
        drawn: tuple[Path, ...] = draw_views(
            watched[:WATCHED_ROBOTS],
            title=f"{environment.name}: what the robots see and the model imagines",
            caption=f"a plan takes {p50:.0f} ms",
            output=views,
        )
        if has_map:
            found = "the other room" if tasks.protocol == CROSS_ROOM else "their goals"
            drawn += draw_episodes(
                tasks.first(robots),
                outcomes,
                title=f"{robots} robots find {found} from camera frames alone",
                caption=f"a plan takes {p50:.0f} ms; {speed}",
                output=output,
            )
    except (LocalServerError, OSError, PlannerError, ValueError) as error:
        typer.echo(f"lewm demo: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None
    console.print(f"see {', '.join(map(str, drawn))}")
    if report.success_rate < REQUIRED_SUCCESS:
        typer.echo(
            f"lewm demo: fewer than {REQUIRED_SUCCESS:.0%} of the goals were reached", err=True
        )
        raise typer.Exit(1)
