"""The work of several requests in one run of the model.

Frames of several requests are encoded in one batch. Roll-outs of several plans share one batch
where more rows increase the throughput, padded to a few fixed shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lewm_serve.engine.jobs import EncodeJob, Job
from lewm_serve.engine.latency_model import LatencyModel

MIN_ENCODE_BATCH, MAX_ENCODE_BATCH = 4, 32
"""Frames in one batch. Fewer leave threads without work. More gain little and delay the plans."""

ENCODE_TURN_S = 0.01
"""A batch of frames takes about this long, so that it delays the plans only briefly."""


def encode_batch_size(latency: LatencyModel) -> int:
    """The most frames in one batch."""
    frame_s = latency.encode_s(1)
    frames = int(ENCODE_TURN_S / frame_s) if frame_s > 0 else MAX_ENCODE_BATCH
    return min(MAX_ENCODE_BATCH, max(MIN_ENCODE_BATCH, frames))


def encode_batch(jobs: Sequence[EncodeJob], max_frames: int) -> int:
    """Encode the next frames of jobs of one backend as one batch. Returns their number.

    Urgent jobs come first, in their order. The others get equal shares of what is left, so that a
    small request does not wait for a large one. Each job takes its latents, and its request counts
    the started frames.
    """
    batched_jobs, parts, states = [], [], []
    left = max_frames
    for index, job in enumerate(jobs):
        count = left if job.queued.is_urgent else max(1, left // (len(jobs) - index))
        part, states_of_part = job.next_frames(min(left, count))
        job.queued.frames_started += len(part)
        batched_jobs.append(job)
        parts.append(part)
        if states_of_part is not None:
            states.append(states_of_part)
        left -= len(part)
        if left == 0:
            break
    latents = jobs[0].backend.encode(torch.cat(parts), torch.cat(states) if states else None)
    first = 0
    for job, part in zip(batched_jobs, parts, strict=True):
        job.take(latents[first : first + len(part)])
        first += len(part)
    return len(latents)


def can_share_rollout(first: Job, second: Job) -> bool:
    """Whether the next candidates of two jobs can be rolled out in one batch."""
    return (
        first.can_be_batched
        and second.can_be_batched
        and first.backend is second.backend
        and first.batch_key == second.batch_key
        and first.queued.shape.context == second.queued.shape.context
        and first.queued.shape.horizon == second.queued.shape.horizon
    )


def batch_rows(candidate_counts: Sequence[int]) -> int:
    """Rows of one roll-out for plans with these numbers of candidates, padding included.

    A single plan is not padded.
    """
    if len(candidate_counts) == 1:
        return candidate_counts[0]
    return padded_size(len(candidate_counts)) * padded_size(max(candidate_counts))


def padded_size(count: int) -> int:
    """The least 2ⁿ or 3 · 2ⁿ⁻¹ that is at least ``count``.

    There are few such sizes, and at most a third of the batch is padding.
    """
    power = 1 << (count - 1).bit_length()
    return 3 * power // 4 if power >= 4 and count <= 3 * power // 4 else power


def roll_out_batch(jobs: Sequence[Job]) -> list[Tensor]:
    """Roll out the next candidates of all jobs at once. Returns the latents (S, T, D) of each job.

    The padding repeats the first plan, and the first candidate of each plan. Its results are
    dropped, so it changes neither an answer nor a random stream.
    """
    samples = padded_size(max(job.candidate_count for job in jobs))
    padding = [jobs[0]] * (padded_size(len(jobs)) - len(jobs))
    padded_jobs = [*jobs, *padding]
    predicted = jobs[0].backend.rollout(
        torch.stack([job.latents for job in padded_jobs]),
        torch.stack([job.past_actions for job in padded_jobs]),
        torch.stack([_pad_candidates(job.candidates, samples) for job in padded_jobs]),
    )
    return [latents[: job.candidate_count] for latents, job in zip(predicted, jobs, strict=False)]


def _pad_candidates(candidates: Tensor, samples: int) -> Tensor:
    """Candidates (S, T, A) → (samples, T, A)."""
    missing = samples - len(candidates)
    return torch.cat([candidates, candidates[:1].expand(missing, -1, -1)])
