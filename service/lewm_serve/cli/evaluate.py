"""`lewm evaluate`: closed-loop episodes through the public API, or recorded episodes."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from lewm_serve.cli.messages import describe_error
from lewm_serve.cli.options import (
    ActionOption,
    ApiKeyFileOption,
    BudgetOption,
    CameraOption,
    ElitesOption,
    EnvironmentOption,
    GoalBy,
    HorizonOption,
    IterationsOption,
    ObjectiveOption,
    OffsetOption,
    PeriodOption,
    PlannerChoice,
    PlanStepsOption,
    SamplesOption,
    ServerOption,
    SettingOption,
    SolverOption,
    StateOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    access_settings,
    one_name,
    solver_settings,
)

OPTIONS_OF_DATA = ("camera", "action", "state", "period", "plans", "device")
SHARED_OPTIONS = ("model", "data", "output")


def evaluate(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(help="model folder, or embedded model; default: that of the environment"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="judge MODEL on held-out episodes of this recording, or of data that `lewm train` "
            "prepared; no simulator is needed"
        ),
    ] = None,
    camera: CameraOption = None,
    action: ActionOption = None,
    state: StateOption = None,
    period: PeriodOption = None,
    plans: Annotated[
        int | None,
        typer.Option(
            min=2, help="with --data: plans for each distance of goals; default: 20 to 100"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="with --data: auto, cpu, cuda or cuda:N")] = "auto",
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
    goal_by: Annotated[
        GoalBy,
        typer.Option(help="state: goals are the states that the model's probe reads, not frames"),
    ] = GoalBy.FRAME,
    hide_states: Annotated[
        bool,
        typer.Option(
            "--hide-states", help="send frames alone to a model that takes states beside them"
        ),
    ] = False,
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
    """Run episodes in an environment over gRPC, or judge a model on recorded episodes (--data).

    In an environment, camera frames are the only input, but for the goals of `--goal-by state` and
    the states that a model takes beside a frame. The model's card gives the solver settings that
    are left out. `--planner rest` and `--planner
    random` measure what is reached without a model.

    With --data, predictions, plans between recorded frames, latents, states and surprise are
    measured on held-out episodes, each with an interval and with baselines; see docs/judging.md.
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
        input_states,
        readable_states,
        results_table,
    )
    from lewm_serve.cli.local_server import LocalServerError, local_server

    try:
        _check_options(context, has_data=data is not None)
        if data is not None:
            from lewm_serve.cli.judge import JudgeOptions, judge_model
            from lewm_serve.cli.recorded_data import DataChoice, state_periods

            if model is None:
                raise ValueError("--data: expected a MODEL too")
            choice = DataChoice(
                path=data,
                camera=one_name(camera, "--camera"),
                action=one_name(action, "--action"),
                state=one_name(state, "--state"),
                periods=state_periods(period),
            )
            judge_model(JudgeOptions(resolve_folder(model), choice, plans, device, output))
            return
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
        if planner != PlannerChoice.MODEL and hide_states:
            raise ValueError(f"--hide-states: {planner} sees nothing")
        if planner != PlannerChoice.MODEL and goal_by == GoalBy.STATE:
            raise ValueError(f"--goal-by: {planner} has no goal")
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
                by_state = goal_by == GoalBy.STATE
                inputs = [] if hide_states else input_states(loaded, tasks.environment)
                outcomes, computed = drive_with_model(
                    client,
                    loaded,
                    tasks,
                    solver=settings,
                    seed=seed,
                    robots=robots,
                    goal_states=readable_states(loaded, tasks.environment) if by_state else None,
                    inputs=inputs,
                )
            computed["goal_by"] = goal_by.value
            name = loaded.name
            key = f"{tasks.protocol}-by-state" if by_state else tasks.protocol
            key += "-states-hidden" if hide_states else ""
        else:
            baseline = BASELINES[planner](tasks.environment, tasks.plan_steps)
            outcomes, computed = drive_with_baseline(baseline, tasks, seed=seed, robots=robots), {}
            name, key = planner.value, f"{tasks.protocol}-{planner}"
        report = EvaluationReport.from_outcomes(tasks, outcomes)
        has_model = planner == PlannerChoice.MODEL
        results = report.to_json() | {"planner": planner, "seed": seed, "robots": robots} | computed
        title = f"{name}, {report.environment}, {key if has_model else report.protocol}"
        Console().print(results_table(title, report, with_latency=has_model))
        if write and folder is not None and card is not None:
            checkpoint.write_card(folder, card.with_figures(**{key: results}))
        if output is not None:
            output.write_text(json.dumps(results, indent=2) + "\n")
    except (LocalServerError, OSError, PlannerError, ValueError) as error:
        typer.echo(f"lewm evaluate: {describe_error(error)}", err=True)
        raise typer.Exit(1) from None


def _check_options(context: typer.Context, *, has_data: bool) -> None:
    """Refuse options that would have no effect.

    Raises:
        ValueError: the message names the option.
    """
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        if name not in SHARED_OPTIONS and (name in OPTIONS_OF_DATA) != has_data:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: {'cannot be given with' if has_data else 'is for'} --data")
