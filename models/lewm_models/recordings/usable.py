"""Which steps of a recording training may use, by the rules of docs/recordings.md.

A step can be left out, and every step that is left out is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lewm_models.recordings.recording import Recording, RecordingError

MAX_GAP_STEPS = 1.5
"""Two steps that are further apart than this many steps have a gap between them."""

MAX_RATE_DEVIATION = 0.1
"""An episode whose usual step is longer or shorter than the recording's by more is at another
rate."""


class ProblemKind(StrEnum):
    """What can be wrong with a part of a recording. The names are those of the JSON report."""

    NO_ACTIONS = "no_actions"
    OTHER_RATE = "other_rate"
    MISSING_ACTIONS = "missing_actions"
    INFINITE_ACTIONS = "infinite_actions"
    MISSING_STATES = "missing_states"
    GAPS = "gaps"
    TOO_SHORT = "too_short"


RULES: dict[ProblemKind, tuple[str, str]] = {
    ProblemKind.NO_ACTIONS: ("episodes without actions", "the episode is left out"),
    ProblemKind.OTHER_RATE: ("episodes at another rate", "the episode is left out"),
    ProblemKind.MISSING_ACTIONS: ("steps without an action", "the episode is cut there"),
    ProblemKind.INFINITE_ACTIONS: ("steps with an infinite action", "the episode is cut there"),
    ProblemKind.MISSING_STATES: ("steps without a finite state", "the step is left out"),
    ProblemKind.GAPS: ("gaps in time", "the episode is cut there"),
    ProblemKind.TOO_SHORT: ("pieces shorter than one sample", "the piece is left out"),
}
"""What is counted, and what is done about it."""


@dataclass(frozen=True)
class StepRange:
    """Steps ``first`` to ``stop`` − 1 of an episode: all frames, and an action between any two."""

    episode: int
    first: int
    stop: int

    @property
    def steps(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Problem:
    """What is wrong with an episode, and how often (see `RULES` for what is counted)."""

    kind: ProblemKind
    episode: int
    count: int = 1


@dataclass(frozen=True)
class UsableEpisodes:
    """The parts of a recording that training uses, and what is wrong with the rest.

    Attributes:
        ranges: by episode and step. An episode that was cut has several.
        problems: by episode.
        min_steps: the steps of the shortest range that can be used.
    """

    ranges: tuple[StepRange, ...]
    problems: tuple[Problem, ...]
    min_steps: int

    @property
    def episodes(self) -> int:
        return len({steps.episode for steps in self.ranges})

    @property
    def steps(self) -> int:
        return sum(steps.steps for steps in self.ranges)

    def by_kind(self) -> dict[ProblemKind, list[Problem]]:
        """The problems of each kind that there is."""
        kinds = {kind: [p for p in self.problems if p.kind == kind] for kind in ProblemKind}
        return {kind: problems for kind, problems in kinds.items() if problems}

    def require_some(self, path: Path) -> None:
        """Refuse a recording of which nothing can be used.

        Raises:
            RecordingError: the message says why.
        """
        if self.ranges:
            return
        reasons = ", ".join(
            f"{sum(problem.count for problem in problems)} {RULES[kind][0]}"
            for kind, problems in self.by_kind().items()
        )
        advice = ""
        if ProblemKind.TOO_SHORT in self.by_kind():
            advice = " (history · action block + 1); a smaller --action-block needs fewer"
        raise RecordingError(
            f"{path}: no episode can be used: {reasons or 'there are none'}; a sample needs "
            f"{self.min_steps} steps in a row{advice}"
        )


def usable_episodes(
    recording: Recording, *, action: str, min_steps: int, state: str | None = None
) -> UsableEpisodes:
    """Find the steps that training may use. Reads all actions, and no frames.

    Args:
        recording: the recording.
        action: the column of actions.
        min_steps: the steps of one sample, ``history · action_block + 1``.
        state: the column of states, if the model takes them as input.

    Raises:
        RecordingError: the recording cannot be read.
    """
    ranges: list[StepRange] = []
    problems: list[Problem] = []
    for episode, steps in enumerate(recording.contents.episode_steps):
        episode_ranges, episode_problems = check_episode(
            episode,
            steps,
            actions=recording.read_numbers(action, episode),
            states=None if state is None else recording.read_states(state, episode),
            times=recording.read_times(episode),
            min_steps=min_steps,
        )
        ranges += episode_ranges
        problems += episode_problems
    return UsableEpisodes(tuple(ranges), tuple(problems), min_steps)


def check_episode(
    episode: int,
    steps: int,
    *,
    actions: NDArray[np.float32],
    states: NDArray[np.float32] | None,
    times: NDArray[np.float64] | None,
    min_steps: int,
) -> tuple[list[StepRange], list[Problem]]:
    """The usable ranges of one episode of N steps, and its problems.

    Args:
        episode: its number.
        steps: N.
        actions: (N, A); fewer rows are actions that are missing at the end.
        states: (N, S), or None if they are not used.
        times: (N,) in steps of the recording's rate, or None.
        min_steps: the steps of the shortest range that can be used, at least 2.
    """
    # Between N frames are N - 1 transitions. The last action leads to no frame.
    transitions = max(0, steps - 1)
    used = np.full((transitions, max(1, actions.shape[-1])), np.nan, np.float32)
    used[: len(actions)] = actions[:transitions]
    missing = np.isnan(used).any(axis=1)
    infinite = np.isinf(used).any(axis=1) & ~missing
    if transitions and (missing | infinite).all():
        return [], [Problem(ProblemKind.NO_ACTIONS, episode)]
    if steps < min_steps:
        return [], [Problem(ProblemKind.TOO_SHORT, episode)]
    gaps: NDArray[np.bool_] = np.zeros(transitions, bool)
    if times is not None and len(times) == steps:
        periods = np.diff(times)
        if abs(np.median(periods) - 1) > MAX_RATE_DEVIATION:
            return [], [Problem(ProblemKind.OTHER_RATE, episode)]
        gaps = ~((periods > 0) & (periods <= MAX_GAP_STEPS))
    bad_states: NDArray[np.bool_] = np.zeros(steps, bool)
    if states is not None:
        bad_states = ~np.isfinite(states).min(axis=1)
    counts = {
        ProblemKind.MISSING_ACTIONS: missing,
        ProblemKind.INFINITE_ACTIONS: infinite,
        ProblemKind.MISSING_STATES: bad_states,
        ProblemKind.GAPS: gaps,
    }
    problems = [
        Problem(kind, episode, int(found.sum())) for kind, found in counts.items() if found.any()
    ]
    cuts = missing | infinite | gaps | bad_states[:-1] | bad_states[1:]
    ranges = []
    for first, stop in _pieces(cuts, steps):
        if stop - first >= min_steps:
            ranges.append(StepRange(episode, first, stop))
        elif not bad_states[first]:
            problems.append(Problem(ProblemKind.TOO_SHORT, episode))
    return ranges, problems


def _pieces(cuts: NDArray[np.bool_], steps: int) -> Iterable[tuple[int, int]]:
    """First step, and step after the last, of what is left of an episode that is cut."""
    edges = [0, *(np.flatnonzero(cuts) + 1).tolist(), steps]
    return pairwise(edges)
