"""Closed-loop episodes over gRPC, for `lewm demo` and `lewm evaluate`."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from google.protobuf.json_format import MessageToDict
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lewm_client import Driver, FrameLike, PlannerClient, PlanResponse, Setback
from lewm_models.environments.environment import Environment, FloatArray, Frame
from lewm_models.evaluation.episode import Actions, Outcome, Planner, run_episodes
from lewm_models.evaluation.protocol import Episodes
from lewm_models.evaluation.report import EvaluationReport
from lewm_models.probe.states import states_of_environment
from lewm_serve.api.responses import ModelDescription

PLAN_TIMEOUT_S = 600.0
"""The timeout of a call is also its plan's deadline. An evaluation measures complete plans."""


MIN_R2 = 0.5
"""Of a state that is given as a goal, the probe reads at least this share of the variance."""


class RemotePlanner:
    """Plans for one robot on its way to one goal; see `lewm_models.evaluation.episode.Planner`.

    The robot executes the first ``plan_steps`` actions of each plan; see `lewm_client.Driver`. A
    call that fails ends the episode with its error, because the planner is what is measured.

    Args:
        client: the server's client.
        plan_steps: how many actions of each plan are executed.
        model: the model's name; None: the server's default.
        solver: settings of the search.
        include: see `PlannerClient.plan`.
        goal_states: the names of all states, and None for those that a goal does not give; None:
            the goal is a frame.
        inputs: the places of the states that the model sees beside a frame, see `input_states`.

    Attributes:
        plans: the server's answers.
    """

    def __init__(
        self,
        client: PlannerClient,
        plan_steps: int,
        *,
        model: str | None = None,
        solver: Mapping[str, Any] | None = None,
        include: Sequence[str] = (),
        goal_states: Sequence[str | None] | None = None,
        inputs: Sequence[int] = (),
    ) -> None:
        self._inputs = list(inputs)
        self._vector: FloatArray | None = None
        self._goal_vector: FloatArray | None = None
        self._goal_states = goal_states
        self._goal_state: dict[str, float] | None = None
        self._client = client
        self._plan_steps = plan_steps
        self._plan_arguments = {"model": model, "solver": solver, "include": include}
        self._driver: Driver | None = None
        self.plans: list[PlanResponse] = []

    def tell_goal(self, state: FloatArray) -> None:
        """The goal's state (S,). Plans get it in place of its frame if it has names, else what the
        model sees of it beside the frame."""
        self._goal_vector = self._seen(state)
        if self._goal_states is not None:
            named = zip(self._goal_states, state.tolist(), strict=True)
            self._goal_state = {name: value for name, value in named if name is not None}

    def tell_state(self, state: FloatArray) -> None:
        """The robot's state (S,), of which the model may see some numbers beside the next frame."""
        self._vector = self._seen(state)

    def _seen(self, state: FloatArray) -> FloatArray | None:
        """What the model sees of a state."""
        return state[self._inputs] if self._inputs else None

    def __call__(self, frame: Frame, goal_frame: Frame, seed: int) -> tuple[Actions, float]:
        """The next actions and the latency of the plan in seconds.

        Raises:
            PlannerError: there is no plan.
        """
        image = _with_vector(to_png(frame), self._vector)
        if self._driver is None:
            self._driver = Driver(
                self._client,
                self._goal_state or _with_vector(to_png(goal_frame), self._goal_vector),
                steps=self._plan_steps,
                timeout_s=PLAN_TIMEOUT_S,
                local=_raise_error,
                settings=self._plan_arguments,
            )
        started = time.perf_counter()
        move = self._driver.step(image, seed=seed)
        seconds = time.perf_counter() - started
        if move.plan is not None:
            self.plans.append(move.plan)
        return move.actions, seconds


def _raise_error(setback: Setback) -> Actions:
    raise setback.error


def _with_vector(image: bytes, vector: FloatArray | None) -> FrameLike:
    return image if vector is None else (image, vector)


