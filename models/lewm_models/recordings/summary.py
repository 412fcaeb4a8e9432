"""What a recording holds, in numbers, and the settings of training that fit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_models.preprocessing import Crop
from lewm_models.recordings.recording import (
    Column,
    Contents,
    Recording,
    choose_action,
    choose_column,
)
from lewm_models.recordings.usable import RULES, Problem, StepRange, UsableEpisodes, check_episode

MAX_SAMPLED_ROWS = 1 << 18
"""Quantiles are taken from at most this many steps, evenly over the recording."""

BOUND_QUANTILES = (0.001, 0.999)
RATE_LIMIT_QUANTILE = 0.995
MAX_SWITCH_VALUES = 8
"""A dimension of no more values is a switch, such as a gripper: it may change at once."""

BLOCK_S = 0.5
DEFAULT_BLOCK, MAX_BLOCK = 5, 15
DEFAULT_HISTORY = 3
DEFAULT_IMAGE_SIZE, IMAGE_SIZE_MULTIPLE = 64, 16
"""The image size of the preset edge, and its patches."""

Progress = Callable[[int, int], None]
"""Called after each episode with the number of episodes done and in all."""


@dataclass(frozen=True)
class Dimension:
    """The values of one dimension of actions or states, over all finite ones.

    Attributes:
        label: its name; its number if the recording has no names.
        low: the smallest value.
        high: the largest value.
        mean: the mean.
        deviation: the population standard deviation.
        constant_share: the share of steps whose value is that of the step before.
        clipped_share: the share of steps at the smallest or largest value, if more than one step
            reaches it.
    """

    label: str
    low: float
    high: float
    mean: float
    deviation: float
    constant_share: float
    clipped_share: float


@dataclass(frozen=True)
class Series:
    """One column of actions or states. ``dimensions`` is empty if no value is finite."""

    name: str
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True)
class Proposals:
    """Settings of training that fit the recording, see docs/recordings.md.

    Attributes:
        action_block: actions between two frames of the model.
        history: context frames.
        image_size: the side of the model's frames, in pixels.
        crop: how frames become square; None if they are.
        action_low: (A,), robust lower bounds of the actions.
        action_high: (A,), robust upper bounds.
        action_rate_limit: (A,), the largest usual change of each action from one step to the next.
    """

    action_block: int
    history: int
    image_size: int
    crop: Crop | None
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_rate_limit: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """The report on one recording.

    Attributes:
        contents: what the recording holds.
        cameras: the cameras that are reported on; all of them, or the one that was asked for.
        actions: the columns of actions, likewise.
        states: the columns of states, likewise.
        usable: what training may use; None while the column of actions is not chosen.
        proposals: None if nothing can be used, or a camera or a column of actions is not chosen.
        choices: the options that training needs, because there are several columns.
    """

    path: Path
    contents: Contents
    cameras: tuple[Column, ...]
    actions: tuple[Series, ...]
    states: tuple[Series, ...]
    usable: UsableEpisodes | None
    proposals: Proposals | None
    choices: tuple[str, ...]

    @property
    def steps(self) -> int:
        return sum(self.contents.episode_steps)

    @property
    def hours(self) -> float | None:
        rate = self.contents.rate_hz
        return None if rate is None else self.steps / rate / 3600

    def to_json(self) -> dict[str, Any]:
        """The report for programs."""
        lengths = self.contents.episode_steps
        return {
            "path": str(self.path),
            "format": self.contents.format,
            "episodes": len(lengths),
            "steps": self.steps,
            "episode_steps": {
                "min": min(lengths, default=0),
                "median": float(np.median(lengths)) if lengths else 0.0,
                "max": max(lengths, default=0),
            },
            "rate_hz": self.contents.rate_hz,
            "hours": self.hours,
            "cameras": [
                {"name": camera.name, "height": camera.shape[0], "width": camera.shape[1]}
                for camera in self.cameras
            ],
            "actions": [_series_json(series) for series in self.actions],
            "states": [_series_json(series) for series in self.states],
            "notes": list(self.contents.notes),
            "usable": None if self.usable is None else _usable_json(self.usable),
            "problems": [] if self.usable is None else _problems_json(self.usable),
            "choices": list(self.choices),
            "proposals": None if self.proposals is None else vars(self.proposals),
        }


def summarise(
    recording: Recording,
    *,
    camera: str | None = None,
    action: str | None = None,
    state: str | None = None,
    action_block: int | None = None,
    history: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Read all actions and states once, episode by episode, and no frames.

    The names choose one column of each kind; without a name, all are reported on. Without
    ``action_block`` and ``history``, steps are judged with the proposed ones.

    Raises:
        RecordingError: the recording cannot be read, or has no column of a given name.
    """
    path, contents = recording.path, recording.contents
    cameras = _chosen(contents.cameras, camera, option="--camera", path=path)
    actions = contents.actions if action is None else (choose_action(contents, action, path),)
    states = tuple(
        column
        for column in _chosen(contents.states, state, option="--state", path=path)
        if column.name != action
    )
    action_statistics = {column.name: SeriesStatistics(column.shape[0]) for column in actions}
    state_statistics = {column.name: SeriesStatistics(column.shape[0]) for column in states}

    proposed_block, proposed_history = propose_block(contents)
    block, history = action_block or proposed_block, history or proposed_history
    min_steps = history * block + 1
    only_action = actions[0].name if len(actions) == 1 else None
    ranges: list[StepRange] = []
    problems: list[Problem] = []
    for episode, steps in enumerate(contents.episode_steps):
        for name, statistics in action_statistics.items():
            values = recording.read_numbers(name, episode)
            statistics.add(values)
            if name == only_action:
                episode_ranges, episode_problems = check_episode(
                    episode,
                    steps,
                    actions=values,
                    states=recording.read_states(state, episode) if state is not None else None,
                    times=recording.read_times(episode),
                    min_steps=min_steps,
                )
                ranges += episode_ranges
                problems += episode_problems
        for name, statistics in state_statistics.items():
            statistics.add(recording.read_states(name, episode))
        if progress is not None:
            progress(episode + 1, len(contents.episode_steps))

    usable = None
    if only_action is not None:
        usable = UsableEpisodes(tuple(ranges), tuple(problems), min_steps)
    proposals = None
    if usable is not None and usable.ranges and len(cameras) == 1:
        statistics = action_statistics[actions[0].name]
        low, high = statistics.bounds()
        proposals = Proposals(
            action_block=block,
            history=history,
            image_size=DEFAULT_IMAGE_SIZE,
            crop=None if cameras[0].shape[0] == cameras[0].shape[1] else "center",
            action_low=low,
            action_high=high,
            action_rate_limit=statistics.rate_limit(),
        )
    return Summary(
        path=path,
        contents=contents,
        cameras=cameras,
        actions=_series(actions, action_statistics),
        states=_series(states, state_statistics),
        usable=usable,
        proposals=proposals,
        choices=tuple(
            option
            for option, columns in (("--camera", cameras), ("--action", actions))
            if len(columns) > 1
        ),
    )


