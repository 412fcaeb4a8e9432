"""The training loop: AdamW with warm-up and a cosine schedule, exact resumption, BatchNorm."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lewm_models.lewm import LeWM, initialise
from lewm_models.loss import Losses, lewm_loss, random_directions
from lewm_models.training.action_head import ActionHead
from lewm_models.training.diagnostics import diagnose
from lewm_models.training.windows import Batch, Windows, batch_order

BATCH_NORM_BATCHES, REPORT_BATCHES = 64, 8
"""The batches that BatchNorm's statistics are averaged over, at the end and for a report."""

REPORT_EVERY, SAVE_EVERY = 250, 50
"""Steps from one report, and from one checkpoint, to the next."""

QUIET_SHARE = 0.1
"""In this share of the steps a model is not judged to have collapsed: it has learnt too little."""

HIDDEN_STATES = 0.1
"""The share of the frames whose states are hidden from a model with a state input: requests may
come without them."""

BFLOAT16_TIME_SHARE = 0.7
"""bfloat16 is used on a CPU if a product takes less than this share of its time in float32."""


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of the training loop; the defaults are those of the paper and its code.

    Args:
        steps: training steps.
        learning_rate: the highest one, after the warm-up.
        seed: of the weights, the order of samples, the dropout and the directions of SIGReg.
        batch: windows per step.
        weight_decay: of AdamW.
        warmup: the share of the steps in which the learning rate rises.
        clip: the largest norm of the gradient.
        sigreg_weight: the weight of SIGReg in the loss.
        directions: the number of SIGReg's random directions per step.
        action_head_weight: the weight of the loss of `ActionHead`; 0 trains without it.
    """

    steps: int
    learning_rate: float
    seed: int = 0
    batch: int = 128
    weight_decay: float = 1e-3
    warmup: float = 0.01
    clip: float = 1.0
    sigreg_weight: float = 0.09
    directions: int = 1024
    action_head_weight: float = 0.0


@dataclass(frozen=True)
class TrainingMetrics:
    """One line of a run's log.

    ``prediction`` and ``sigreg`` are means over the steps since the line before. All others are of
    one batch of held-out windows and of the model as it would be if training ended here; see
    `Diagnostics` for their meaning.

    ``collapse`` says why the model has collapsed; None if it has not.
    """

    step: int
    prediction: float
    sigreg: float
    held_out_prediction: float
    held_out_sigreg: float
    copy_error: float
    cost_range: float
    effective_rank: float
    latent_std: float
    seconds_per_step: float
    collapse: str | None = None

    @property
    def prediction_to_copy(self) -> float:
        """The held-out error of the prediction relative to copying the last latent."""
        return self.held_out_prediction / max(self.copy_error, 1e-12)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "prediction_to_copy": self.prediction_to_copy}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> TrainingMetrics:
        return cls(**{field.name: line[field.name] for field in fields(cls)})


MetricsCallback = Callable[[TrainingMetrics], None]

StepCallback = Callable[[int, int], None]
"""Called with the number of steps done and in all."""


def fastest_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where it is faster than float32, which is measured on a CPU; else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.bfloat16, torch.float32)}
    is_faster = seconds[torch.bfloat16] < BFLOAT16_TIME_SHARE * seconds[torch.float32]
    return torch.bfloat16 if is_faster else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    # The size is small, because without hardware support a large product takes seconds.
    matrix = torch.ones(512, 512, dtype=dtype)
    durations = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        durations.append(time.perf_counter() - start)
    return min(durations)


class Trainer:
    """Trains a model. All randomness depends on the seed and the step only.

    Args:
        model: is moved to the device.
        windows: the training samples.
        held_out: the samples for the held-out losses.
        config: the settings.
        device: where to train.
        precision: of matrix products; None takes the fastest, or that of the run to be resumed.
        initial_version: the version of the model whose weights ``model`` has; None gives it new
            weights.
    """

    def __init__(
        self,
        model: LeWM,
        windows: Windows,
        *,
        held_out: Windows,
        config: TrainingConfig,
        device: torch.device,
        precision: torch.dtype | None = None,
        initial_version: str | None = None,
    ) -> None:
        if initial_version is None:
            initialise(model, torch.Generator().manual_seed(config.seed))
        self.initial_version = initial_version
        self.model = model.to(device)
        self.head: ActionHead | None = None
        if config.action_head_weight > 0:
            with torch.random.fork_rng([]):
                torch.manual_seed(config.seed)
                self.head = ActionHead(model.config).to(device)
        self.windows = windows
        self.held_out = held_out
        self.config = config
        self.device = device
        self.precision = precision or fastest_precision(device)
        self.step = 0
        self.seconds = 0.0
        self.optimizer = torch.optim.AdamW(
            self._parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def _parameters(self) -> list[nn.Parameter]:
        head = [] if self.head is None else list(self.head.parameters())
        return [*self.model.parameters(), *head]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: a linear warm-up, then a cosine down to zero."""
        config = self.config
        warmup_steps = max(1, round(config.warmup * config.steps))
        if step < warmup_steps:
            return config.learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, config.steps - warmup_steps)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def losses(self, batch: Batch, step: int) -> Losses:
        """The losses of a batch, with the directions, the hidden states and the dropout of this
        step."""
        frames = batch.frames.to(self.device, non_blocking=True)
        actions = batch.actions.to(self.device, non_blocking=True)
        torch.manual_seed(
            int(np.random.SeedSequence((self.config.seed, step)).generate_state(1)[0])
        )
        directions = random_directions(self.model.config.latent_dim, self.config.directions)
        states = None if batch.states is None else _hide_some(batch.states).to(self.device)
        with (
            torch.autocast(
                self.device.type, self.precision, enabled=self.precision != torch.float32
            ),
            self._attention(),
        ):
            return lewm_loss(
                self.model,
                frames,
                actions,
                directions=directions.to(self.device),
                sigreg_weight=self.config.sigreg_weight,
                states=states,
                head_loss=None if self.head is None else self.head.loss,
                head_weight=self.config.action_head_weight,
            )

    def _attention(self) -> AbstractContextManager[None]:
        """Attention by plain products in bfloat16 on a CPU, where the gradient of PyTorch's fused
        attention takes half the time of a step at `edge` size."""
        if self.device.type == "cpu" and self.precision == torch.bfloat16:
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def run(
        self,
        checkpoint: Path | None = None,
        *,
        on_metrics: MetricsCallback | None = None,
        on_step: StepCallback = lambda done, total: None,
        report_every: int = REPORT_EVERY,
        save_every: int = SAVE_EVERY,
        until: int | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train, and report and save now and then and at the end.

        Args:
            checkpoint: where to save the state; None saves nothing.
            on_metrics: called with each report, before it is saved.
            on_step: called at the start and after each step.
            report_every: steps.
            save_every: steps. Each report is saved too.
            until: the step to stop at; None trains all steps.
            is_stopped: asked after each step. If it says so, the state is saved and training ends.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        config = self.config
        last = config.steps if until is None else min(config.steps, until)
        order = batch_order(len(self.windows), config.batch, seed=config.seed, first_step=self.step)
        sums, reported, start = np.zeros(2), self.step, time.perf_counter()
        reported_seconds = self.seconds
        with ThreadPoolExecutor(max_workers=1) as loader:
            upcoming = loader.submit(self.windows.batch, next(order))
            if self.step < last:
                on_step(self.step, config.steps)
            stops = False
            while self.step < last and not stops:
                batch = upcoming.result()
                upcoming = loader.submit(self.windows.batch, next(order))
                sums += self._update(batch)
                self.step += 1
                on_step(self.step, config.steps)
                stops = is_stopped()
                is_report = self.step % report_every == 0 or self.step == last
                if not is_report and not stops and self.step % save_every:
                    continue
                if not np.isfinite(sums).all():
                    means = (sums / (self.step - reported)).tolist()
                    raise FloatingPointError(f"step {self.step}: losses are {means}")
                self.seconds += time.perf_counter() - start
                if is_report:
                    steps = self.step - reported
                    seconds = (self.seconds - reported_seconds) / steps
                    if on_metrics is not None:
                        on_metrics(self._metrics(sums / steps, seconds))
                    sums, reported, reported_seconds = np.zeros(2), self.step, self.seconds
                if checkpoint is not None:
                    self.save(checkpoint)
                start = time.perf_counter()

    def _update(self, batch: Batch) -> np.ndarray:
        self.model.train()
        losses = self.losses(batch, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        return np.array([losses.prediction.item(), losses.sigreg.item()])

    @torch.no_grad()
    def _metrics(self, means: np.ndarray, seconds_per_step: float) -> TrainingMetrics:
        """A report, measured on a copy of the model with BatchNorm statistics as at the end."""
        model = copy.deepcopy(self.model)
        reestimate_batch_norm(
            model,
            self.windows,
            batch=self.config.batch,
            seed=self.config.seed,
            batches=REPORT_BATCHES,
        )
        chosen = np.linspace(0, len(self.held_out) - 1, self.config.batch).astype(np.int64)
        found = diagnose(model, self.held_out.batch(chosen))
        is_judged = self.step >= QUIET_SHARE * self.config.steps
        return TrainingMetrics(
            step=self.step,
            prediction=float(means[0]),
            sigreg=float(means[1]),
            held_out_prediction=found.prediction_error,
            held_out_sigreg=found.sigreg,
            copy_error=found.copy_error,
            cost_range=found.cost_range,
            effective_rank=found.effective_rank,
            latent_std=found.latent_std,
            seconds_per_step=seconds_per_step,
            collapse=found.collapse if is_judged else None,
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint; the file is replaced as a whole."""
        part = path.with_suffix(".part")
        torch.save(
            {
                "config": asdict(self.config),
                "architecture": asdict(self.model.config),
                "precision": self.precision,
                "initial": self.initial_version,
                "step": self.step,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "head": None if self.head is None else self.head.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            part,
        )
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: the checkpoint is broken, or comes from a run with other settings.
        """
        saved = self._read(path)
        for part, settings in (("config", self.config), ("architecture", self.model.config)):
            expected = asdict(settings)
            # A checkpoint of an earlier version lacks newer settings. It had their defaults.
            defaults = {
                field.name: field.default
                for field in fields(settings)
                if field.default is not MISSING
            }
            found = {**defaults, **saved.get(part, expected)}
            if found != expected:
                raise ValueError(f"{path}: {_describe_difference(found, expected, path.parent)}")
        if saved.get("initial") != self.initial_version:
            raise ValueError(
                f"{path.name}: was written by a run from {saved.get('initial') or 'new weights'}, "
                f"this one is from {self.initial_version or 'new weights'}; give another --output"
            )
        # The precision changes every number, so the one that the run began with is kept.
        self.precision = saved.get("precision", self.precision)
        self.model.load_state_dict(saved["model"])
        if self.head is not None:
            self.head.load_state_dict(saved["head"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        self.seconds = saved.get("seconds", 0.0)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise ValueError(
                f"{path}: is not a complete checkpoint; remove it to start again"
            ) from error
        required = ("config", "step", "model", "optimizer")
        if missing := [part for part in required if part not in saved]:
            raise ValueError(f"{path}: lacks {', '.join(missing)}; remove it to start again")
        return dict(saved)


def _describe_difference(
    found: Mapping[str, Any], expected: Mapping[str, Any], output: Path
) -> str:
    """What differs between the settings of the saved run and those of this one, and what to do."""
    names = [name for name in expected if found.get(name) != expected[name]]
    if not names:
        return "was written by another version of the program; give another --output"
    then, now = (
        ", ".join(f"{name} {settings.get(name)}" for name in names)
        for settings in (found, expected)
    )
    advice = "give another --output"
    if names == ["steps"]:
        advice = (
            "the learning rate falls to 0 over the steps of a run, so a longer run is another "
            f"one: give another --output, or carry on with the trained model by --from "
            f"{output / 'model'}"
        )
    return f"was written by a run with {then}, this one has {now}; {advice}"


def _hide_some(states: Tensor) -> Tensor:
    """States (B, T, S), with NaN in a share of `HIDDEN_STATES` of the frames."""
    hidden = torch.rand(states.shape[:2]) < HIDDEN_STATES
    return states.masked_fill(hidden.unsqueeze(-1), torch.nan)


@torch.no_grad()
def reestimate_batch_norm(
    model: LeWM, windows: Windows, *, batch: int, seed: int, batches: int = BATCH_NORM_BATCHES
) -> None:
    """Compute BatchNorm's statistics again with the final weights; the model is in ``eval()`` then.

    The statistics become plain averages over some training batches. The running
    averages of training cannot be used: the part that all latents share drifts from step to step by
    more than latents differ from each other, so averages over past steps move the latents far from
    those of training (in one run that stopped at the full learning rate, the norm of their mean was
    25, and 0.8 after this function).
    """
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    order = batch_order(len(windows), min(batch, len(windows)), seed=seed, first_step=0)
    for _, indices in zip(range(batches), order, strict=False):
        drawn = windows.batch(indices)
        states = None if drawn.states is None else drawn.states.flatten(0, 1).to(device)
        latents = model.encode(drawn.frames.flatten(0, 1).to(device), states)
        latents = latents.reshape(*drawn.frames.shape[:2], latents.shape[-1])
        model.predict(latents[:, :-1], drawn.actions.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
