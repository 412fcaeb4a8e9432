"""The tasks of a measurement: starts and goals of a protocol, the budget, how often to plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lewm_models.environments.environment import (
    Environment,
    EvaluationProtocol,
    FloatArray,
    Pairs,
    evaluation_seed,
)


@dataclass(frozen=True)
class Episodes:
    """N tasks in an environment.

    Attributes:
        environment: where they take place.
        protocol: the name of this kind of task, see `sample_episodes`.
        starts: states (N, S).
        goals: states (N, S).
        budget: the steps after which an episode ends.
        plan_steps: the actions of a plan that are executed before the next plan.
        offset: the steps from a start to its goal on a trajectory of the data policy; None if they
            were drawn in another way.
    """

    environment: Environment
    protocol: str
    starts: FloatArray
    goals: FloatArray
    budget: int
    plan_steps: int
    offset: int | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def first(self, count: int) -> Episodes:
        """The first ``count`` tasks."""
        return replace(self, starts=self.starts[:count], goals=self.goals[:count])


def sample_episodes(
    environment: Environment,
    protocol: str,
    count: int,
    seed: int,
    *,
    offset: int | None = None,
    budget: int | None = None,
    plan_steps: int | None = None,
) -> Episodes:
    """The first ``count`` tasks of a seed. They do not depend on the number of tasks.

    Args:
        environment: where they take place.
        protocol: one of the environment's.
        count: N.
        seed: 0 to 2³¹ − 1. Training with the same seed gives other episodes.
        offset: replaces the protocol's. The budget grows in proportion, unless it is given.
        budget: replaces the protocol's.
        plan_steps: replaces the protocol's.

    Returns:
        Tasks whose `protocol` is the protocol's name, or says what was replaced.

    Raises:
        ValueError: the message names the option.
    """
    if count < 1:
        raise ValueError(f"episodes: expected at least 1, got {count}")
    for option, value in (("offset", offset), ("budget", budget), ("plan-steps", plan_steps)):
        if value is not None and value < 1:
            raise ValueError(f"--{option}: expected at least 1, got {value}")
    known = environment.protocols
    if protocol not in known:
        raise ValueError(f"--protocol: {environment.name} has {', '.join(known)}, got {protocol!r}")
    settings = _changed(known[protocol], protocol, offset, budget, plan_steps)
    name = _name(protocol, known[protocol], settings)
    drawing_seed = evaluation_seed(seed)
    if settings.offset is None:
        parts = environment.draw_pairs(protocol, drawing_seed)
    else:
        parts = environment.pairs_on_trajectories(settings.offset, drawing_seed)
    starts, goals = _first(parts, count, f"{environment.name}, {name}")
    return Episodes(
        environment=environment,
        protocol=name,
        starts=starts,
        goals=goals,
        budget=settings.budget,
        plan_steps=settings.plan_steps,
        offset=settings.offset,
    )


def _changed(
    settings: EvaluationProtocol,
    protocol: str,
    offset: int | None,
    budget: int | None,
    plan_steps: int | None,
) -> EvaluationProtocol:
    if offset is not None:
        if settings.offset is None:
            raise ValueError(f"--offset: {protocol} draws its goals in another way")
        proportional = settings.budget * offset // settings.offset
        settings = replace(settings, offset=offset, budget=proportional)
    return replace(
        settings,
        budget=budget or settings.budget,
        plan_steps=plan_steps or settings.plan_steps,
    )


def _name(protocol: str, usual: EvaluationProtocol, settings: EvaluationProtocol) -> str:
    """The protocol's name, or the settings that make it another one: "offset-100-budget-150"."""
    if settings == usual:
        return protocol
    parts = [protocol] if settings.offset is None else [f"offset-{settings.offset}"]
    parts.append(f"budget-{settings.budget}")
    if settings.plan_steps != usual.plan_steps:
        parts.append(f"plan-steps-{settings.plan_steps}")
    return "-".join(parts)


MAX_EMPTY_PARTS = 100
"""After so many parts without a pair there is none: every start is at its goal."""


def _first(parts: Iterator[Pairs], count: int, of: str) -> Pairs:
    """The first ``count`` pairs.

    Raises:
        ValueError: there are none.
    """
    taken: list[Pairs] = []
    found = empty = 0
    while found < count:
        starts, goals = next(parts)
        empty = 0 if len(starts) else empty + 1
        if empty == MAX_EMPTY_PARTS:
            raise ValueError(f"{of}: every start is at its goal already")
        taken.append((starts, goals))
        found += len(starts)
    starts, goals = (np.concatenate(column)[:count] for column in zip(*taken, strict=True))
    return starts, goals
