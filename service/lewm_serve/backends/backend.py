"""What the engine asks of whatever runs a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


def goal_costs(predicted: Tensor, goals: Tensor) -> Tensor:
    """Squared distances of the last latents predicted (…, S, T, D) from goals (…, D) → (…, S)."""
    return (predicted[..., -1, :] - goals.unsqueeze(-2)).square().sum(dim=-1)


class Backend(Protocol):
    """Runs one model on one device; called by the engine's thread alone.

    Axes: N frames, P plans, H context latents, S candidates of a plan, T steps, D latent_dim, A one
    action block.
    Tensors come and go on the CPU, latents and actions in float32; actions are z-scored.
    """

    name: str
    device: str
    precision: str
    encode_precision: str
    """Of latents, which may be made more exactly than roll-outs."""

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (N, size, size, 3) uint8 → latents (N, D).

        On a CPU, a frame's latent is the same, bit for bit, whichever frames come with it.
        """

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        """Latents (P, H, D), past (P, H − 1, A), candidates (P, S, T, A) → latents (P, S, T, D)."""

    def expect(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        """Latents (P, H, D), H ≥ 2, past (P, H − 1, A) → what the newest (P, D) should have been.

        That is the prediction from the others and the past, in which the newest has no part.
        """

    def gradients(
        self, latents: Tensor, past_actions: Tensor, candidates: Tensor, goals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `rollout`, and goals (P, D) → costs (P, S), and how each changes with its candidate.

        The costs are those of `goal_costs`, their gradients (P, S, T, A).
        """

    def warm_up(self) -> None:
        """Run what will be served once, so that no request pays for it.

        Batches of frames are given up where they would change a latent.
        """


class ThreadedBackend(Backend, Protocol):
    """A backend as a server sets it up."""

    threads: int
    """CPU threads that share a call; may be set while nothing runs."""
