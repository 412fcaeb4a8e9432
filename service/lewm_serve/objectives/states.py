"""Goals given by states, and regions of states to avoid. A probe reads the states from latents.

Axes as in `lewm_serve.objectives`; F standardised values of a probe, n states that a goal names.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lewm_models.probe.network import StateProbe
from lewm_serve.objectives import ROWS_PER_CALL, STATE_OBJECTIVE, Objective
from lewm_serve.objectives.distance import use_one_thread
from lewm_serve.objectives.latent import LatentObjective
from lewm_serve.objectives.regions import Region


class StateReader:
    """The probe of a model, beside its backend.

    Args:
        probe: the probe; a copy is moved to the device.
        device: where the backend computes.
    """

    def __init__(self, probe: StateProbe, device: torch.device) -> None:
        self.probe = copy.deepcopy(probe).eval().requires_grad_(False).to(device)
        self.device = device

    def in_units(self, latents: Tensor) -> Tensor:
        """The states (…, S) that latents (…, D) show, on the CPU."""
        use_one_thread(self.device, latents)
        return self.probe.in_units(self.probe(latents.to(self.device))).cpu()


@dataclass(frozen=True)
class StateGoal:
    """A goal by some of the states: their indexes (n,), and their values (n,) in their units."""

    indexes: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class StatePath:
    """The states on the way of a plan, in their units.

    Attributes:
        start: the states (S,) before the plan.
        end: the states (S,) after it.
        violations: the steps, from 0 on, that lead into a region or are in one.
    """

    start: tuple[float, ...]
    end: tuple[float, ...]
    violations: tuple[int, ...]


@dataclass(frozen=True)
class StateObjective:
    """The squared error of standardised states from a goal's, or another cost, and that of regions.

    The error is that at the end and the mean on the way. By the end alone, a goal that is nearer
    than the horizon would be reached at the end of the plan only; by the mean alone, no way would
    lead around a wall.

    A step that leads into a region costs its weight × (1 + depth) in the unit of the other cost: 1
    for states and for the learned distance, and the total variance of latents for theirs. The
    search keeps the margins of regions too.

    See `Objective`. At most `ROWS_PER_CALL` candidates are scored in one call on a CPU.

    Attributes:
        reader: reads the states.
        goal: the goal; None: the goal is a frame, and ``base`` is its cost.
        base: the cost of a goal that is a frame.
        regions: what is avoided.
        start: the latent (D,) at which the way of all candidates begins; see `starting_at`.
    """

    reader: StateReader
    goal: StateGoal | None = None
    base: Objective | None = None
    regions: tuple[Region, ...] = ()
    start: Tensor | None = None

    @property
    def name(self) -> str:
        """The name of the cost, for measurements of its time."""
        name = STATE_OBJECTIVE if self.base is None else self.base.name
        return f"{name}, avoid" if self.regions else name

    def starting_at(self, latent: Tensor) -> StateObjective:
        """The costs of ways from this latent (D,) on."""
        return replace(self, start=latent)

    def __call__(self, predicted: Tensor, goals: Tensor) -> Tensor:
        """See `Objective`. ``goals`` are those of ``base``; for a goal by states they are empty."""
        use_one_thread(self.reader.device, predicted)
        on_cpu = self.reader.device.type == "cpu"
        parts = torch.split(predicted, ROWS_PER_CALL, dim=-3) if on_cpu else [predicted]
        return torch.cat([self._costs(part, goals) for part in parts], dim=-1)

    def path(self, predicted: Tensor) -> StatePath:
        """What the predicted latents (T, D) of one plan show."""
        states = self._states_from_start(predicted)
        periods = self.reader.probe.periods.cpu()
        entered = [
            region.depths(states[:-1], states[1:], periods=periods) > 0 for region in self.regions
        ]
        steps = torch.stack(entered).any(dim=0).nonzero().flatten().tolist() if entered else []
        return StatePath(tuple(states[0].tolist()), tuple(states[-1].tolist()), tuple(steps))

    def _costs(self, predicted: Tensor, goals: Tensor) -> Tensor:
        """The costs (…, S) of predicted latents (…, S, T, D)."""
        probe, device = self.reader.probe, predicted.device
        values = probe(predicted.to(self.reader.device))
        if self.goal is not None:
            costs = self._goal_costs(values).to(device)
        else:
            assert self.base is not None
            costs = self.base(predicted, goals)
        if self.regions:
            costs = costs + self._unit() * self._penalties(probe.in_units(values)).to(device)
        return costs

    def _goal_costs(self, values: Tensor) -> Tensor:
        """The costs (…, S) of standardised states (…, S, T, F)."""
        assert self.goal is not None
        probe = self.reader.probe
        indexes = list(self.goal.indexes)
        states = probe.state_mean.clone()
        states[indexes] = states.new_tensor(self.goal.values)
        # A state with a period has a second value, after those of all states.
        second = (len(states) + (probe.periods > 0).cumsum(0) - 1).tolist()
        periodic = [second[index] for index in indexes if probe.periods[index] > 0]
        chosen = indexes + periodic
        errors = values[..., chosen] - probe.standardise(states)[chosen]
        squares = errors.square().sum(dim=-1)
        return squares[..., -1] + squares.mean(dim=-1)

    def _penalties(self, states: Tensor) -> Tensor:
        """The weighted depths (…, S) of ways through regions, for states (…, S, T, S) in units."""
        assert self.start is not None
        probe = self.reader.probe
        start = probe.in_units(probe(self.start.to(self.reader.device)))
        first = start.expand_as(states[..., :1, :])
        starts = torch.cat([first, states[..., :-1, :]], dim=-2)
        total = states.new_zeros(states.shape[:-2])
        for region in self.regions:
            depths = region.depths(starts, states, periods=probe.periods, spreads=probe.state_std)
            total = total + region.weight * torch.where(depths > 0, 1 + depths, 0.0).sum(dim=-1)
        return total

    def _unit(self) -> float:
        """What the costs of regions are multiplied with, so that they weigh the same everywhere."""
        if isinstance(self.base, LatentObjective):
            return float(self.reader.probe.latent_std.square().sum())
        return 1.0

    def _states_from_start(self, predicted: Tensor) -> Tensor:
        """The states (1 + T, S) in their units, before the first step and after each one."""
        assert self.start is not None
        return self.reader.in_units(torch.cat([self.start.unsqueeze(0), predicted]))
