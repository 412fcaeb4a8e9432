"""Roll-outs: what can be computed once is computed once, and rows are split among threads.

`Rollout` saves work in three ways. All three are exact: the reference is `LeWM.rollout`.

- While the window of tokens grows, positions and mask stay valid, so keys and values of earlier
  tokens are reused.
- The context frames before the newest, paired with the actions already executed, are the same for
  all candidates of a plan. Their keys and values are computed once.
- The last predictor block needs the keys and values of all tokens, but the output of the last token
  only. Modulations depend on actions alone and are computed once for each action block.

`Rollout` knows what plans and their candidates share. A `Kernel` knows how tokens pass through the
predictor, step by step (`stepwise.py`) or in one call (`native/backend.py`).

`RowThreads` splits rows (candidates or frames) among threads. Where a server sets no fixed number,
`ThreadPolicy` chooses one thread or all for each size of call, by what the calls take in service.

Axes: P plans, S candidates of a plan, R rows (P · S candidates, or P for what a plan's candidates
share), T steps, D latent_dim, A one action block.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from lewm_serve.backends.backend import PREFERENCE_MARGIN

logger = logging.getLogger(__name__)

W = TypeVar("W")
"""What a kernel keeps of a window of tokens, such as their keys and values."""

T = TypeVar("T")

MIN_ROWS_PER_THREAD = 8
"""A thread gets at least this many candidates; waking it for fewer costs more than it saves."""

FIRST_TRIAL_CALLS, MAX_TRIAL_CALLS = 8, 256
"""Calls of one size before its first trial of the other number of threads. The interval doubles
after each trial, up to the maximum."""

MAX_TRIAL_COST = 0.01
"""Trials may make the calls of one size slower by this share of their time."""

TRIALS_TO_SWITCH = 3
"""Successive faster trials that change the number of threads; one trial may be faster by chance."""

CALLS_BETWEEN_TRIALS = 2
"""Calls on the chosen number of threads between two successive trials."""

MAX_CALL_SIZES = 256
"""Sizes whose calls are remembered; the oldest is forgotten."""

RECENT_CALLS = 5
"""A trial is compared with the median of this many calls on the chosen number of threads."""


class Kernel(Protocol[W]):
    """Runs the predictor of one model. ``W`` is what it keeps of a window of tokens."""

    history: int

    def begin(self, latents: Sequence[Tensor], actions: Tensor) -> tuple[Tensor, W]:
        """The latent (R, D) after n latents (R, D) with actions (n, R, A), and their window."""

    def roll(self, latest: Tensor, windows: Mapping[int, W], actions: Tensor) -> Tensor:
        """Predict the latents (T, R, D) that follow.

        Args:
            latest: the newest latents (R, D).
            windows: windows of the frames before the newest, by the index of the frame they begin
                at: from the oldest frame on, as many as the roll-out needs.
            actions: the actions from the newest latents on (T, R, A).
        """

    def select(self, window: W, rows: Tensor) -> W:
        """The window of these rows (indices)."""


@dataclass
class SharedContext(Generic[W]):
    """What all candidates of the same plans share: the context without its newest frame.

    ``latents`` (P, H, D), H ≥ 2, and ``past_actions`` (P, H − 1, A) are the context that it was
    computed from. ``newest_prediction`` (P, D) follows from the frames before the newest.
    ``windows`` of these frames are stored by the index of the frame they begin at.
    """

    latents: Tensor
    past_actions: Tensor
    newest_prediction: Tensor
    windows: dict[int, W]

    def is_of(self, latents: Tensor, past_actions: Tensor) -> bool:
        """Whether it was computed from this context."""
        return torch.equal(self.latents, latents) and torch.equal(self.past_actions, past_actions)


class Rollout(Generic[W]):
    """Rolls candidates out on a kernel; their rows are split among threads.

    ``remember`` keeps what the candidates share until a call has another context, so that the
    iterations of a plan compute it once. It must be off where calls are recorded as CUDA graphs,
    since it decides by the content of tensors, and where gradients are taken, since tensors that
    were computed without gradients have none.
    """

    def __init__(
        self, kernel: Kernel[W], row_threads: RowThreads, *, remember: bool = False
    ) -> None:
        self._kernel = kernel
        self._row_threads = row_threads
        self._remember = remember
        self._remembered: SharedContext[W] | None = None

    def __call__(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """See `Backend.rollout`: (P, H, D), (P, H − 1, A), (P, S, T, A) → (P, S, T, D)."""
        plans, samples, horizon, width = candidates.shape
        windows = self._windows(latents, past_actions, horizon)
        actions = candidates.reshape(plans * samples, horizon, width).transpose(0, 1)
        newest = latents[:, -1]
        plan_of_row = torch.arange(plans, device=latents.device).repeat_interleave(samples)

        def roll(rows: slice) -> Tensor:
            plan = plan_of_row[rows]
            selected = {
                first: self._kernel.select(window, plan) for first, window in windows.items()
            }
            return self._kernel.roll(newest[plan], selected, actions[:, rows])

        call = f"roll-outs (horizon {horizon}, context {latents.shape[1]})"
        parts = self._row_threads.map(roll, plans * samples, call=call)
        predicted = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return predicted.transpose(0, 1).reshape(plans, samples, horizon, -1)

    def predict_newest(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """See `Backend.predict_newest`: (P, H, D), (P, H − 1, A) → (P, D)."""
        return self._shared(latents, past_actions).newest_prediction

    def _shared(self, latents: Tensor, past_actions: Tensor) -> SharedContext[W]:
        if self._remembered is not None and self._remembered.is_of(latents, past_actions):
            return self._remembered
        prediction, window = self._begin(latents, past_actions, first=0)
        # The caller may change its tensors later, so the comparison needs copies.
        shared = SharedContext(latents.clone(), past_actions.clone(), prediction, {0: window})
        if self._remember:
            self._remembered = shared
        return shared

    def _windows(self, latents: Tensor, past_actions: Tensor, horizon: int) -> dict[int, W]:
        """The shared windows that a roll-out needs, by the frame they begin at."""
        context = latents.shape[1]
        if context == 1:
            return {}
        shared = self._shared(latents, past_actions)
        count = min(context - 1, 1 + max(0, context + horizon - 1 - self._kernel.history))
        for first in range(len(shared.windows), count):
            _, shared.windows[first] = self._begin(latents, past_actions, first=first)
        return {first: shared.windows[first] for first in range(count)}

    def _begin(self, latents: Tensor, past_actions: Tensor, *, first: int) -> tuple[Tensor, W]:
        """The window of all frames but the newest, beginning at frame ``first``."""
        frames = latents.unbind(1)[first:-1]
        return self._kernel.begin(frames, past_actions[:, first:].transpose(0, 1))


class RowThreads:
    """Splits the rows of a call among threads; each thread computes its rows from start to end.

    Threads that share every operation wait for each other after every operation. These threads wait
    for each other once a call. How rows are split depends on their number and on the number of
    threads alone. A thread gets at least ``min_rows`` rows. The threads end with this object.
    """

    def __init__(
        self,
        threads: int = 1,
        *,
        min_rows: int = MIN_ROWS_PER_THREAD,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._min_rows = min_rows
        self._clock = clock
        self._pool: ThreadPoolExecutor | None = None
        self._pool_threads = 0
        self.fix(threads)

    def fix(self, threads: int) -> None:
        """Use this number of threads for every call."""
        self.threads = threads
        self._policy: ThreadPolicy | None = None
        self._grow_pool(threads - 1)

    def adapt(self, all_threads: int) -> None:
        """Choose one thread or all for each call from now on, by measurement; see `ThreadPolicy`.

        Only where results do not depend on the number of threads.
        """
        self._policy = ThreadPolicy(self.threads, all_threads)
        self._grow_pool(all_threads - 1)

    def map(self, function: Callable[[slice], T], rows: int, *, call: str) -> list[T]:
        """Results of a function for contiguous parts of the rows, in their order.

        ``call`` says what is computed: only calls of the same kind are compared in time.
        """
        if self._policy is None or rows < 2 * self._min_rows:
            return self._map(function, rows, self.threads)
        threads = self._policy.threads(call, rows)
        start = self._clock()
        results = self._map(function, rows, threads)
        if self._policy.observe(call, rows, threads=threads, seconds=self._clock() - start):
            logger.info("threads changed: %d for %s of about %d rows", threads, call, rows)
        return results

    def _map(self, function: Callable[[slice], T], rows: int, threads: int) -> list[T]:
        count = max(1, min(threads, rows // self._min_rows))
        cuts = [rows * index // count for index in range(count + 1)]
        first, *others = (slice(*pair) for pair in itertools.pairwise(cuts))
        if self._pool is None or not others:
            return [function(first)]
        futures = [self._pool.submit(function, part) for part in others]
        return [function(first), *(future.result() for future in futures)]

    def _grow_pool(self, threads: int) -> None:
        if threads > self._pool_threads:
            self._pool = ThreadPoolExecutor(threads, "rows")
            self._pool_threads = threads


class ThreadPolicy:
    """Chooses one thread or all threads for each size of call, by how long the calls take.

    Calls have the same size if they are of the same kind and their rows lie between the same powers
    of two. Every size has its own choice. A size that has not occurred before starts with the
    choice of the size of that kind that is nearest to it, or of any kind, or with ``threads``.

    From time to time a call is a trial: it runs on the other number of threads. If it is not faster
    than the median of the recent calls by `PREFERENCE_MARGIN`, nothing changes, and the next trial
    comes later. If it is, more trials follow soon, and `TRIALS_TO_SWITCH` faster ones in succession
    change the choice. So the choice follows the machine: a server that was started while other
    processes kept the processor busy takes all threads when they have ended.

    Only the thread that makes the calls may use it.
    """

    def __init__(self, threads: int, all_threads: int) -> None:
        self._start = threads
        self._all_threads = all_threads
        self._sizes: dict[tuple[str, int], _CallSize] = {}

    def threads(self, call: str, rows: int) -> int:
        """The number of threads on which the next call of this size has to run."""
        size = self._size(call, rows)
        return self._other(size.threads) if size.is_trial_due() else size.threads

    def observe(self, call: str, rows: int, *, threads: int, seconds: float) -> bool:
        """Record how long a call took on a number of threads; whether that changed the choice."""
        return self._size(call, rows).observe(rows, threads, seconds)

    def _other(self, threads: int) -> int:
        return self._all_threads if threads == 1 else 1

    def _size(self, call: str, rows: int) -> _CallSize:
        key = call, rows.bit_length()
        if key not in self._sizes:
            self._sizes[key] = _CallSize(self._first_choice(*key))
            if len(self._sizes) > MAX_CALL_SIZES:
                del self._sizes[next(iter(self._sizes))]
        return self._sizes[key]

    def _first_choice(self, call: str, magnitude: int) -> int:
        if not self._sizes:
            return self._start

        def distance(key: tuple[str, int]) -> tuple[bool, int]:
            return key[0] != call, abs(key[1] - magnitude)

        return self._sizes[min(self._sizes, key=distance)].threads


@dataclass
class _CallSize:
    """Calls of one size: the chosen number of threads, and what they took since the last trial."""

    threads: int
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_CALLS))
    """Seconds a row of the latest calls on the chosen number of threads."""
    calls: int = 0
    seconds: float = 0.0
    faster_trials: int = 0
    trial_interval: int = FIRST_TRIAL_CALLS
    trial_cost_s: float = 0.0
    """By how much the last trial was slower than a call."""

    def is_trial_due(self) -> bool:
        """Whether the next call should run on the other number of threads."""
        if self.faster_trials:
            return self.calls >= CALLS_BETWEEN_TRIALS
        affordable = self.trial_cost_s <= MAX_TRIAL_COST * self.seconds
        return self.calls >= self.trial_interval and affordable

    def observe(self, rows: int, threads: int, seconds: float) -> bool:
        """See `ThreadPolicy.observe`."""
        if threads == self.threads:
            self.recent.append(seconds / rows)
            self.calls += 1
            self.seconds += seconds
            return False
        typical_s = rows * statistics.median(self.recent)
        faster = seconds < PREFERENCE_MARGIN * typical_s
        self.faster_trials = self.faster_trials + 1 if faster else 0
        self.trial_cost_s = max(0.0, seconds - typical_s)
        self.calls, self.seconds = 0, 0.0
        switch = self.faster_trials == TRIALS_TO_SWITCH
        if switch:
            self.threads = threads
            self.recent.clear()
        if switch or not faster:
            self.faster_trials = 0
            self.trial_interval = min(2 * self.trial_interval, MAX_TRIAL_CALLS)
        return switch
