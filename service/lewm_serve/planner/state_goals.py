"""Goals given by states and regions to avoid: what they mean for the probe of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lewm_models.card import StateProbeCard
from lewm_serve.api.requests import PlanRequest, Region
from lewm_serve.api.responses import PlanStates
from lewm_serve.errors import InvalidRequest
from lewm_serve.objectives import Objective
from lewm_serve.objectives.regions import Region as ProbeRegion
from lewm_serve.objectives.states import StateGoal, StateObjective, StatePath
from lewm_serve.registry.registry import LoadedModel

RANGE_TOLERANCE = 0.05
"""How far a goal may lie outside of the states that the probe was fitted to, as a share of their
range. Beyond that, a probe reads anything."""

ERRORS_OF_MARGIN = 2.0
"""The margin around a region, in mean errors of the probe."""


def state_objective(
    model: LoadedModel, request: PlanRequest, base: Objective | None
) -> StateObjective:
    """The objective of a request whose goal is given by states, or that avoids regions.

    Args:
        model: the model.
        request: the request.
        base: the cost of a goal that is a frame; None for a goal by states.

    Raises:
        InvalidRequest: the model has no probe, or a state is unknown or out of range.
    """
    field = "avoid" if request.goal.state is None else "goal.state"
    described = model.card.probe
    if described is None or model.probe is None:
        raise InvalidRequest(
            "invalid_choice",
            field,
            received=request.avoid if request.goal.state is None else request.goal.state,
            expected=f"a frame as goal and no regions: {model.name} has no probe; "
            "`lewm models probe MODEL DATA` fits one",
        )
    goal = None
    if request.goal.state is not None:
        goal = _goal(described, request.goal.state)
    return StateObjective(
        reader=model.probe,
        goal=goal,
        base=base,
        regions=tuple(
            _region(described, region, f"avoid[{index}]")
            for index, region in enumerate(request.avoid)
        ),
    )


def name_states(model: LoadedModel, path: StatePath) -> PlanStates:
    """The states at the ends of a way by their names."""
    assert model.card.probe is not None
    names = model.card.probe.states
    return PlanStates(
        start=dict(zip(names, path.start, strict=True)),
        end=dict(zip(names, path.end, strict=True)),
    )


def _goal(probe: StateProbeCard, state: Mapping[str, float]) -> StateGoal:
    indexes = _indexes(probe, state, "goal.state")
    for index, (name, value) in zip(indexes, state.items(), strict=True):
        if probe.low is None or probe.high is None or probe.periods[index]:
            continue
        low, high = probe.low[index], probe.high[index]
        tolerance = RANGE_TOLERANCE * (high - low)
        if not low - tolerance <= value <= high + tolerance:
            raise InvalidRequest(
                "out_of_range",
                f"goal.state.{name}",
                received=value,
                expected=f"within [{low:g}, {high:g}], the states that the probe has seen",
            )
    return StateGoal(indexes, tuple(state.values()))


def _region(probe: StateProbeCard, region: Region, field: str) -> ProbeRegion:
    if region.state is not None:
        indexes = _indexes(probe, region.state, f"{field}.state")
        ranges = list(region.state.values())
        centre = [(low + high) / 2 for low, high in ranges]
        sizes = [(high - low) / 2 for low, high in ranges]
        paths = [f"{field}.state.{name}" for name in region.state]
    else:
        assert region.centre is not None
        assert region.radius is not None
        indexes = _indexes(probe, region.centre, f"{field}.centre")
        centre, sizes = list(region.centre.values()), [region.radius]
        paths = [f"{field}.radius"] * len(indexes)
    for index, path, size in zip(indexes, paths, sizes * len(indexes), strict=False):
        period = probe.periods[index]
        if period and size >= period / 2:
            raise InvalidRequest(
                "out_of_range",
                path,
                received=2 * size,
                expected=f"a width of less than {period:g}, the period of {probe.states[index]}",
            )
    margins = [ERRORS_OF_MARGIN * probe.error[index] for index in indexes]
    return ProbeRegion(
        indexes=indexes,
        centre=tuple(centre),
        sizes=tuple(sizes),
        is_disc=region.state is None,
        weight=region.weight,
        margins=(max(margins),) if region.state is None else tuple(margins),
    )


def _indexes(probe: StateProbeCard, names: Iterable[str], field: str) -> tuple[int, ...]:
    """The places of states in the probe.

    Raises:
        InvalidRequest: a name is unknown.
    """
    known = {name: index for index, name in enumerate(probe.states)}
    for name in names:
        if name not in known:
            raise InvalidRequest(
                "invalid_choice",
                field,
                received=name,
                expected=f"one of {', '.join(probe.states)}, the states that the probe reads",
            )
    return tuple(known[name] for name in names)
