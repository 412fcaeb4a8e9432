"""What the latents themselves are like: distances, paths, spread, and the states in them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.calibration.calibrate import SIGREG_WINDOW, fixed_sigreg_directions
from lewm_models.distance.network import GoalDistance
from lewm_models.distance.quality import rank_correlation
from lewm_models.judging.measure import Estimate, Measure, Rows, estimate, mean_of
from lewm_models.judging.prediction import evenly_spaced
from lewm_models.loss import sigreg
from lewm_models.probe.fit import LabelledLatents, fit_probe, read_states
from lewm_models.probe.network import StateProbe, StateSpace
from lewm_models.probe.quality import mean_errors, r_squared
from lewm_models.recorded_sample import RecordedSample
from lewm_models.training.diagnostics import effective_rank

PAIRS = 5000
"""The pairs of a frame and a later one whose distances are ranked."""

SIGREG_WINDOWS, MIN_SIGREG_FRAMES = 8, 512
"""The windows that one value of SIGReg is the mean of, and the frames that they need."""

MAX_RANK_FRAMES = 2000
"""The most frames of which an effective rank is computed."""

SEED = 0


def latent_measures(held_out: RecordedSample, distance: GoalDistance | None) -> list[Measure]:
    """Rank correlations, straightness, SIGReg and effective rank of held-out latents."""
    return [
        *_rank_measures(held_out, distance),
        *_straightness(held_out),
        *_sigreg(held_out),
        _effective_rank(held_out),
    ]


def _rank_measures(held_out: RecordedSample, distance: GoalDistance | None) -> list[Measure]:
    """Spearman's correlation of distances with the recorded blocks from a frame to a later one."""
    rows = held_out.rows_before(1)
    generator = np.random.default_rng(SEED)
    starts = generator.choice(rows, PAIRS)
    gaps = generator.integers(1, held_out.left[starts], endpoint=True)
    first, later = torch.from_numpy(starts), torch.from_numpy(starts + gaps)
    units, blocks = held_out.units[starts], gaps.astype(np.float64)

    def correlation(distances: Tensor) -> Estimate:
        values = distances.double().numpy()
        return estimate(lambda rows: rank_correlation(values[rows], blocks[rows]), units)

    def euclidean(points: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(points[first] - points[later], dim=1)
        return lengths

    pixels = correlation(euclidean(held_out.thumbnails))
    latent = correlation(euclidean(held_out.latents))
    measures = [
        Measure(
            "rank_correlation_latent",
            latent,
            unit="Spearman's, with blocks to go",
            better="higher",
            samples=PAIRS,
            baselines={"pixels": pixels},
        )
    ]
    if distance is not None:
        with torch.inference_mode():
            learned = distance(held_out.latents[first], held_out.latents[later])
        measures.append(
            Measure(
                "rank_correlation_distance",
                correlation(learned),
                unit="Spearman's, with blocks to go",
                better="higher",
                samples=PAIRS,
                baselines={"latent": latent, "pixels": pixels},
            )
        )
    return measures


def _straightness(held_out: RecordedSample) -> list[Measure]:
    """The mean cosine of successive velocities, one block apart (arXiv 2603.19312)."""
    rows = held_out.rows_before(2)
    if not len(rows):
        return []
    units = held_out.units[rows]

    def straightness(points: Tensor) -> Estimate:
        before, now, after = (points[torch.from_numpy(rows + shift)] for shift in range(3))
        cosines = torch.nn.functional.cosine_similarity(now - before, after - now, dim=1)
        return mean_of(cosines.double().numpy(), units)

    return [
        Measure(
            "straightness",
            straightness(held_out.latents),
            unit="mean cosine of successive changes",
            better="neither",
            samples=len(rows),
            baselines={"pixels": straightness(held_out.thumbnails)},
        )
    ]


def _sigreg(held_out: RecordedSample) -> list[Measure]:
    """SIGReg of windows of held-out latents that are drawn at random."""
    if len(held_out) < MIN_SIGREG_FRAMES:
        return []
    directions = fixed_sigreg_directions(held_out.latents.shape[1])

    def mean_sigreg(latents: Tensor, rows: Rows) -> float:
        generator, rows = np.random.default_rng(SEED), np.unique(rows)
        size = min(SIGREG_WINDOW, len(rows))
        windows = [generator.choice(rows, size, replace=False) for _ in range(SIGREG_WINDOWS)]
        return float(sigreg(latents[torch.from_numpy(np.stack(windows))], directions))

    return [
        Measure(
            "sigreg",
            estimate(lambda rows: mean_sigreg(held_out.latents, rows), held_out.units),
            unit=f"SIGReg of {SIGREG_WINDOW} frames",
            better="lower",
            samples=len(held_out),
            baselines={
                "Gaussian": Estimate(mean_sigreg(_gaussian(held_out), np.arange(len(held_out))))
            },
        )
    ]


def _effective_rank(held_out: RecordedSample) -> Measure:
    """How many dimensions the latents use; see `Diagnostics`."""

    def rank(points: Tensor, rows: Rows) -> float:
        rows = evenly_spaced(np.unique(rows), MAX_RANK_FRAMES)
        return effective_rank(points[torch.from_numpy(rows)])

    return Measure(
        "effective_rank",
        estimate(lambda rows: rank(held_out.latents, rows), held_out.units),
        unit=f"of {held_out.latents.shape[1]} dimensions",
        better="neither",
        samples=len(held_out),
        baselines={
            name: Estimate(rank(points, np.arange(len(held_out))))
            for name, points in (
                ("Gaussian", _gaussian(held_out)),
                ("pixels", held_out.thumbnails),
            )
        },
    )


def _gaussian(sample: RecordedSample) -> Tensor:
    """As many standard normal latents (N, D)."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(sample.latents.shape, generator=generator)


def probe_measures(
    probe: StateProbe,
    space: StateSpace,
    *,
    training: RecordedSample,
    held_out: RecordedSample,
) -> list[Measure]:
    """R² and error of each state as the probe reads it from held-out latents.

    The baselines are the probe's linear map, a probe of the same kind that reads thumbnails of the
    frames, and, of errors, always reading the mean.

    Args:
        probe: the probe.
        space: its states.
        training: what the probe of thumbnails is fitted to.
        held_out: frames with states.
    """
    known = _labelled(held_out, held_out.latents)
    units = held_out.units[_known_rows(held_out)]
    of_pixels = fit_probe(_labelled(training, training.thumbnails), space)
    thumbnails = _labelled(held_out, held_out.thumbnails).latents
    read = {
        "probe": read_states(probe, known.latents),
        "linear probe": read_states(probe, known.latents, linear=True),
        "pixels": read_states(of_pixels, thumbnails),
    }
    mean = probe.state_mean.double().numpy()
    measures = []
    for index, name in enumerate(space.names):
        one = StateSpace((name,), (space.periods[index],))
        recorded = known.states[:, index : index + 1]

        def of_state(
            read: NDArray[np.float64],
            measure: str,
            one: StateSpace = one,
            recorded: NDArray[np.float32] = recorded,
        ) -> Estimate:
            compare = r_squared if measure == "r2" else mean_errors
            return estimate(lambda rows: float(compare(one, read[rows], recorded[rows])[0]), units)

        for measure, unit in (("r2", "of the variance"), ("error", f"of {name}")):
            columns = {kind: values[:, index : index + 1] for kind, values in read.items()}
            if measure == "error":
                columns["mean"] = np.full_like(columns["probe"], mean[index])
            found = {kind: of_state(values, measure) for kind, values in columns.items()}
            measures.append(
                Measure(
                    f"probe_{measure}_{name}",
                    found.pop("probe"),
                    unit=unit,
                    better="higher" if measure == "r2" else "lower",
                    samples=len(known),
                    baselines=found,
                )
            )
    return measures


def _known_rows(sample: RecordedSample) -> Rows:
    assert sample.states is not None
    return np.flatnonzero(np.isfinite(sample.states).all(axis=1))


def _labelled(sample: RecordedSample, latents: Tensor) -> LabelledLatents:
    assert sample.states is not None
    return LabelledLatents.finite(latents, sample.states, sample.episodes)
