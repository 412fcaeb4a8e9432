"""Frames waiting to be encoded, taken a batch at a time from whoever waits."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lewm_serve.backends.backend import Backend
from lewm_serve.engine.pace import Pace

BATCH_ROWS = 32
"""Frames encoded in one turn of the engine; more gain little and hold up the plans."""


@dataclass(eq=False)
class EncodeJob:
    """Frames (N, size, size, 3) uint8 of one request; ``latents`` holds those encoded so far."""

    backend: Backend
    pace: Pace
    frames: Tensor
    future: Future[Tensor] = field(default_factory=Future)
    latents: list[Tensor] = field(default_factory=list)
    encoded: int = 0

    @property
    def finished(self) -> bool:
        """Whether all frames have been encoded."""
        return self.encoded == len(self.frames)

    def next(self, rows: int) -> Tensor:
        """The next frames, ``rows`` at most."""
        return self.frames[self.encoded : self.encoded + rows]

    def take(self, latents: Tensor) -> None:
        """Keep the latents of the next frames."""
        self.latents.append(latents)
        self.encoded += len(latents)

    def result(self) -> Tensor:
        """The latents (N, D) of a finished job."""
        return torch.cat(self.latents)


def encode_next(jobs: list[EncodeJob]) -> int:
    """Encode the next frames of jobs of one backend as one batch; how many there were.

    Each job gets an equal share of the batch, so that a few frames never wait for very many.
    """
    share = max(1, BATCH_ROWS // len(jobs))
    parts = [job.next(share) for job in jobs[:BATCH_ROWS]]
    latents = jobs[0].backend.encode(torch.cat(parts))
    first = 0
    for job, part in zip(jobs, parts, strict=False):
        job.take(latents[first : first + len(part)])
        first += len(part)
    return len(latents)
