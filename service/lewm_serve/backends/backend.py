"""The interface through which the engine runs a model, and the checks that all backends share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lewm_models.config import LeWMConfig, StateInput
from lewm_serve.objectives import Objective

MAX_TIME_SHARE = 0.9
"""A less preferred option is chosen only if it takes less than this share of the other's time. A
choice that noise could change would change the last bits of a plan from one start to the next."""

WARM_UP_SAMPLES = 16
"""Candidates of `warm_up_rollouts`."""

CHECKED_SAMPLES = 37
"""Candidates of `threads_change_rollouts`; threads cannot share them evenly."""

MAX_ENCODER_ROWS = 32
MAX_ENCODER_TOKENS = 512
"""The encoder takes at most this many frames, or tokens, in one pass. Many small frames share the
cost of launching operations; more tokens than fit in the processor's cache cost more than they save
(measured: frames of 17 tokens are fastest 32 at a time, frames of 257 tokens one at a time)."""


@dataclass(eq=False)
class DeviceRollouts:
    """Roll-outs for searches that stay on the device of a model.

    Attributes:
        roll_out: `Backend.rollout` of tensors on the device. It never waits for the device, and the
            content of tensors does not decide what it does.
        device: the device.
        graph_pool: the memory that CUDA graphs of searches share; None: nothing is recorded.
        searches: what the engine keeps there for its searches, until the backend is released.
    """

    roll_out: Callable[[Tensor, Tensor, Tensor], Tensor]
    device: torch.device
    graph_pool: Any = None
    searches: dict[Any, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Runs one model on one device: `TorchBackend`, `OnnxBackend` or `NativeBackend`.

    `choice.choose_backend` makes it. The thread that loads the models warms it up and times it;
    then only the engine calls it.

    Axes: N frames, P plans, H context frames, S candidates of a plan, T steps, D latent_dim, A one
    action block.
    Inputs and results are tensors on the CPU; latents and actions are float32, actions z-scored.
    """

    name: str
    device: str
    precision: str
    encode_precision: str
    """The precision of latents, which may be higher than that of roll-outs."""
    rows_are_independent: bool
    """Whether the bits of a candidate's roll-out do not depend on the candidates beside it."""

    @property
    def device_rollouts(self) -> DeviceRollouts | None:
        """For searches that stay on the device; None: solvers run on the host."""

    def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        """Encode frames (N, size, size, 3) uint8 to latents (N, D).

        ``states`` (N, X) are for a model with a state input; see `lewm_models.lewm.LeWM.encode`.
        On a CPU, a frame's latent has the same bits whichever frames are encoded with it.
        """

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """Predict the latents (P, S, T, D) that candidates lead to.

        Args:
            latents: the context (P, H, D), oldest first.
            past_actions: the actions between the context frames (P, H − 1, A).
            candidates: the actions to try (P, S, T, A).
        """

    def predict_newest(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """Predict the newest latent of each context (P, D), in one step from those before it.

        Args:
            latents: the context (P, H, D), H ≥ 2. The newest latent itself is not used.
            past_actions: the actions between the context frames (P, H − 1, A).
        """

    def gradients(
        self,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
        *,
        goals: Tensor,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        """Costs (P, S) of candidates, and their gradients (P, S, T, A) with respect to the actions.

        Costs are those of ``objective`` for ``goals`` (P, D); the other inputs are those of
        `rollout`.
        """

    def warm_up(self) -> None:
        """Run each kind of call once, so that no request waits for what only the first call needs.

        If a frame's latent depends on its batch, frames are encoded one by one from now on.
        """


class ThreadedBackend(Backend, Protocol):
    """A backend whose number of CPU threads can be chosen."""

    threads: int
    """CPU threads that share a call. Setting it fixes the number; set it while no call runs."""

    def adapt_threads(self, all_threads: int) -> None:
        """From now on, reconsider by measurement whether one thread or ``all_threads`` are faster.

        ``all_threads`` is at least 2. The bits of results never change: where they depend on the
        number of threads, the number stays as it is, and one warning is logged if the other number
        is found to be faster.
        """

    def renew_threads(self) -> None:
        """Start other threads, of the priority of the thread that makes the next call."""


def hidden_states(given: StateInput, count: int) -> Tensor:
    """The states (count, X) of frames whose states are hidden."""
    return torch.full((count, len(given)), torch.nan)


def encoder_rows(config: LeWMConfig) -> int:
    """The number of frames in one pass through the encoder."""
    return max(1, min(MAX_ENCODER_ROWS, MAX_ENCODER_TOKENS // config.tokens))


def warm_up_rollouts(backend: Backend, config: LeWMConfig) -> None:
    """Roll out from every possible number of context frames, until the window slides."""
    horizon = config.history + 2
    candidates = torch.zeros(1, WARM_UP_SAMPLES, horizon, config.block_width)
    for context in range(1, config.history + 1):
        latents = torch.zeros(1, context, config.latent_dim)
        past_actions = torch.zeros(1, context - 1, config.block_width)
        backend.rollout(latents, past_actions, candidates)
        if context > 1:
            backend.predict_newest(latents, past_actions)


def batch_changes_latents(
    encode: Callable[[Tensor, Tensor | None], Tensor], config: LeWMConfig
) -> bool:
    """Whether any bit of a frame's latent depends on the size of its batch."""
    rows_per_pass = encoder_rows(config)
    generator = torch.Generator().manual_seed(0)
    shape = (rows_per_pass, config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    states = None
    if (given := config.state_input) is not None:
        noise = torch.randn(rows_per_pass, len(given), generator=generator)
        states = torch.tensor(given.mean) + torch.tensor(given.std) * noise
    latents = encode(frames, states)
    return not all(
        torch.equal(
            encode(frames[:rows], None if states is None else states[:rows]), latents[:rows]
        )
        for rows in (1, 2, 3, 5)
        if rows < rows_per_pass
    )


def threads_change_rollouts(backend: ThreadedBackend, config: LeWMConfig, all_threads: int) -> bool:
    """Whether any bit of a roll-out depends on the number of threads; leaves ``threads`` as it is.

    Rolls out from as many context frames as the model takes, until its window slides.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (1, config.history, config.latent_dim),
        (1, config.history - 1, config.block_width),
        (1, CHECKED_SAMPLES, config.history + 1, config.block_width),
    )
    latents, past_actions, candidates = (
        torch.randn(shape, generator=generator) for shape in shapes
    )
    before = backend.threads
    backend.threads = 1
    on_one_thread = backend.rollout(latents, past_actions, candidates)
    backend.threads = all_threads
    on_all_threads = backend.rollout(latents, past_actions, candidates)
    backend.threads = before
    return not torch.equal(on_one_thread, on_all_threads)
