"""The training loop: two losses, AdamW, warm-up and cosine, and a resume that repeats nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lewm_models.lewm import LeWM, initialise
from lewm_models.objective import Losses, lewm_loss, random_directions
from lewm_models.training.recording import Windows, batch_order


@dataclass(frozen=True)
class TrainingConfig:
    """What a run is made of beside its data; defaults where the paper and its code agree."""

    steps: int
    learning_rate: float
    seed: int = 0
    batch: int = 128
    weight_decay: float = 1e-3
    warmup: float = 0.01
    clip: float = 1.0
    sigreg_weight: float = 0.09
    directions: int = 1024


@dataclass(frozen=True)
class Metrics:
    """One line of a run's log; losses are means over the steps since the line before."""

    step: int
    prediction: float
    sigreg: float
    held_out_prediction: float
    held_out_sigreg: float
    latent_std: float
    seconds_a_step: float


Report = Callable[[Metrics], None]


def fastest_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where a large product is really faster in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32

    def seconds(dtype: torch.dtype) -> float:
        # Small, since without hardware for it a large product takes seconds in bfloat16.
        a = torch.ones(512, 512, dtype=dtype)
        durations = []
        for _ in range(4):
            start = time.perf_counter()
            a @ a
            durations.append(time.perf_counter() - start)
        return min(durations)

    return (
        torch.bfloat16 if seconds(torch.bfloat16) < 0.7 * seconds(torch.float32) else torch.float32
    )


class Trainer:
    """Trains a model on windows. All randomness follows from (seed, step), so none is saved.

    ``precision`` is that of the products; by default the fastest, or that of the run resumed.
    """

    def __init__(
        self,
        model: LeWM,
        windows: Windows,
        held_out: Windows,
        config: TrainingConfig,
        device: torch.device,
        precision: torch.dtype | None = None,
    ) -> None:
        initialise(model, torch.Generator().manual_seed(config.seed))
        self.model = model.to(device)
        self.windows = windows
        self.held_out = held_out
        self.config = config
        self.device = device
        self.precision = precision or fastest_precision(device)
        self.step = 0
        self.seconds = 0.0
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def learning_rate(self, step: int) -> float:
        """Linear warm-up over the first share of the steps, then a cosine down to zero."""
        config = self.config
        warmup = max(1, round(config.warmup * config.steps))
        if step < warmup:
            return config.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, config.steps - warmup)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> Losses:
        """Both losses of one batch, with the directions and the dropout of that step."""
        frames, actions = (part.to(self.device, non_blocking=True) for part in batch)
        torch.manual_seed(hash((self.config.seed, step)) & 0x7FFFFFFF)
        directions = random_directions(self.model.config.latent_dim, self.config.directions).to(
            self.device
        )
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            return lewm_loss(self.model, frames, actions, directions, self.config.sigreg_weight)

    def run(
        self,
        checkpoint: Path | None = None,
        report: Report | None = None,
        report_every: int = 50,
        until: int | None = None,
    ) -> None:
        """Train up to ``until`` (default: the last step), saving at each report.

        Raises:
            FloatingPointError: a loss is no longer finite.
        """
        last = min(self.config.steps, until or self.config.steps)
        order = batch_order(len(self.windows), self.config.batch, self.config.seed, self.step)
        sums, since, start = np.zeros(2), self.step, time.perf_counter()
        with ThreadPoolExecutor(max_workers=1) as loader:
            upcoming = loader.submit(self.windows.batch, next(order))
            while self.step < last:
                batch = upcoming.result()
                upcoming = loader.submit(self.windows.batch, next(order))
                sums += self._update(batch)
                self.step += 1
                if self.step % report_every == 0 or self.step == last:
                    elapsed = time.perf_counter() - start
                    self.seconds += elapsed
                    means = sums / (self.step - since)
                    if not np.isfinite(means).all():
                        raise FloatingPointError(f"step {self.step}: losses are {means.tolist()}")
                    if report is not None:
                        report(self._metrics(means, elapsed / (self.step - since)))
                    if checkpoint is not None:
                        self.save(checkpoint)
                    sums, since, start = np.zeros(2), self.step, time.perf_counter()

    def _update(self, batch: tuple[Tensor, Tensor]) -> np.ndarray:
        self.model.train()
        losses = self.losses(batch, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        return np.array([losses.prediction.item(), losses.sigreg.item()])

    @torch.no_grad()
    def _metrics(self, means: np.ndarray, seconds_a_step: float) -> Metrics:
        self.model.eval()
        chosen = np.linspace(0, len(self.held_out) - 1, self.config.batch).astype(np.int64)
        batch = self.held_out.batch(chosen)
        losses = self.losses(batch, 0)
        latents = self.model.encode(batch[0][:, 0].to(self.device))
        return Metrics(
            step=self.step,
            prediction=float(means[0]),
            sigreg=float(means[1]),
            held_out_prediction=losses.prediction.item(),
            held_out_sigreg=losses.sigreg.item(),
            latent_std=latents.std(dim=0).mean().item(),
            seconds_a_step=seconds_a_step,
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint whole or not at all."""
        part = path.with_suffix(".part")
        torch.save(
            {
                "config": asdict(self.config),
                "architecture": asdict(self.model.config),
                "precision": self.precision,
                "step": self.step,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            part,
        )
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: it is broken, or was written with other settings, which would mix two runs.
        """
        saved = self._read(path)
        for part, mine in (("config", self.config), ("architecture", self.model.config)):
            theirs = saved.get(part, asdict(mine))  # checkpoints once had no architecture
            if theirs != asdict(mine):
                raise ValueError(
                    f"{path.name}: was written by a run with {theirs}, "
                    f"this one has {asdict(mine)}; give another --output"
                )
        # What was fastest when the run began may not be now, and changes every number.
        self.precision = saved.get("precision", self.precision)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        self.seconds = saved.get("seconds", 0.0)

    def _read(self, path: Path) -> dict[str, Any]:
        """A checkpoint that has what no run can be resumed without."""
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise ValueError(f"{path}: is no whole checkpoint; remove it to start again") from error
        required = ("config", "step", "model", "optimizer")
        if missing := [part for part in required if part not in saved]:
            raise ValueError(f"{path}: lacks {', '.join(missing)}; remove it to start again")
        return dict(saved)
