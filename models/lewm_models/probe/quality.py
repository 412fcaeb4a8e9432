"""How good a probe is, on held-out frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lewm_models.calibration.reference import sha256_of
from lewm_models.card import StateProbeCard
from lewm_models.probe.fit import LabelledLatents, read_states
from lewm_models.probe.network import StateProbe, StateSpace

FloatArray = NDArray[np.float64]


def r_squared(space: StateSpace, read: FloatArray, recorded: NDArray[np.floating]) -> FloatArray:
    """The share of each state's variance (S,) that is read, of states (N, S) and (N, S).

    1 is perfect; 0 is as good as always reading the mean, and what a state that does not change
    has. States with a period have the mean and the differences of angles.
    """
    errors = np.square(space.differences(read, recorded)).sum(axis=0)
    spread = np.square(space.differences(recorded, _mean(space, recorded))).sum(axis=0)
    has_spread = spread > 0
    return np.where(has_spread, 1 - errors / np.where(has_spread, spread, 1.0), 0.0)


def mean_errors(space: StateSpace, read: FloatArray, recorded: NDArray[np.floating]) -> FloatArray:
    """The mean absolute error of each state (S,) in its unit, of states (N, S) and (N, S)."""
    errors: FloatArray = np.abs(space.differences(read, recorded)).mean(axis=0)
    return errors


def describe_probe(
    probe: StateProbe, space: StateSpace, *, training: LabelledLatents, held_out: LabelledLatents
) -> StateProbeCard:
    """What the card says about a probe, measured on at least one held-out frame."""
    by_mlp = read_states(probe, held_out.latents)
    by_linear_map = read_states(probe, held_out.latents, linear=True)

    def rounded(values: FloatArray) -> tuple[float, ...]:
        return tuple(float(f"{value:.4g}") for value in values)

    return StateProbeCard(
        network=sha256_of(probe.to_bytes()),
        states=space.names,
        periods=space.periods,
        training_frames=len(training),
        held_out_frames=len(held_out),
        r2=rounded(r_squared(space, by_mlp, held_out.states)),
        error=rounded(mean_errors(space, by_mlp, held_out.states)),
        ridge_r2=rounded(r_squared(space, by_linear_map, held_out.states)),
        ridge_error=rounded(mean_errors(space, by_linear_map, held_out.states)),
        low=tuple(training.states.min(axis=0).tolist()),
        high=tuple(training.states.max(axis=0).tolist()),
    )


def _mean(space: StateSpace, states: NDArray[np.floating]) -> FloatArray:
    """The mean of each state (S,); of states with a period that of angles."""
    means: FloatArray = states.mean(axis=0, dtype=np.float64)
    for index, period in enumerate(space.periods):
        if period:
            angles = states[:, index].astype(np.float64) * (2 * np.pi / period)
            means[index] = np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()) * (
                period / (2 * np.pi)
            )
    return means
