"""What the sections of the benchmark share: the device, the time that is left, the planner."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from benchmarks.gpu.plans import EnginePlanner, Subject, choose, paper_subject
from benchmarks.report import Measurement
from lewm_serve.backends.choice import BackendChoice


@dataclass
class Found:
    """What a section has measured, and the values behind it."""

    measurements: list[Measurement]
    details: dict[str, Any] = field(default_factory=dict)

    def skip(self, section: str, expected: Sequence[Measurement], note: str) -> None:
        """Say of a section why it measured nothing."""
        missing = expected or (Measurement(section, None, ""),)
        self.measurements += [replace(one, note=note) for one in missing]


class Bench:
    """The device and the time of the section that runs.

    Attributes:
        device: where models run.
        small: whether shapes are tiny.
        show_progress: called with a text that says what is being done.
        until: when the section has to end (`time.monotonic`).
    """

    def __init__(
        self, device: torch.device, *, small: bool, show_progress: Callable[[str], None]
    ) -> None:
        self.device = device
        self.small = small
        self.show_progress = show_progress
        self.until = 0.0

    @property
    def left_s(self) -> float:
        """Seconds that the section still has."""
        return self.until - time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether nothing more should begin. With tiny shapes everything is tried once."""
        return self.left_s <= 0 and not self.small

    def share_until(self, share: float) -> float:
        """When a part ends that gets this share of the time that is left."""
        return time.monotonic() + share * max(0.0, self.left_s)

    @cached_property
    def subject(self) -> Subject:
        """The model of the paper's size."""
        return paper_subject(small=self.small)

    @cached_property
    def choice(self) -> BackendChoice:
        """Its backend."""
        self.show_progress("choosing a precision")
        return choose(self.subject, self.device)

    @cached_property
    def planner(self) -> EnginePlanner:
        """Its plans; warmed up."""
        choice = self.choice
        self.show_progress("recording")
        planner = EnginePlanner(self.subject, choice.backend)
        planner.plan(0)
        return planner

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(self, task: Callable[[], object], until: float, most: int = 100) -> list[float]:
        """Seconds of runs of a task on the device, after one that is not counted; at least one."""
        task()
        self.synchronize()
        seconds: list[float] = []
        while not seconds or (len(seconds) < most and time.monotonic() < until):
            start = time.perf_counter()
            task()
            self.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds

    def close(self) -> None:
        """Stop the engine."""
        if "planner" in self.__dict__:
            self.planner.stop()
