"""False alarms on ordinary requests, detection of faults, and what the monitor costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.latent_health import faults
from benchmarks.latent_health.cost import cost
from benchmarks.latent_health.requests import (
    BLOCK,
    HISTORY,
    Motion,
    Requests,
    as_jpeg,
    as_png,
    data_motion,
    encode,
    encode_motion,
    full_speed_motion,
    planned_motion,
    predicted,
    requests,
    straight_motion,
)
from lewm_models.calibration.calibrate import fixed_directions
from lewm_models.card import Calibration
from lewm_models.evaluation.interval import wilson_interval
from lewm_serve.planner.health import KINDS, LatentStream, judge, score
from lewm_serve.registry.registry import LoadedModel

SEED = 700_000
SERVED = 3
"""The first sets of ordinary requests: frames as they are served, PNG and JPEG."""
STEPS = 150


@dataclass(frozen=True)
class Detection:
    """How R requests of one kind were judged.

    ``rates`` are the shares of requests that were anomalous (``all``) and by which score;
    ``ratios`` the 5 %, 50 % and 95 % quantiles of each score of the newest frame over its limit;
    ``sigreg`` is that of a window full of such frames, over its limit.
    """

    name: str
    requests: int
    rates: dict[str, float]
    ratios: dict[str, list[float]]
    sigreg: float | None


@dataclass(frozen=True)
class FalseAlarms:
    """Ordinary requests that were not called ok, and the interval of their share."""

    name: str
    requests: int
    alarms: int
    rate: float
    interval_95: tuple[float, float]
    by_kind: dict[str, int]


def false_alarms(
    model: LoadedModel, name: str, motion: Motion, latents: Tensor, robots: int, every: int
) -> tuple[FalseAlarms, Requests]:
    """Judge a request for each frame with history, in the order of ``robots`` served in turns.

    Every answer is one, those that SIGReg of the stream alone makes `degraded` included.
    """
    asked = requests(model, motion, latents, every)
    expected = predicted(model, asked)
    calibration = model.card.calibration
    assert calibration is not None
    assert calibration.sigreg_window is not None
    stream = LatentStream(fixed_directions(latents.shape[-1]), calibration.sigreg_window)
    alarms = 0
    by_kind: dict[str, int] = dict.fromkeys(KINDS, 0)
    for index in _in_turns(len(motion.positions), len(asked) // len(motion.positions), robots):
        own = asked.latents[index]
        stream.add(own, 1)
        # The goal: the frame at the end of another request, like any that a client may send.
        shown = torch.cat([own, asked.latents[index - 1, -1:]])
        scores = score(calibration, model.reference, shown, len(own))
        judged = judge(calibration, scores, scores.surprise(expected[index]), stream.sigreg)
        alarms += judged.health.status != "ok"
        for kind in judged.kinds:
            by_kind[kind] += 1
    interval = wilson_interval(alarms, len(asked))
    rate = alarms / len(asked)
    return FalseAlarms(name, len(asked), alarms, rate, interval, by_kind), asked


def _in_turns(episodes: int, each: int, robots: int) -> Iterator[int]:
    """Indices of requests when so many robots have one episode each at a time."""
    for first in range(0, episodes, robots):
        for request in range(each):
            for episode in range(first, min(first + robots, episodes)):
                yield episode * each + request


def detection(model: LoadedModel, name: str, asked: Requests) -> Detection:
    """Judge requests, each by itself."""
    expected = predicted(model, asked)
    calibration = model.card.calibration
    assert calibration is not None
    judged = []
    found: dict[str, list[float]] = {kind: [] for kind in KINDS[:3]}
    for own, prediction in zip(asked.latents, expected, strict=True):
        scores = score(calibration, model.reference, own)
        surprise = scores.surprise(prediction)
        judged.append(judge(calibration, scores, surprise))
        newest = score(calibration, model.reference, own[-1:])
        assert newest.zscores[0] is not None
        assert newest.distance is not None
        assert surprise is not None
        found["norm"].append(abs(newest.zscores[0]))
        found["mahalanobis"].append(newest.distance)
        found["surprise"].append(surprise)
    limits = {
        "norm": calibration.zscore_limit,
        "mahalanobis": calibration.mahalanobis_limit or torch.nan,
        "surprise": calibration.surprise_limit or torch.nan,
    }
    rates = {kind: sum(kind in one.kinds for one in judged) / len(judged) for kind in found}
    anomalous = sum(one.health.status == "anomalous" for one in judged)
    levels = torch.tensor([0.05, 0.5, 0.95])
    ratios = {
        kind: (torch.tensor(values).quantile(levels) / limits[kind]).tolist()
        for kind, values in found.items()
    }
    rates = {"all": anomalous / len(judged), **rates}
    return Detection(name, len(asked), rates, ratios, _stream_sigreg(calibration, asked))


def _stream_sigreg(calibration: Calibration, asked: Requests) -> float | None:
    if calibration.sigreg_window is None or calibration.sigreg_limit is None:
        return None
    stream = LatentStream(
        fixed_directions(asked.latents.shape[-1]), calibration.sigreg_window, kept=1.0
    )
    stream.add(asked.latents[:, -1], len(asked))
    return None if stream.sigreg is None else stream.sigreg / calibration.sigreg_limit


def measure(model: LoadedModel, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Every figure, as JSON. ``quick`` looks at a few requests of each kind, which mean little."""
    episodes, few, count = (4, 4, 40) if quick else (80, 60, 1000)
    ordinary: list[FalseAlarms] = []
    for name, motion, send, robots, every in (
        ("PNG frames, 8 robots", data_motion(episodes, STEPS, SEED), as_png, 8, 1),
        ("JPEG 90 frames, 8 robots", data_motion(episodes, STEPS, SEED + 1), as_jpeg(90), 8, 1),
        ("JPEG 75 frames, 8 robots", data_motion(episodes, STEPS, SEED + 2), as_jpeg(75), 8, 1),
        ("one robot alone", data_motion(episodes, STEPS, SEED + 3), as_png, 1, BLOCK),
        ("planned by the model, 8 robots", planned_motion(model, episodes, SEED), as_png, 8, 1),
        ("straight to goals, 8 robots", straight_motion(few, STEPS, SEED + 4), as_png, 8, 1),
        ("full speed, 8 robots", full_speed_motion(few, STEPS, SEED + 5), as_png, 8, BLOCK),
    ):
        say(f"ordinary: {name}")
        latents = encode_motion(model, motion, send)
        ordinary.append(false_alarms(model, name, motion, latents, robots, every)[0])
    say("faults")
    motion = data_motion(episodes, STEPS, SEED + 10)
    asked = requests(model, motion, encode_motion(model, motion))
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.randperm(len(asked), generator=generator)[:count]
    sample = Requests(asked.latents[chosen], asked.actions[chosen], asked.positions[chosen])
    found = [detection(model, "no fault", sample)]
    for name, frames in faults.faulty_frames(sample.positions[:, -1], generator):
        say(f"fault: {name}")
        found.append(detection(model, name, sample.with_newest(encode(model, frames))))
    stopped, passed = faults.wall_crossings(model, count, generator)
    found.append(detection(model, "stopped by the wall (no fault)", stopped))
    found.append(detection(model, "through the wall", passed))
    for name, moved in (
        *faults.teleports(model, sample, generator),
        *faults.freezes(_some(asked, generator, 4 * count)),
    ):
        if len(moved):
            found.append(detection(model, name, moved))
    say("cost")
    spent = cost(model, sample, 2 if quick else 60)
    return {
        "history": HISTORY,
        "ordinary": [asdict(one) for one in (*ordinary, _total(ordinary[:SERVED]))],
        "faults": [asdict(one) for one in found],
        "cost": [asdict(one) for one in spent],
    }


def _total(parts: Sequence[FalseAlarms]) -> FalseAlarms:
    """Of all of the data's motion, in whichever format its frames were sent."""
    asked, alarms = sum(one.requests for one in parts), sum(one.alarms for one in parts)
    by_kind = {kind: sum(one.by_kind[kind] for one in parts) for kind in parts[0].by_kind}
    interval = wilson_interval(alarms, asked)
    return FalseAlarms("all frames of 8 robots", asked, alarms, alarms / asked, interval, by_kind)


def _some(asked: Requests, generator: torch.Generator, count: int) -> Requests:
    """So many of the requests, at random."""
    chosen = torch.randperm(len(asked), generator=generator)[:count]
    return Requests(asked.latents[chosen], asked.actions[chosen], asked.positions[chosen])
