"""False alarms on ordinary requests, detection of faults, and the cost of the monitor.

Requests look like those of robots: three frames one action block apart, the actions between them,
and a goal. All seeds are new to training and calibration. Ordinary requests come from robots that
move in several ways, with frames sent as PNG or JPEG; every health but `ok` is a false alarm.
Faulty requests have two good frames and a faulty newest one; those called `anomalous` are detected.

The target of false alarms is 1 in 1,000; that of the cost is 2 % of a plan. A run takes a quarter
of an hour on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.in_process import predict_newest
from benchmarks.latent_health import faults
from benchmarks.latent_health.cost import measure_cost, surprise_of
from benchmarks.latent_health.requests import (
    BLOCK,
    HISTORY,
    Motion,
    Requests,
    as_jpeg,
    as_png,
    encode,
    encode_motion,
    full_speed_motion,
    make_requests,
    planned_motion,
    straight_motion,
    training_motion,
)
from lewm_models.calibration.calibrate import fixed_sigreg_directions
from lewm_models.card import Calibration
from lewm_models.evaluation.report import wilson_interval
from lewm_serve.constants import ANOMALY_KINDS
from lewm_serve.planner.health import LatentStream, assess, score_latents
from lewm_serve.registry.registry import LoadedModel

SEED = 700_000
TRAINING_MOTION_SETS = 3
"""The first sets of ordinary requests move as in the training data; a last row sums them up."""

EPISODE_STEPS = 150
PREDICTION_BATCH = 256
REQUEST_SCORES = ("norm", "mahalanobis", "surprise")
"""The scores of one request. SIGReg is a score of the stream of requests."""


@dataclass(frozen=True)
class FalseAlarms:
    """Ordinary requests whose health was not `ok`, and the 95 % interval of their rate.

    ``by_kind`` counts the scores that were above their limits.
    """

    name: str
    requests: int
    alarms: int
    rate: float
    interval_95: tuple[float, float]
    by_kind: dict[str, int]


@dataclass(frozen=True)
class Detection:
    """How requests of one kind were assessed.

    Attributes:
        rates: the share of anomalous requests (``all``), and of those above the limit of a score.
        ratios: the 5 %, 50 % and 95 % quantiles of each score of the newest frame over its limit.
        sigreg: SIGReg of a window full of such newest frames, over its limit.
    """

    name: str
    requests: int
    rates: dict[str, float]
    ratios: dict[str, list[float]]
    sigreg: float | None


def measure(
    model: LoadedModel, quick: bool, show_progress: Callable[[str], None]
) -> dict[str, Any]:
    """All results as JSON values. ``quick`` takes few requests; the results then mean little."""
    episodes, few_episodes, sample_size = (4, 4, 40) if quick else (80, 60, 1000)
    ordinary: list[FalseAlarms] = []
    for name, motion, send, robots, every in (
        ("PNG frames, 8 robots", _training_motion(episodes, 0), as_png, 8, 1),
        ("JPEG 90 frames, 8 robots", _training_motion(episodes, 1), as_jpeg(90), 8, 1),
        ("JPEG 75 frames, 8 robots", _training_motion(episodes, 2), as_jpeg(75), 8, 1),
        ("one robot alone", _training_motion(episodes, 3), as_png, 1, BLOCK),
        ("planned by the model, 8 robots", planned_motion(model, episodes, SEED), as_png, 8, 1),
        (
            "straight to goals, 8 robots",
            straight_motion(few_episodes, EPISODE_STEPS, SEED + 4),
            as_png,
            8,
            1,
        ),
        (
            "full speed, 8 robots",
            full_speed_motion(few_episodes, EPISODE_STEPS, SEED + 5),
            as_png,
            8,
            BLOCK,
        ),
    ):
        show_progress(f"ordinary: {name}")
        requests = make_requests(model, motion, encode_motion(model, motion, send), every=every)
        episode_count = len(motion.positions)
        ordinary.append(
            count_false_alarms(model, name, requests, episodes=episode_count, robots=robots)
        )
    show_progress("faults")
    motion = _training_motion(episodes, 10)
    requests = make_requests(model, motion, encode_motion(model, motion))
    generator = torch.Generator().manual_seed(SEED)
    sample = _sample(requests, sample_size, generator)
    detections = [detect(model, "no fault", sample)]
    for name, frames in faults.faulty_frames(sample.positions[:, -1], generator):
        show_progress(f"fault: {name}")
        detections.append(detect(model, name, sample.with_newest(encode(model, frames))))
    stopped, passed = faults.wall_crossings(model, sample_size, generator)
    detections.append(detect(model, "stopped by the wall (no fault)", stopped))
    detections.append(detect(model, "through the wall", passed))
    for name, faulty in (
        *faults.teleports(model, sample, generator),
        *faults.freezes(_sample(requests, 4 * sample_size, generator)),
    ):
        if len(faulty):
            detections.append(detect(model, name, faulty))
    show_progress("cost")
    costs = measure_cost(model, sample, series=2 if quick else 60)
    return {
        "history": HISTORY,
        "ordinary": [
            asdict(alarms) for alarms in (*ordinary, _total(ordinary[:TRAINING_MOTION_SETS]))
        ],
        "faults": [asdict(detection) for detection in detections],
        "cost": [asdict(cost) for cost in costs],
    }


def count_false_alarms(
    model: LoadedModel, name: str, requests: Requests, episodes: int, robots: int
) -> FalseAlarms:
    """Assess ordinary requests of some episodes, which ``robots`` robots send in turns.

    Requests that are `degraded` by SIGReg of the stream alone count too.
    """
    predicted = _predict_newest(model, requests)
    calibration = model.card.calibration
    assert calibration is not None
    assert calibration.sigreg_window is not None
    directions = fixed_sigreg_directions(requests.latents.shape[-1])
    stream = LatentStream(directions, calibration.sigreg_window)
    alarms = 0
    by_kind: dict[str, int] = dict.fromkeys(ANOMALY_KINDS, 0)
    for index in _in_turns(episodes, len(requests) // episodes, robots):
        latents = requests.latents[index]
        stream.add(latents, 1)
        # The goal is the last frame of another request: any frame that a client may send.
        latents_and_goal = torch.cat([latents, requests.latents[index - 1, -1:]])
        scores = score_latents(
            calibration, model.reference, latents_and_goal, frame_count=len(latents)
        )
        surprise = surprise_of(latents, predicted[index])
        assessment = assess(calibration, scores, surprise=surprise, sigreg=stream.sigreg)
        alarms += assessment.health.status != "ok"
        for kind in assessment.anomalous_kinds:
            by_kind[kind] += 1
    return _false_alarms(name, len(requests), alarms, by_kind=by_kind)


def detect(model: LoadedModel, name: str, requests: Requests) -> Detection:
    """Assess requests, each by itself."""
    calibration = model.card.calibration
    assert calibration is not None
    assessments = []
    newest_scores: dict[str, list[float]] = {kind: [] for kind in REQUEST_SCORES}
    for latents, predicted in zip(requests.latents, _predict_newest(model, requests), strict=True):
        surprise = surprise_of(latents, predicted)
        scores = score_latents(calibration, model.reference, latents)
        assessments.append(assess(calibration, scores, surprise=surprise))
        newest = score_latents(calibration, model.reference, latents[-1:])
        assert newest.zscores[0] is not None
        assert newest.mahalanobis is not None
        newest_scores["norm"].append(abs(newest.zscores[0]))
        newest_scores["mahalanobis"].append(newest.mahalanobis)
        newest_scores["surprise"].append(surprise)
    limits = {
        "norm": calibration.zscore_limit,
        "mahalanobis": calibration.mahalanobis_limit or torch.nan,
        "surprise": calibration.surprise_limit or torch.nan,
    }
    count = len(requests)
    rates = {"all": sum(one.health.status == "anomalous" for one in assessments) / count}
    for kind in REQUEST_SCORES:
        rates[kind] = sum(kind in one.anomalous_kinds for one in assessments) / count
    quantiles = torch.tensor([0.05, 0.5, 0.95])
    return Detection(
        name=name,
        requests=count,
        rates=rates,
        ratios={
            kind: (torch.tensor(values).quantile(quantiles) / limits[kind]).tolist()
            for kind, values in newest_scores.items()
        },
        sigreg=_stream_sigreg(calibration, requests),
    )


def _training_motion(episodes: int, set_number: int) -> Motion:
    return training_motion(episodes, EPISODE_STEPS, SEED + set_number)


def _in_turns(episodes: int, requests_per_episode: int, robots: int) -> Iterator[int]:
    """Indices of requests in the order in which robots with one episode each send them."""
    for first in range(0, episodes, robots):
        for request in range(requests_per_episode):
            for episode in range(first, min(first + robots, episodes)):
                yield episode * requests_per_episode + request


def _predict_newest(model: LoadedModel, requests: Requests) -> Tensor:
    """One-step predictions (R, D) of the newest latents."""
    batches = zip(
        torch.split(requests.latents, PREDICTION_BATCH),
        torch.split(requests.actions, PREDICTION_BATCH),
        strict=True,
    )
    return torch.cat([predict_newest(model, latents, actions) for latents, actions in batches])


def _stream_sigreg(calibration: Calibration, requests: Requests) -> float | None:
    if calibration.sigreg_window is None or calibration.sigreg_limit is None:
        return None
    directions = fixed_sigreg_directions(requests.latents.shape[-1])
    stream = LatentStream(directions, calibration.sigreg_window, share=1.0)
    stream.add(requests.latents[:, -1], len(requests))
    return None if stream.sigreg is None else stream.sigreg / calibration.sigreg_limit


def _false_alarms(name: str, requests: int, alarms: int, by_kind: dict[str, int]) -> FalseAlarms:
    return FalseAlarms(
        name=name,
        requests=requests,
        alarms=alarms,
        rate=alarms / requests,
        interval_95=wilson_interval(alarms, requests),
        by_kind=by_kind,
    )


def _total(parts: Sequence[FalseAlarms]) -> FalseAlarms:
    """The sum of the sets that move as in the training data, whatever their image format."""
    return _false_alarms(
        "all frames of 8 robots",
        requests=sum(part.requests for part in parts),
        alarms=sum(part.alarms for part in parts),
        by_kind={kind: sum(part.by_kind[kind] for part in parts) for kind in ANOMALY_KINDS},
    )


def _sample(requests: Requests, count: int, generator: torch.Generator) -> Requests:
    """At most ``count`` of the requests, chosen at random."""
    return requests.select(torch.randperm(len(requests), generator=generator)[:count])
