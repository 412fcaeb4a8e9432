"""How well a model predicts: by horizon, and whether it listens to actions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.judging.measure import Estimate, Measure, estimate, mean_of
from lewm_models.lewm import LeWM
from lewm_models.probe.ridge import LinearMap, fit_ridge
from lewm_models.recorded_sample import RecordedSample
from lewm_models.training.diagnostics import cost_ranges

HORIZONS = range(1, 11)
"""The horizons of predictions, in action blocks."""

MAX_STARTS = 1500
"""Roll-outs begin at no more frames than this, which are evenly spaced."""

MODEL_BATCH = 256
"""Sequences that are rolled out at once."""

SEED = 0
"""Of the shuffled actions: reports can be compared."""

SEARCHES = 64
"""The searches of the cost range."""


@torch.inference_mode()
def roll_out(model: LeWM, latents: Tensor, actions: Tensor) -> Tensor:
    """The latents (n, T, D) that z-scored blocks (n, T, A) lead to from latents (n, D)."""
    device = next(model.parameters()).device
    parts = zip(torch.split(latents, MODEL_BATCH), torch.split(actions, MODEL_BATCH), strict=True)
    return torch.cat(
        [model.rollout_each(start.to(device), part.to(device)).cpu() for start, part in parts]
    )


def evenly_spaced(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def shuffled(count: int, seed: int = SEED) -> NDArray[np.int64]:
    """An order of 0 to count − 1 in which, with two and more, nothing stays in its place."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)
    return other


class _LinearModel:
    """A linear map from a latent and the next blocks to the latent after them, for each horizon.

    Args:
        training: what the maps are fitted to.
    """

    def __init__(self, training: RecordedSample) -> None:
        self._training = training
        self._maps: dict[int, LinearMap | None] = {}

    def predict(self, latents: Tensor, actions: Tensor) -> Tensor | None:
        """Latents (n, D) and blocks (n, T, A) → latents (n, D) after T blocks.

        None if no training episode has so many blocks.
        """
        horizon = actions.shape[1]
        if horizon not in self._maps:
            self._maps[horizon] = self._fit(horizon)
        linear = self._maps[horizon]
        return None if linear is None else linear(torch.cat([latents, actions.flatten(1)], dim=1))

    def _fit(self, horizon: int) -> LinearMap | None:
        training = self._training
        rows = training.rows_before(horizon)
        if len(rows) < 2:
            return None
        latents = training.latents[torch.from_numpy(rows)]
        inputs = torch.cat([latents, training.blocks_from(rows, horizon).flatten(1)], dim=1)
        targets = training.latents[torch.from_numpy(rows + horizon)]
        return fit_ridge(inputs, targets, training.episodes[rows])


def prediction_measures(
    model: LeWM, *, training: RecordedSample, held_out: RecordedSample, horizon: int
) -> list[Measure]:
    """Prediction errors by horizon, action sensitivity and cost range.

    Errors are mean squared distances from the recorded latents, divided by the latents' variance:
    0 is perfect, and always predicting the mean gives 1. Roll-outs begin at one frame, as plans do.

    Args:
        model: in ``eval()`` mode, on any device.
        training: what the linear model is fitted to.
        held_out: what is measured on.
        horizon: the blocks of a plan.
    """
    latents = held_out.latents
    variance = held_out.variance
    linear = _LinearModel(training)
    rows = evenly_spaced(held_out.rows_before(1), MAX_STARTS)
    starts, blocks = latents[torch.from_numpy(rows)], held_out.blocks_from(rows, HORIZONS[-1])
    predicted = roll_out(model, starts, blocks)
    measures: list[Measure] = []
    for count in HORIZONS:
        has_end = held_out.left[rows] >= count
        if not has_end.any():
            break
        chosen, units = torch.from_numpy(has_end), held_out.units[rows[has_end]]
        ends = latents[torch.from_numpy(rows[has_end] + count)]

        def error(of: Tensor, ends: Tensor = ends) -> NDArray[np.float64]:
            return (of - ends).square().sum(dim=1).double().numpy() / variance

        baselines = {"copy the last": mean_of(error(starts[chosen]), units)}
        by_linear = linear.predict(starts[chosen], blocks[chosen, :count])
        if by_linear is not None:
            baselines["linear model"] = mean_of(error(by_linear), units)
        measures.append(
            Measure(
                f"prediction_error_{count}",
                mean_of(error(predicted[chosen, count - 1]), units),
                unit="of the latents' variance",
                better="lower",
                samples=len(units),
                baselines=baselines,
            )
        )
    for count in sorted({1, horizon}):
        measures += _sensitivity(model, linear, held_out, count)
    return [*measures, *_cost_range(model, held_out, horizon)]


def _sensitivity(
    model: LeWM, linear: _LinearModel, held_out: RecordedSample, horizon: int
) -> list[Measure]:
    """The error with the actions of other windows, relative to the error with the true ones."""
    rows = evenly_spaced(held_out.rows_before(horizon), MAX_STARTS)
    if len(rows) < 2:
        return []
    starts = held_out.latents[torch.from_numpy(rows)]
    ends = held_out.latents[torch.from_numpy(rows + horizon)]
    blocks = held_out.blocks_from(rows, horizon)
    others = blocks[torch.from_numpy(shuffled(len(rows)))]
    units = held_out.units[rows]

    def ratio(with_true: Tensor, with_others: Tensor) -> Estimate:
        errors, other_errors = (
            (of - ends).square().sum(dim=1).double().numpy() for of in (with_true, with_others)
        )
        return estimate(
            lambda chosen: float(other_errors[chosen].sum() / max(errors[chosen].sum(), 1e-30)),
            units,
        )

    baselines = {"no effect": Estimate(1.0)}
    linear_true, linear_others = linear.predict(starts, blocks), linear.predict(starts, others)
    if linear_true is not None and linear_others is not None:
        baselines["linear model"] = ratio(linear_true, linear_others)
    return [
        Measure(
            f"action_sensitivity_{horizon}",
            ratio(roll_out(model, starts, blocks)[:, -1], roll_out(model, starts, others)[:, -1]),
            unit="× the error, with shuffled actions",
            better="higher",
            samples=len(rows),
            baselines=baselines,
        )
    ]


def _cost_range(model: LeWM, held_out: RecordedSample, horizon: int) -> list[Measure]:
    """The largest cost of random candidates divided by the smallest; see `Diagnostics`."""
    rows = evenly_spaced(held_out.rows_before(horizon), SEARCHES)
    if not len(rows):
        return []
    starts, goals = (held_out.latents[torch.from_numpy(part)] for part in (rows, rows + horizon))
    ratios = cost_ranges(model, starts, goals, steps=horizon).double().numpy()
    return [
        Measure(
            "cost_range",
            estimate(lambda chosen: float(np.median(ratios[chosen])), held_out.units[rows]),
            unit="largest / smallest cost of random candidates",
            better="higher",
            samples=len(rows),
            baselines={"no effect": Estimate(1.0)},
        )
    ]
