"""`lewm capacity`: how many robots this machine carries, and what limits first."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lewm_serve.cli.messages import WIDTH_WITHOUT_TERMINAL, describe_error

if TYPE_CHECKING:
    from lewm_serve.cli.capacity_run import Report

DEFAULT_RATES_HZ = (2.0, 10.0)


def capacity(
    model: Annotated[
        Path | None,
        typer.Option(help="model folder, or embedded model; default: the embedded Two-Room model"),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01, max=1000, metavar="HZ", help="plans a second of a robot; repeat it for more"
        ),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="solvers to measure; default: all, the card's first"),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(min=1, help="when a plan has to arrive; default: before the next one is due"),
    ] = None,
    camera: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT", help="size of the robots' JPEG images; default: the model's"
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=600, help="how long each load is measured")
    ] = 5.0,
    price: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="PER_HOUR", help="price of an hour of this machine, for costs of plans"
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for programs")] = None,
) -> None:
    """Measure how many robots a server on this machine carries, by solver and rate.

    A server is started on free ports, and robots ask it for plans of new frames through gRPC, from
    another process on the same machine. See docs/scaling.md.
    """
    from lewm_client import PlannerError
    from lewm_models.checkpoint import EMBEDDED_MODEL, resolve_folder
    from lewm_serve.cli.local_server import LocalServerError

    try:
        report = _measure(
            EMBEDDED_MODEL if model is None else resolve_folder(model),
            rates_hz=rate or list(DEFAULT_RATES_HZ),
            solvers=solver,
            deadline_s=None if deadline_ms is None else deadline_ms / 1000,
            size=None if camera is None else _size(camera),
            seconds=seconds,
        )
        if output is not None:
            output.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    except (LocalServerError, OSError, PlannerError, RuntimeError, ValueError) as error:
        typer.echo(f"lewm capacity: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None
    _print(report, price)


def _size(camera: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", camera)
    if found is None:
        raise ValueError(f"--camera: expected WIDTHxHEIGHT such as 640x480, got {camera!r}")
    return int(found[1]), int(found[2])


def _measure(
    folder: Path,
    *,
    rates_hz: list[float],
    solvers: list[str] | None,
    deadline_s: float | None,
    size: tuple[int, int] | None,
    seconds: float,
) -> Report:
    from rich.console import Console

    from lewm_models import checkpoint
    from lewm_serve.cli.capacity_run import Report, measure_capacity, pictures_of
    from lewm_serve.cli.local_server import local_server
    from lewm_serve.cli.process_usage import tree_peak_mib
    from lewm_serve.cli.robot_load import load_process
    from lewm_serve.solvers import SOLVERS, solver_names

    loaded = checkpoint.load(folder)
    card = loaded.card
    for name in solvers or ():
        if name not in SOLVERS:
            raise ValueError(f"--solver: expected one of {', '.join(SOLVERS)}, got {name!r}")
    with (
        Console(stderr=True).status("starting the server") as status,
        local_server(folder) as server,
        load_process() as process,
    ):
        speeds, capacities = measure_capacity(
            server,
            process,
            solver=card.solver,
            images=pictures_of(loaded, size),
            solvers=solvers or solver_names(card.solver.name),
            rates_hz=rates_hz,
            deadline_s=deadline_s,
            seconds=seconds,
            progress=status.update,
        )
        memory_mib = tree_peak_mib(server.pid)
    return Report(
        model=card.name,
        cores=len(os.sched_getaffinity(0)),
        image_size=size or (card.config.image_size, card.config.image_size),
        peak_memory_mib=memory_mib,
        speeds=tuple(speeds),
        capacities=tuple(capacities),
    )


def _print(report: Report, price: float | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from lewm_serve.cli.capacity_run import (
        IN_TIME_SHARE,
        LIMITS,
        SECONDS_AN_HOUR,
        UNPACED_ROBOTS,
    )
    from lewm_serve.cli.process_usage import NO_ENERGY

    width, height = report.image_size
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    console.print(
        f"{report.model} on {report.cores} cores, frames of {width} x {height} px, "
        f"{report.peak_memory_mib} MiB at most",
        highlight=False,
    )
    table = Table("solver", "candidates", "p50 ms", "p99 ms", "plans/s", box=None)
    for speed in report.speeds:
        table.add_row(
            speed.solver,
            f"{speed.candidates}",
            f"{1000 * speed.alone_p50_s:.1f}",
            f"{1000 * speed.alone_p99_s:.1f}",
            f"{speed.plans_per_s:.1f}",
        )
    console.print(table)
    console.print(
        f"p50 and p99 of one robot; plans/s of {UNPACED_ROBOTS} robots without a pace\n",
        highlight=False,
    )
    costs = () if price is None else ("per robot-hour", "per 1,000 plans")
    has_energy = all(found.usage.energy_j is not None for found in report.capacities)
    energy = ("J a plan",) if has_energy else ()
    names = ("solver", "Hz", "robots", "p50 ms", "p99 ms", "CPU ms a plan", *energy, *costs)
    table = Table(*names, "limit", box=None)
    for found in report.capacities:
        row = [found.solver, f"{found.rate_hz:g}", f"{found.robots}"]
        row += [
            "-" if value is None else f"{1000 * value:.1f}" for value in (found.p50_s, found.p99_s)
        ]
        row.append(f"{1000 * found.processor_s:.1f}")
        if has_energy:
            row.append(f"{found.usage.energy_j:.2f}")
        if price is not None and found.robots:
            row.append(f"{price / found.robots:.4f}")
            row.append(f"{1000 * price / (found.plans_per_s * SECONDS_AN_HOUR):.4f}")
        elif price is not None:
            row += ["-", "-"]
        table.add_row(*row, found.limit)
    console.print(table)
    console.print(
        f"robots: at least {IN_TIME_SHARE:.0%} of their plans were complete and in time",
        highlight=False,
    )
    for limit in dict.fromkeys(found.limit for found in report.capacities):
        console.print(f"limit: {limit}: {LIMITS[limit]}", highlight=False)
    if not has_energy:
        console.print(NO_ENERGY, highlight=False)