def to_png(frame: Frame) -> bytes:
    """A frame (H, W, 3) uint8 as a PNG image."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def find_model(
    client: PlannerClient, name: str | None, environment: Environment
) -> ModelDescription:
    """The server's model of this name, or its default, which must have the actions of this kind.

    Raises:
        ValueError: there is no such model, or it has another action space.
        PlannerError: the server does not answer.
    """
    models = client.models()
    matching = [model for model in models if (model.name == name if name else model.default)]
    if not matching:
        wanted = name or "by default"
        raise ValueError(f"no model {wanted}, the server has {[model.name for model in models]}")
    model = matching[0]
    card = MessageToDict(model.card)
    if card["action_dim"] != environment.action_dim:
        raise ValueError(
            f"{model.name}: expected action_dim {environment.action_dim} ({environment.name}), got "
            f"{card['action_dim']:g}"
        )
    return ModelDescription(
        name=model.name,
        version=model.version,
        default=model.default,
        backend=model.backend,
        device=model.device,
        precision=model.precision,
        card=card,
    )


def drive_with_model(
    client: PlannerClient,
    model: ModelDescription,
    episodes: Episodes,
    *,
    solver: Mapping[str, Any],
    seed: int,
    robots: int,
    goal_states: Sequence[str | None] | None = None,
    inputs: Sequence[int] = (),
) -> tuple[list[Outcome], dict[str, Any]]:
    """Run all episodes with plans of a server, with a progress bar on standard error.

    ``goal_states`` and ``inputs`` are those of `RemotePlanner`.

    Returns:
        The outcomes, and what computed the plans: solver, backend, device and precision.
    """
    planners: list[RemotePlanner] = []

    def make_planner() -> RemotePlanner:
        planner = RemotePlanner(
            client,
            episodes.plan_steps,
            model=model.name,
            solver=solver,
            goal_states=goal_states,
            inputs=inputs,
        )
        planners.append(planner)
        return planner

    with _progress(episodes) as show:
        outcomes = run_episodes(
            make_planner,
            episodes,
            seed=seed,
            robots=robots,
            tell_goal=RemotePlanner.tell_goal,
            tell_state=RemotePlanner.tell_state,
            on_outcome=show,
        )
    plan = planners[0].plans[0]
    return outcomes, {
        "solver": plan.solver,
        "backend": plan.backend,
        "device": model.device,
        "precision": plan.precision,
    }


def input_states(model: ModelDescription, environment: Environment) -> list[int]:
    """The places, among an environment's states, of those that the model sees beside a frame.

    Raises:
        ValueError: the environment does not have them.
    """
    given = model.card.get("state_input")
    if given is None:
        return []
    known = states_of_environment(environment).names
    if missing := [name for name in given["names"] if name not in known]:
        raise ValueError(
            f"--env {environment.name}: {model.name} takes the state {missing[0]}, expected one of "
            f"{', '.join(known)}; --hide-states drives it by frames alone"
        )
    return [known.index(name) for name in given["names"]]


def readable_states(model: ModelDescription, environment: Environment) -> list[str | None]:
    """The names of an environment's states, and None for those that the model's probe cannot read.

    Raises:
        ValueError: the model has no probe that reads any of them.
    """
    probe = model.card.get("probe") or {"states": [], "r2": []}
    r2 = dict(zip(probe["states"], probe["r2"], strict=True))
    names = [name if r2.get(name, 0.0) >= MIN_R2 else None for name in environment.state_names]
    if not any(names):
        raise ValueError(
            f"--goal-by state: {model.name} has no probe that reads states of {environment.name}; "
            f"fit one with lewm models probe MODEL --env {environment.name}"
        )
    return names


def drive_with_baseline(
    baseline: Planner, episodes: Episodes, *, seed: int, robots: int
) -> list[Outcome]:
    """Run all episodes with a planner that needs no frames, with a progress bar."""
    with _progress(episodes) as show:
        return run_episodes(
            lambda: baseline,
            episodes,
            seed=seed,
            robots=robots,
            with_frames=False,
            on_outcome=show,
        )


@contextmanager
def _progress(episodes: Episodes) -> Iterator[Callable[[Outcome], None]]:
    """A progress bar on standard error; the function counts an outcome."""
    torch.set_num_threads(1)  # the simulation is small, and the server needs the cores
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    reached = 0
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("0 reached", total=len(episodes))

        def show(outcome: Outcome) -> None:
            nonlocal reached
            reached += outcome.reached
            progress.update(task, advance=1, description=f"{reached} reached")

        yield show


def results_table(title: str, report: EvaluationReport, *, with_latency: bool = True) -> Table:
    """The results of an evaluation, one per line."""
    low, high = report.interval_95
    p50, p99 = report.plan_latency_p50_ms, report.plan_latency_p99_ms
    table = Table(title=title, title_justify="left", show_header=False)
    ahead = "" if report.offset is None else f"{report.offset} steps ahead, "
    table.add_row("goals", f"{ahead}budget {report.budget} steps")
    table.add_row("reached", f"{report.successes} of {report.episodes}")
    table.add_row("success", f"{report.success_rate:.1%} (95 %: {low:.1%} to {high:.1%})")
    if with_latency:
        table.add_row("plan latency", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms ({report.plans} plans)")
    if report.steps_mean is not None:
        steps = f"mean {report.steps_mean:.1f}, median {report.steps_median:g}"
        table.add_row("steps to the goal", steps)
    if report.detour_median is not None:
        table.add_row("way", f"{report.detour_median:.2f} × the shortest one (median)")
    return table


def check_writable(path: Path) -> None:
    """Raise the `OSError` now that writing the file later would raise. Leaves no file behind."""
    existed = path.exists()
    with path.open("ab"):
        pass
    if not existed:
        path.unlink()
