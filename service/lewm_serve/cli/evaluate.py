"""`lewm evaluate`: closed-loop episodes through the public API."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from lewm_serve.cli.messages import describe_error
from lewm_serve.cli.options import (
    ApiKeyFileOption,
    BudgetOption,
    ElitesOption,
    EnvironmentOption,
    HorizonOption,
    IterationsOption,
    ObjectiveOption,
    OffsetOption,
    PlannerChoice,
    PlanStepsOption,
    SamplesOption,
    ServerOption,
    SettingOption,
    SolverOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    access_settings,
    solver_settings,
)


def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(help="model folder, or embedded model; default: that of the environment"),
    ] = None,
    env: EnvironmentOption = None,
    protocol: Annotated[
        str, typer.Option(help="kind of episodes, one of the environment's")
    ] = "paper",
    offset: OffsetOption = None,
    budget: BudgetOption = None,
    plan_steps: PlanStepsOption = None,
    planner: Annotated[
        PlannerChoice,
        typer.Option(help="what is measured; rest and random need no model and no server"),
    ] = PlannerChoice.MODEL,
    episodes: Annotated[int, typer.Option(min=1, help="number of episodes")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="seed of the episodes and their plans")] = 0,
    robots: Annotated[int, typer.Option(min=1, help="episodes that run at once")] = 4,
    server: ServerOption = None,
    api_key_file: ApiKeyFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    solver: SolverOption = None,
    samples: SamplesOption = None,
    iterations: IterationsOption = None,
    elites: ElitesOption = None,
    horizon: HorizonOption = None,
    objective: ObjectiveOption = None,
    setting: SettingOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="write the results to the model's card")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="write the results to this file too"),
    ] = None,
) -> None:
    """Run episodes in an environment over gRPC, with camera frames as the only input.

    The model's card gives the solver settings that are left out. `--planner rest` and `--planner
    random` measure what is reached without a model.
    """
    from rich.console import Console

    from lewm_client import PlannerClient, PlannerError
    from lewm_models import checkpoint
    from lewm_models.card import read_card
    from lewm_models.checkpoint import model_of_environment, resolve_folder
    from lewm_models.environments.registry import find_environment
    from lewm_models.evaluation.baselines import BASELINES
    from lewm_models.evaluation.protocol import sample_episodes
    from lewm_models.evaluation.report import EvaluationReport
    from lewm_serve.cli.closed_loop import (
        check_writable,
        drive_with_baseline,
        drive_with_model,
        find_model,
        results_table,
    )
    from lewm_serve.cli.local_server import LocalServerError, local_server

    try:
        environment = find_environment(env)
        folder = None if model is None else resolve_folder(model)
        if folder is None and not server and planner == PlannerChoice.MODEL:
            folder = model_of_environment(environment.name)
        access = access_settings(
            server,
            api_key_file=api_key_file,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
        settings = solver_settings(
            solver=solver,
            samples=samples,
            iterations=iterations,
            elites=elites,
            horizon=horizon,
            objective=objective,
            setting=setting,
        )
        if planner != PlannerChoice.MODEL and (server or settings):
            raise ValueError(f"--planner: {planner} has no server and no solver")
        card = None if folder is None else read_card(folder / checkpoint.CARD_FILE)
        if write and card is None:
            raise ValueError("--write: expected a MODEL whose card can be written")
        if write and folder is not None:
            check_writable(folder / checkpoint.CARD_FILE)
        if output is not None:
            check_writable(output)
        tasks = sample_episodes(
            environment,
            protocol,
            episodes,
            seed,
            offset=offset,
            budget=budget,
            plan_steps=plan_steps,
        )
        if planner == PlannerChoice.MODEL:
            with ExitStack() as stack:
                target = server or stack.enter_context(local_server(folder)).target
                client = stack.enter_context(PlannerClient(target, **access))
                loaded = find_model(client, None if card is None else card.name, tasks.environment)
                if write and folder is not None and loaded.version != checkpoint.version(folder):
                    raise ValueError(f"{target} serves another version of {loaded.name}")
                outcomes, computed = drive_with_model(
                    client, loaded, tasks, solver=settings, seed=seed, robots=robots
                )
            name, key = loaded.name, tasks.protocol
        else:
            baseline = BASELINES[planner](tasks.environment, tasks.plan_steps)
            outcomes, computed = drive_with_baseline(baseline, tasks, seed=seed, robots=robots), {}
            name, key = planner.value, f"{tasks.protocol}-{planner}"
        report = EvaluationReport.from_outcomes(tasks, outcomes)
        results = report.to_json() | {"planner": planner, "seed": seed, "robots": robots} | computed
        title = f"{name}, {report.environment}, {report.protocol}"
        has_model = planner == PlannerChoice.MODEL
        Console().print(results_table(title, report, with_latency=has_model))
        if write and folder is not None and card is not None:
            checkpoint.write_card(folder, card.with_figures(**{key: results}))
        if output is not None:
            output.write_text(json.dumps(results, indent=2) + "\n")
    except (LocalServerError, OSError, PlannerError, ValueError) as error:
        typer.echo(f"lewm evaluate: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None
