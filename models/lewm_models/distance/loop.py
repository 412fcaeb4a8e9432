"""The training loop that the distance and the proposal share: AdamW, reports, exact resumption."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 100
"""Steps in which the learning rate rises."""

MAX_GRADIENT_NORM = 1.0

REPORT_EVERY = 250
"""Steps from one report, with a checkpoint, to the next."""


@dataclass(frozen=True)
class TrainingReport:
    """A line of a log.

    Attributes:
        part: what is trained: the distance, or the proposal.
        step: the steps done.
        loss: the mean since the line before.
        seconds_per_step: likewise.
        held_out: measures on held-out pieces, by name.
    """

    part: str
    step: int
    loss: float
    seconds_per_step: float
    held_out: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        held_out = {f"held_out_{name}": value for name, value in self.held_out.items()}
        seconds = {"seconds_per_step": self.seconds_per_step}
        return {"step": self.step, "loss": self.loss, **held_out, **seconds}


ReportCallback = Callable[[TrainingReport], None]


class TrainingLoop(ABC):
    """Trains a network by AdamW, with warm-up and a cosine schedule.

    Args:
        network: what is trained.
        kept: networks whose weights a checkpoint holds too.
        identity: what a checkpoint must agree with to be continued, for `torch.save`.
        steps: training steps.
        learning_rate: the highest one.
        weight_decay: of AdamW.

    Attributes:
        step: the steps done.
    """

    part: ClassVar[str]
    """See `TrainingReport`."""

    def __init__(
        self,
        network: nn.Module,
        *,
        kept: Mapping[str, nn.Module],
        identity: Mapping[str, Any],
        steps: int,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        self._parts = {"network": network, **kept}
        self._identity = dict(identity)
        self._steps = steps
        self._learning_rate = learning_rate
        self._parameters = list(network.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=learning_rate, weight_decay=weight_decay
        )
        self.step = 0

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """The loss of a step. All that is drawn at random depends on the seed and the step only."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """The measures on held-out pieces."""

    def run(
        self,
        checkpoint: Path | None = None,
        *,
        on_report: ReportCallback = lambda report: None,
        until: int | None = None,
    ) -> None:
        """Train the remaining steps.

        Args:
            checkpoint: the file that is written with each report.
            on_report: called with each report.
            until: the step to stop at; None trains all steps.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        last = self._steps if until is None else min(self._steps, until)
        losses: list[Tensor] = []
        start = time.perf_counter()
        while self.step < last:
            losses.append(self.update())
            self.step += 1
            if self.step % REPORT_EVERY and self.step != last:
                continue
            loss = torch.stack(losses).mean().item()
            if not math.isfinite(loss):
                raise FloatingPointError(f"{self.part}: step {self.step}: the loss is {loss}")
            seconds = (time.perf_counter() - start) / len(losses)
            on_report(TrainingReport(self.part, self.step, loss, seconds, self.measure()))
            if checkpoint is not None:
                self.save(checkpoint)
            losses, start = [], time.perf_counter()

    def update(self) -> Tensor:
        """Take one step, and return its loss."""
        loss = self.loss(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        warm_up = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        cosine = (1 + math.cos(math.pi * self.step / self._steps)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * warm_up * cosine
        self._optimizer.step()
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write a checkpoint; the file is replaced as a whole."""
        part = path.with_suffix(".part")
        parts = {name: module.state_dict() for name, module in self._parts.items()}
        torch.save(
            {
                "identity": self._identity,
                "step": self.step,
                "optimizer": self._optimizer.state_dict(),
                **parts,
            },
            part,
        )
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint, if it is one of the same training.

        Another checkpoint, and one that is broken, are ignored: training takes minutes.
        """
        try:
            saved: Mapping[str, Any] = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError):
            return
        if saved.get("identity") != self._identity:
            return
        for name, module in self._parts.items():
            module.load_state_dict(saved[name])
        self._optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
