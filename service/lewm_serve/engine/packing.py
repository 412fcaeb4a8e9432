"""Several plans' candidates in one roll-out, padded to a few fixed shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lewm_serve.engine.jobs import Job


def padded(count: int) -> int:
    """The least 2ⁿ or 3 · 2ⁿ⁻¹ that holds ``count``: a third is padding at most, shapes are few."""
    power = 1 << (count - 1).bit_length()
    return 3 * power // 4 if power >= 4 and count <= 3 * power // 4 else power


def fit_together(lead: Job, other: Job) -> bool:
    """Whether two jobs' next candidates may share a roll-out."""
    return (
        lead.packs
        and other.packs
        and lead.backend is other.backend
        and lead.latents.shape == other.latents.shape
        and lead.ticket.shape.horizon == other.ticket.shape.horizon
    )


def packed_rows(rows: Sequence[int]) -> int:
    """Rows of one roll-out for plans of so many candidates each; one alone is not padded."""
    return rows[0] if len(rows) == 1 else padded(len(rows)) * padded(max(rows))


def rollout_packed(jobs: Sequence[Job]) -> list[Tensor]:
    """Roll the jobs' next candidates out at once; each one's predicted latents (S, T, D).

    Padding repeats the first plan and each plan's first candidate; what comes of it is dropped, so
    it changes no answer and no random stream.
    """
    samples = padded(max(job.rows for job in jobs))
    rest = [jobs[0]] * (padded(len(jobs)) - len(jobs))
    everyone = [*jobs, *rest]
    predicted = jobs[0].backend.rollout(
        torch.stack([job.latents for job in everyone]),
        torch.stack([job.past_actions for job in everyone]),
        torch.stack([_fill(job.candidates, samples) for job in everyone]),
    )
    return [latents[: job.rows] for latents, job in zip(predicted, jobs, strict=False)]


def _fill(candidates: Tensor, samples: int) -> Tensor:
    """Candidates (S, T, A) → (samples, T, A)."""
    missing = samples - len(candidates)
    return torch.cat([candidates, candidates[:1].expand(missing, -1, -1)])
