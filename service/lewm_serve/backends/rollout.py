"""Roll-outs that compute shared work once, with their rows split among threads.

`SharedContextRollout` saves work in three ways. All three are exact: the reference is
`LeWM.rollout`.

- While the window of tokens grows, positions and mask stay valid, so keys and values of earlier
  tokens are reused.
- The context frames before the newest, paired with the actions already executed, are the same for
  all candidates of a plan. Their keys and values are computed once.
- The last predictor layer needs the keys and values of all tokens, but the output of the last token
  only. Modulations (the shift, scale and gate of each layer) depend on actions alone and are
  computed once for each action block.

`SharedContextRollout` knows what plans and their candidates share. A `Kernel` knows how tokens pass
through the predictor: step by step (`StepwiseKernel`) or in one call (`native/backend.py`).

`RowThreads` splits rows (candidates or frames) among threads. If the settings fix no number,
`ThreadPolicy` chooses one thread or all for each size of call, by how long the calls take.

Axes: P plans, S candidates of a plan, R rows (P · S candidates, or P for what a plan's candidates
share), n new tokens, T steps, D latent_dim, A one action block.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from lewm_serve.backends.backend import MAX_TIME_SHARE

logger = logging.getLogger(__name__)

W = TypeVar("W")
"""What a kernel keeps of a window of tokens, such as their keys and values."""

M = TypeVar("M")
"""The modulations of a sequence of actions."""

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
        """Predict the latent (R, D) that follows n latents (R, D) with their actions (n, R, A).

        Also returns the window of these n tokens.
        """

    def roll(self, latest: Tensor, windows: Mapping[int, W], actions: Tensor) -> Tensor:
        """Predict the latents (T, R, D) that follow.

        Args:
            latest: the newest latents (R, D).
            windows: the shared windows, by the index of the context frame that each begins with.
                They hold the frames from there to the one before the newest.
            actions: the actions from the newest latents on (T, R, A).
        """

    def select(self, window: W, rows: Tensor) -> W:
        """The window of these rows (indices)."""


class StepwiseKernel(ABC, Generic[M, W]):
    """Base of kernels that extend a window by some tokens.

    It decides which tokens a window holds at each step. A subclass says how tokens are appended.
    """

    history: int

    @abstractmethod
    def modulations(self, actions: Tensor) -> M:
        """The modulations that follow from actions (T, R, A)."""

    @abstractmethod
    def extend(
        self, window: W | None, latents: Sequence[Tensor], modulations: M, *, step: int
    ) -> tuple[Tensor, W]:
        """Append the tokens of n consecutive latents (R, D) to a window.

        The first token takes the modulations of ``step``, the next ones those of the steps after.

        Returns:
            The predicted latent (R, D) after the last token, and the longer window.
        """

    @abstractmethod
    def tokens(self, window: W) -> int:
        """The number of tokens in a window."""

    def begin(self, latents: Sequence[Tensor], actions: Tensor) -> tuple[Tensor, W]:
        """See `Kernel`."""
        return self.extend(None, latents, self.modulations(actions), step=0)

    def roll(self, latest: Tensor, windows: Mapping[int, W], actions: Tensor) -> Tensor:
        """See `Kernel`. The same loop is in `roll_out` of native/predictor.cpp."""
        modulations = self.modulations(actions)
        latents, window = [latest], windows.get(0)
        context = 1 + (0 if window is None else self.tokens(window))
        for step in range(len(actions)):
            first_frame = max(0, context + step - self.history)
            first_new = step
            if first_frame > 0:
                # Positions restart at 0 when the window slides. So it is computed anew, on top of
                # the shared window that begins with the same frame.
                window = windows.get(first_frame)
                first_new = max(0, first_frame - context + 1)
            latent, window = self.extend(window, latents[first_new:], modulations, step=first_new)
            latents.append(latent)
        return torch.stack(latents[1:])


@dataclass
class SharedContext(Generic[W]):
    """What all candidates of the same plans share: the context without its newest frame.

    Attributes:
        latents: the context (P, H, D) that it was computed from, H ≥ 2.
        past_actions: the actions (P, H − 1, A) of this context.
        newest_prediction: the one-step prediction (P, D) of the newest frame.
        windows: the windows of the frames before the newest, by the index of the frame that each
            begins with.
    """

    latents: Tensor
    past_actions: Tensor
    newest_prediction: Tensor
    windows: dict[int, W]

    def matches(self, latents: Tensor, past_actions: Tensor) -> bool:
        """Whether it was computed from this context."""
        return torch.equal(self.latents, latents) and torch.equal(self.past_actions, past_actions)


class SharedContextRollout(Generic[W]):
    """Rolls candidates out on a kernel; their rows are split among threads.

    ``remember`` keeps what the candidates share until a call has another context, so that the
    iterations of a plan compute it once. It must be off in two cases. Calls that are recorded as
    CUDA graphs must not depend on the content of tensors, and ``remember`` compares contents.
    Gradients cannot pass through tensors that were computed without them.
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
        plan_of_row = torch.arange(plans, device=latents.device).unsqueeze(1)
        plan_of_row = plan_of_row.expand(plans, samples).flatten()

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
        if self._remembered is not None and self._remembered.matches(latents, past_actions):
            return self._remembered
        prediction, window = self._begin(latents, past_actions, first=0)
        shared = SharedContext(
            latents=latents.clone(),  # copies, because the caller may change its tensors later
            past_actions=past_actions.clone(),
            newest_prediction=prediction,
            windows={0: window},
        )
        if self._remember:
            self._remembered = shared
        return shared

    def _windows(self, latents: Tensor, past_actions: Tensor, horizon: int) -> dict[int, W]:
        """The shared windows that a roll-out needs, by the frame that each begins with."""
        context = latents.shape[1]
        if context == 1:
            return {}
        shared = self._shared(latents, past_actions)
        # In step s = 0 … horizon − 1, the window begins with frame max(0, context + s − history).
        # The newest frame is not shared, so no shared window begins with it or later.
        count = min(context - 1, 1 + max(0, context + horizon - 1 - self._kernel.history))
        for first in range(len(shared.windows), count):
            _, shared.windows[first] = self._begin(latents, past_actions, first=first)
        return {first: shared.windows[first] for first in range(count)}

    def _begin(self, latents: Tensor, past_actions: Tensor, *, first: int) -> tuple[Tensor, W]:
        """The one-step prediction of the newest frame, and the window of the frames before it.

        Both use the frames from ``first`` on.
        """
        frames = latents.unbind(1)[first:-1]
        return self._kernel.begin(frames, past_actions[:, first:].transpose(0, 1))


