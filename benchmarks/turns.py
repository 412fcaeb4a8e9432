"""Timing several things in turns, so that a disturbance of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def take_turns(
    tasks: Mapping[str, Callable[[], object]],
    rounds: int,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, list[float]]:
    """Seconds of each task, once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds):
        for name, task in tasks.items():
            say(f"round {number + 1} of {rounds}: {name}")
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over the rounds of one divided by the other."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def on_threads(threads: int, task: Callable[[], object]) -> Callable[[], None]:
    """The task on so many of PyTorch's threads; its own number is put back."""

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        task()
        torch.set_num_threads(before)

    return run
