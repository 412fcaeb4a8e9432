"""Recovery: does a plan between two recorded frames do what the robot did between them?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.judging.measure import Estimate, Measure, Rows, estimate, mean_of
from lewm_models.judging.prediction import evenly_spaced, roll_out, shuffled
from lewm_models.lewm import LeWM
from lewm_models.probe.fit import read_states
from lewm_models.probe.network import StateProbe, StateSpace
from lewm_models.recorded_sample import RecordedSample

Progress = Callable[[int, int], None]
"""Called after each plan with the number of plans done and in all."""


class Plan(Protocol):
    """A search by the model, such as its default one."""

    def __call__(self, start: Tensor, goal: Tensor, *, blocks: int, seed: int) -> Tensor:
        """Z-scored action blocks (blocks, A) from a latent (D,) to a goal (D,)."""
        ...


@dataclass(frozen=True)
class _Ways:
    """n starts, their goals some blocks later, and actions (n, T, A) of several kinds by name."""

    rows: Rows
    starts: Tensor
    goals: Tensor
    actions: Mapping[str, Tensor]
    units: NDArray[np.int64]
    blocks: int


def recovery_measures(
    model: LeWM,
    held_out: RecordedSample,
    plan: Plan,
    *,
    blocks: int,
    plans: int,
    action_dim: int,
    probe: StateProbe | None = None,
    space: StateSpace | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Measure]:
    """Compare plans from recorded frames to later ones with logged actions and with random ones.

    Random actions are those that were logged elsewhere. Four comparisons are made: the actions
    themselves (the mean action of a plan, since frames do not show the order), where the model
    believes that they lead, in latent space, and the same in the states that the probe reads.

    Args:
        model: in ``eval()`` mode, on any device.
        held_out: the recorded frames.
        plan: the search.
        blocks: how far away the goals are; the plans are as long.
        plans: how many plans are made, at most.
        action_dim: the values of one action.
        probe: reads states; None compares no states.
        space: its states.
        progress: see `Progress`.
    """
    rows = evenly_spaced(held_out.rows_before(blocks), plans)
    if len(rows) < 2:
        return []
    starts, goals = (held_out.latents[torch.from_numpy(part)] for part in (rows, rows + blocks))
    planned = []
    for number, (start, goal) in enumerate(zip(starts, goals, strict=True)):
        planned.append(plan(start, goal, blocks=blocks, seed=number))
        progress(number + 1, len(rows))
    logged = held_out.blocks_from(rows, blocks)
    ways = _Ways(
        rows=rows,
        starts=starts,
        goals=goals,
        actions={
            "planned": torch.stack(planned),
            "logged actions": logged,
            "random actions": logged[torch.from_numpy(shuffled(len(rows)))],
        },
        units=held_out.units[rows],
        blocks=blocks,
    )
    ends = {name: roll_out(model, starts, actions)[:, -1] for name, actions in ways.actions.items()}
    measures = [*_action_measures(ways, action_dim), _latent_measure(held_out, ways, ends)]
    if probe is not None and space is not None and held_out.states is not None:
        measures += _state_measures(held_out, ways, ends, probe, space)
    return measures


def _action_measures(ways: _Ways, action_dim: int) -> list[Measure]:
    """Error and correlation of the mean action of plans, in z-scored units."""
    means = {
        name: actions.reshape(len(actions), -1, action_dim).mean(dim=1).double().numpy()
        for name, actions in ways.actions.items()
    }
    logged = means["logged actions"]

    def error(of: NDArray[np.float64]) -> Estimate:
        squares = np.square(of - logged).mean(axis=1)
        return estimate(lambda rows: float(np.sqrt(squares[rows].mean())), ways.units)

    def correlation(of: NDArray[np.float64]) -> Estimate:
        return estimate(lambda rows: _correlation(of[rows], logged[rows]), ways.units)

    return [
        Measure(
            f"recovery_{ways.blocks}_action_error",
            error(means["planned"]),
            unit="deviations of the actions",
            better="lower",
            samples=len(logged),
            baselines={
                "random actions": error(means["random actions"]),
                "mean action": error(np.zeros_like(logged)),
            },
        ),
        Measure(
            f"recovery_{ways.blocks}_action_correlation",
            correlation(means["planned"]),
            unit="correlation",
            better="higher",
            samples=len(logged),
            baselines={"random actions": correlation(means["random actions"])},
        ),
    ]


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The correlation of values (n, A) and (n, A), each dimension centred; 0 without a spread."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum() / norm) if norm > 0 else 0.0


def _latent_measure(held_out: RecordedSample, ways: _Ways, ends: Mapping[str, Tensor]) -> Measure:
    """How far from the goal's latent actions end, by the model's roll-out."""
    variance = held_out.variance

    def error(of: Tensor) -> Estimate:
        return mean_of((of - ways.goals).square().sum(dim=1).numpy() / variance, ways.units)

    return Measure(
        f"recovery_{ways.blocks}_latent_error",
        error(ends["planned"]),
        unit="of the latents' variance",
        better="lower",
        samples=len(ways.rows),
        baselines={
            "logged actions": error(ends["logged actions"]),
            "random actions": error(ends["random actions"]),
            "stay": error(ways.starts),
        },
    )


def _state_measures(
    held_out: RecordedSample,
    ways: _Ways,
    ends: Mapping[str, Tensor],
    probe: StateProbe,
    space: StateSpace,
) -> list[Measure]:
    """How far from the goal's recorded states actions end, as the probe reads the roll-outs."""
    assert held_out.states is not None
    goals, starts = held_out.states[ways.rows + ways.blocks], held_out.states[ways.rows]
    is_known = np.isfinite(goals).all(axis=1) & np.isfinite(starts).all(axis=1)
    if not is_known.any():
        return []
    read = {name: read_states(probe, latents) for name, latents in ends.items()}
    read |= {"stay": starts.astype(np.float64), "goal's own frame": read_states(probe, ways.goals)}
    errors = {name: np.abs(space.differences(states, goals)) for name, states in read.items()}
    units = ways.units[is_known]
    return [
        Measure(
            f"recovery_{ways.blocks}_state_error_{name}",
            mean_of(errors["planned"][is_known, index], units),
            unit=f"of {name}",
            better="lower",
            samples=int(is_known.sum()),
            baselines={
                baseline: mean_of(errors[baseline][is_known, index], units)
                for baseline in errors
                if baseline != "planned"
            },
        )
        for index, name in enumerate(space.names)
    ]
