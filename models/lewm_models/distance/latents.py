"""The latents that a distance is trained on: some frames of each recorded piece, encoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lewm_models.lewm import LeWM
from lewm_models.preprocessing import resize
from lewm_models.training.prepared import PreparedData

MAX_FRAMES = 100_000
"""The most frames that are encoded; of longer data, evenly spaced pieces are taken."""

MODEL_BATCH = 256
"""Frames that are encoded at once."""

Progress = Callable[[int, int], None]
"""Called with the number of frames done and in all."""


@dataclass(frozen=True)
class PieceLatents:
    """The latents of P pieces, in their order.

    Attributes:
        latents: (N, D) float32, one piece after another.
        offsets: (P + 1,), the first row of each piece, and N.
        times: (N,) float32, when each was recorded, in action blocks since the piece began.
    """

    latents: Tensor
    offsets: NDArray[np.int64]
    times: NDArray[np.float32]

    @property
    def fingerprint(self) -> str:
        """A hash of everything."""
        content = hashlib.sha256(self.latents.numpy().tobytes())
        content.update(self.offsets.tobytes() + self.times.tobytes())
        return content.hexdigest()

    @cached_property
    def rows_left(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that have a next one in their piece, and how many rows come after each."""
        lengths = np.diff(self.offsets)
        left = np.repeat(self.offsets[1:], lengths) - 1 - np.arange(len(self.latents))
        rows = np.flatnonzero(left)
        return rows, left[rows]


def chosen_rows(
    data: PreparedData, pieces: NDArray[np.int64], block: int
) -> list[NDArray[np.int64]]:
    """The rows of the frames of each piece that has at least two of them.

    They are 1, 2, … ``block`` steps apart, and again from 1: a distance that is trained on frames
    one block apart alone cannot tell goals apart that are less than a block away. Of data that have
    fewer frames, only existing frames are taken. If there are more than `MAX_FRAMES`, evenly spaced
    pieces are taken.
    """
    every = data.frame_every
    cycle = np.arange(every, max(block, every) + 1, every)
    rows = []
    for part in map(data.rows, pieces.tolist()):
        gaps = np.resize(cycle, len(part))
        steps = np.concatenate([[0], np.cumsum(gaps)])
        rows.append(part.start + steps[steps < len(part)])
    rows = [part for part in rows if len(part) > 1]
    frames = sum(map(len, rows))
    if frames <= MAX_FRAMES:
        return rows
    count = max(1, len(rows) * MAX_FRAMES // frames)
    places = np.linspace(0, len(rows) - 1, count).astype(np.int64).tolist()
    return [rows[place][:MAX_FRAMES] for place in places]


def encode_pieces(
    model: LeWM,
    data: PreparedData,
    pieces: NDArray[np.int64],
    *,
    cache: Path,
    progress: Progress = lambda done, total: None,
) -> PieceLatents:
    """Encode the `chosen_rows` of these pieces, or read what an earlier call has kept.

    Args:
        model: in ``eval()`` mode, on any device.
        data: where the frames are read from, at any size.
        pieces: the numbers of the pieces.
        cache: the file that keeps the latents. It is written anew if it holds those of another
            model or of other frames.
        progress: see `Progress`.
    """
    block = model.config.action_block
    rows = chosen_rows(data, pieces, block)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows], dtype=np.int64)])
    flat = np.concatenate([np.empty(0, np.int64), *rows])
    steps = np.concatenate([np.empty(0, np.int64), *(part - part[0] for part in rows)])
    source = _fingerprint(model, data, flat)
    if (latents := _read(cache, source)) is None:
        latents = _encode(model, data, flat, progress)
        cache.parent.mkdir(parents=True, exist_ok=True)
        part_file = cache.with_name(f"{cache.name}.part")
        save_file({"latents": latents}, part_file, metadata={"source": source})
        part_file.replace(cache)
    return PieceLatents(latents, offsets, times=(steps / block).astype(np.float32))


@torch.inference_mode()
def _encode(model: LeWM, data: PreparedData, rows: NDArray[np.int64], progress: Progress) -> Tensor:
    device = next(model.parameters()).device
    latents = torch.empty(len(rows), model.config.latent_dim)
    for first in range(0, len(rows), MODEL_BATCH):
        batch = rows[first : first + MODEL_BATCH]
        frames = resize(torch.from_numpy(data.read_frames(batch)), model.config.image_size)
        states = None
        if model.config.state_input is not None and data.states is not None:
            states = torch.from_numpy(data.states[batch]).to(device)
        latents[first : first + len(batch)] = model.encode(frames.to(device), states).cpu()
        progress(first + len(batch), len(rows))
    return latents


def _read(cache: Path, source: str) -> Tensor | None:
    """The latents in a file, if they are those of this source."""
    try:
        with safe_open(cache, framework="pt") as file:
            metadata = file.metadata() or {}
            return file.get_tensor("latents") if metadata.get("source") == source else None
    except (OSError, SafetensorError):
        return None


def _fingerprint(model: LeWM, data: PreparedData, rows: NDArray[np.int64]) -> str:
    """A hash of the weights, and of which frames are encoded."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.cpu().contiguous().numpy().tobytes())
    content.update(json.dumps(dict(data.made_from), sort_keys=True).encode())
    content.update(rows.tobytes())
    return content.hexdigest()
