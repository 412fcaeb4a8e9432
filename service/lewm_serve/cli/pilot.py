"""`lewm pilot`: is a model good enough to be tried on the robot? A report with a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lewm_serve.cli.messages import describe_error
from lewm_serve.cli.options import (
    ActionOption,
    CameraOption,
    PeriodOption,
    StateOption,
    one_name,
)


def pilot(
    data: Annotated[Path, typer.Option(help="recording of the robot; see docs/recordings.md")],
    model: Annotated[
        Path | None,
        typer.Option(help="model folder, or embedded model; default: one is trained on the data"),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            max=1e3,
            metavar="HZ",
            help="plans a second of a robot; default: one per action block at the recording's "
            "rate, or 2",
        ),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file of thresholds; default: see docs/pilot.md"),
    ] = None,
    kpi: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML or JSON file of business figures"),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="folder of report.html, report.json and a model that is trained")
    ] = Path("pilot"),
    camera: CameraOption = None,
    action: ActionOption = None,
    state: StateOption = None,
    period: PeriodOption = None,
    plans: Annotated[
        int | None,
        typer.Option(min=2, help="plans of each measurement; default: 20 to 100 by the solver"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="where models are trained and judged: auto, cpu, cuda or cuda:N")
    ] = "auto",
) -> None:
    """Write a report on a recording and a model, with a verdict: go, go with limits or no-go.

    The recording is inspected and the model judged on held-out episodes, also with a disturbed
    camera. A server on this machine is measured. Every check has a threshold; see docs/pilot.md.

    The exit status is 0 for go, 3 for go with limits, 4 for no-go, and 1 if there is no verdict.
    """
    from lewm_client import PlannerError
    from lewm_models.checkpoint import resolve_folder
    from lewm_serve.cli.local_server import LocalServerError
    from lewm_serve.cli.pilot_business import read_kpi
    from lewm_serve.cli.pilot_checks import EXIT_CODES, read_thresholds
    from lewm_serve.cli.pilot_run import PilotOptions, run_pilot
    from lewm_serve.cli.recorded_data import DataChoice, state_periods
    from lewm_serve.cli.train import training_device

    try:
        options = PilotOptions(
            data=DataChoice(
                path=data,
                camera=one_name(camera, "--camera"),
                action=one_name(action, "--action"),
                state=one_name(state, "--state"),
                periods=state_periods(period),
            ),
            model=None if model is None else resolve_folder(model),
            rate_hz=rate,
            thresholds=read_thresholds(thresholds),
            kpi=None if kpi is None else read_kpi(kpi),
            output=output,
            plans=plans,
            device=training_device(device),
        )
        verdict = run_pilot(options)
    except (FloatingPointError, LocalServerError, OSError, PlannerError, ValueError) as error:
        typer.echo(f"lewm pilot: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(EXIT_CODES[verdict])