class RowThreads:
    """Splits the rows of a call among threads. Each thread runs the whole call for its rows.

    PyTorch's own threads share one operation, and wait for each other after each operation. These
    threads wait for each other once a call. The split depends only on the number of rows and on the
    number of threads. A thread gets at least ``min_rows`` rows. The threads end with this object.
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
        self.use(threads)

    def use(self, threads: int) -> None:
        """Use this number of threads for every call."""
        self.threads = threads
        self._policy: ThreadPolicy | None = None
        self._grow_pool(threads - 1)  # the calling thread works too

    def choose_by_measurement(self, all_threads: int) -> None:
        """Choose one thread or all for each call from now on, by measurement; see `ThreadPolicy`.

        Call it only if results do not depend on the number of threads.
        """
        self._policy = ThreadPolicy(self.threads, all_threads)
        self._grow_pool(all_threads - 1)

    def renew(self) -> None:
        """Start other threads, of the priority of the thread that makes the next call."""
        threads, self._pool_threads = self._pool_threads, 0
        self._pool = None
        self._grow_pool(threads)

    def map(self, function: Callable[[slice], T], rows: int, *, call: str) -> list[T]:
        """Results of a function for contiguous parts of the rows, in their order.

        ``call`` says what is computed: only calls of the same kind are compared in time.
        """
        if self._policy is None or rows < 2 * self._min_rows:
            return self._map_on(self.threads, function, rows)
        threads = self._policy.threads(call, rows)
        start = self._clock()
        results = self._map_on(threads, function, rows)
        if self._policy.observe(call, rows, threads=threads, seconds=self._clock() - start):
            logger.info("threads changed: %d for %s of about %d rows", threads, call, rows)
        return results

    def _map_on(self, threads: int, function: Callable[[slice], T], rows: int) -> list[T]:
        count = max(1, min(threads, rows // self._min_rows))
        cuts = [rows * index // count for index in range(count + 1)]
        first, *others = (slice(begin, end) for begin, end in itertools.pairwise(cuts))
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
    of two. Every size has its own choice. A new size starts with the choice of the nearest size of
    the same kind of call. If there is none, it takes that of another kind, and the first size of
    all takes ``threads``.

    From time to time a call is a trial: it runs on the other number of threads. A trial is faster
    if it takes less than `MAX_TIME_SHARE` of the median of the recent calls. After a faster trial,
    more trials follow soon, and `TRIALS_TO_SWITCH` faster ones in succession change the choice.
    After any other trial nothing changes, and the next trial comes later. So the choice follows the
    machine: a server that was started while other processes kept the processor busy takes all
    threads when they have ended.

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
        return self._size(call, rows).observe(rows, threads=threads, seconds=seconds)

    def _other(self, threads: int) -> int:
        return self._all_threads if threads == 1 else 1

    def _size(self, call: str, rows: int) -> _CallSize:
        magnitude = rows.bit_length()
        key = call, magnitude
        if key not in self._sizes:
            self._sizes[key] = _CallSize(self._first_choice(call, magnitude))
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
    """Calls of one size, and the number of threads that was chosen for them.

    Attributes:
        threads: the chosen number of threads.
        recent: seconds per row of the latest calls on this number of threads.
        calls: the number of calls since the last trial.
        seconds: how long these calls took together.
        faster_trials: the number of faster trials in succession.
        trial_interval: how many calls come before the next trial.
        trial_cost_s: by how many seconds the last trial was slower than a call.
    """

    threads: int
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_CALLS))
    calls: int = 0
    seconds: float = 0.0
    faster_trials: int = 0
    trial_interval: int = FIRST_TRIAL_CALLS
    trial_cost_s: float = 0.0

    def is_trial_due(self) -> bool:
        """Whether the next call should run on the other number of threads."""
        if self.faster_trials:
            return self.calls >= CALLS_BETWEEN_TRIALS
        affordable = self.trial_cost_s <= MAX_TRIAL_COST * self.seconds
        return self.calls >= self.trial_interval and affordable

    def observe(self, rows: int, *, threads: int, seconds: float) -> bool:
        """See `ThreadPolicy.observe`."""
        if threads == self.threads:
            self.recent.append(seconds / rows)
            self.calls += 1
            self.seconds += seconds
            return False
        typical_s = rows * statistics.median(self.recent)
        faster = seconds < MAX_TIME_SHARE * typical_s
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