def propose_block(contents: Contents) -> tuple[int, int]:
    """Action block and history: half a second and three frames, less for short episodes.

    At least half of the episodes hold two samples one after the other, if they are long enough.
    """
    block = DEFAULT_BLOCK
    if contents.rate_hz is not None:
        block = min(MAX_BLOCK, max(1, round(BLOCK_S * contents.rate_hz)))
    transitions = max(1, int(np.median(contents.episode_steps or (1,))) - 1)
    history = min(DEFAULT_HISTORY, transitions)
    return min(block, max(1, transitions // (2 * history))), history


def largest_image_size(camera: Column) -> int:
    """The largest multiple of 16 up to the frame's shorter side: a larger one shows no more."""
    return min(camera.shape[:2]) // IMAGE_SIZE_MULTIPLE * IMAGE_SIZE_MULTIPLE


class SeriesStatistics:
    """Statistics of a column of D dimensions, fed episode by episode. Memory is bounded."""

    def __init__(self, dimensions: int) -> None:
        self._count = np.zeros(dimensions, np.int64)
        self._mean = np.zeros(dimensions)
        self._squares = np.zeros(dimensions)  # sum of squared differences from the mean
        self._low = np.full(dimensions, np.inf)
        self._high = np.full(dimensions, -np.inf)
        self._at_low = np.zeros(dimensions, np.int64)
        self._at_high = np.zeros(dimensions, np.int64)
        self._pairs = np.zeros(dimensions, np.int64)
        self._constant = np.zeros(dimensions, np.int64)
        self._values = RowSample(dimensions)
        self._changes = RowSample(dimensions)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in the values (N, D) of one episode. Those that are not finite are left out."""
        values = np.where(np.isfinite(rows), rows, np.nan).astype(np.float64)
        finite = ~np.isnan(values)
        count = finite.sum(axis=0)
        known = np.where(finite, values, 0.0)
        total = self._count + count
        mean = known.sum(axis=0) / np.maximum(1, count)
        difference = mean - self._mean
        # Chan, Golub, LeVeque (1983): the mean and squares of two samples together.
        self._squares += np.where(finite, (values - mean) ** 2, 0.0).sum(axis=0)
        self._squares += difference**2 * self._count * count / np.maximum(1, total)
        self._mean += np.where(count > 0, difference * count / np.maximum(1, total), 0.0)
        self._count = total

        low = np.where(finite, values, np.inf).min(axis=0, initial=np.inf)
        high = np.where(finite, values, -np.inf).max(axis=0, initial=-np.inf)
        self._at_low = np.where(low < self._low, 0, self._at_low)
        self._at_high = np.where(high > self._high, 0, self._at_high)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._at_low += (values == self._low).sum(axis=0)
        self._at_high += (values == self._high).sum(axis=0)

        changes = np.abs(np.diff(values, axis=0))
        self._pairs += np.isfinite(changes).sum(axis=0)
        self._constant += (changes == 0).sum(axis=0)
        self._values.add(values[finite.all(axis=1)])
        self._changes.add(changes[np.isfinite(changes).all(axis=1)])

    def dimensions(self, labels: tuple[str, ...]) -> tuple[Dimension, ...]:
        """The statistics of each dimension; none if a dimension has no finite value."""
        if not self._count.all():
            return ()
        clipped = sum(np.where(at > 1, at, 0) for at in (self._at_low, self._at_high))
        clipped = np.where(self._low == self._high, 0, clipped)
        return tuple(
            Dimension(
                label=labels[i] if labels else str(i),
                low=float(self._low[i]),
                high=float(self._high[i]),
                mean=float(self._mean[i]),
                deviation=float(np.sqrt(self._squares[i] / self._count[i])),
                constant_share=float(self._constant[i] / max(1, self._pairs[i])),
                clipped_share=float(clipped[i] / self._count[i]),
            )
            for i in range(len(self._count))
        )

    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Robust lower and upper bounds of each dimension.

        They are the quantiles 0.001 and 0.999, and the range of a dimension that is a switch. The
        bounds of a constant dimension lie a little below and above its value.
        """
        rows = self._values.rows()
        low, high = np.quantile(rows, BOUND_QUANTILES, axis=0)
        wide = self._is_switch(rows)
        low, high = np.where(wide, self._low, low), np.where(wide, self._high, high)
        margin = np.where(low == high, 1e-3 * np.maximum(1, np.abs(low)), 0.0)
        return tuple((low - margin).tolist()), tuple((high + margin).tolist())

    def rate_limit(self) -> tuple[float, ...]:
        """The largest usual change of each dimension from one step to the next.

        It is the quantile 0.995 of the changes. A switch, and a dimension that hardly ever
        changes, have no limit, which is the distance between their bounds.
        """
        low, high = map(np.asarray, self.bounds())
        changes = self._changes.rows()
        if not len(changes):
            return tuple((high - low).tolist())
        usual = np.quantile(changes, RATE_LIMIT_QUANTILE, axis=0)
        free = self._is_switch(self._values.rows()) | (usual == 0)
        return tuple(np.where(free, high - low, np.minimum(usual, high - low)).tolist())

    def _is_switch(self, rows: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.array([len(np.unique(column)) <= MAX_SWITCH_VALUES for column in rows.T])


class RowSample:
    """Rows (N, D), evenly thinned so that at most `MAX_SAMPLED_ROWS` are kept."""

    def __init__(self, dimensions: int) -> None:
        self._chunks: list[NDArray[np.float64]] = [np.empty((0, dimensions))]
        self._kept = 0
        self._seen = 0
        self._stride = 1

    def add(self, rows: NDArray[np.float64]) -> None:
        """Keep each row whose number among all rows is a multiple of the stride."""
        chunk = rows[-self._seen % self._stride :: self._stride].copy()
        self._seen += len(rows)
        self._chunks.append(chunk)
        self._kept += len(chunk)
        while self._kept > MAX_SAMPLED_ROWS:
            self._chunks = [self.rows()[::2].copy()]
            self._kept = len(self._chunks[0])
            self._stride *= 2

    def rows(self) -> NDArray[np.float64]:
        return np.concatenate(self._chunks)


def _chosen(
    columns: tuple[Column, ...], name: str | None, *, option: str, path: Path
) -> tuple[Column, ...]:
    if name is None:
        return columns
    return (choose_column(columns, name, option=option, path=path),)


def _series(
    columns: tuple[Column, ...], statistics: dict[str, SeriesStatistics]
) -> tuple[Series, ...]:
    return tuple(
        Series(column.name, statistics[column.name].dimensions(column.labels)) for column in columns
    )


def _series_json(series: Series) -> dict[str, Any]:
    return {"name": series.name, "dimensions": [vars(item) for item in series.dimensions]}


def _usable_json(usable: UsableEpisodes) -> dict[str, Any]:
    return {
        "episodes": usable.episodes,
        "steps": usable.steps,
        "min_steps": usable.min_steps,
    }


def _problems_json(usable: UsableEpisodes) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "count": sum(problem.count for problem in problems),
            "what": RULES[kind][0],
            "rule": RULES[kind][1],
            "episodes": sorted({problem.episode for problem in problems}),
        }
        for kind, problems in usable.by_kind().items()
    ]
