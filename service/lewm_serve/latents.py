"""Frames to latents: named, looked up in the cache, decoded, encoded with whatever else waits."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lewm_models.preprocessing import resize
from lewm_serve.cache.tiers import LatentCache
from lewm_serve.engine.engine import Engine
from lewm_serve.errors import InvalidRequest, Phrase, UnknownLatent
from lewm_serve.images import QUICK_PIXELS, decode_image, quick_shape
from lewm_serve.metrics import Metrics
from lewm_serve.quick_frames import QUICK_FRAMES, QuickDecoder
from lewm_serve.requests import Frame
from lewm_serve.requests.arrays import FloatArray
from lewm_serve.served import ServedModel

DECODERS = 2
"""Images decoded at once: bounds their memory, and two cores do no more anyway."""

SHARE_BYTES = 64 * 1024
"""What a decoding thread is handed at once, one frame at least: waking a thread takes as long as
decoding a small image."""

PREPROCESSING = 1
"""Counts up when a change of decoding, cropping or resizing gives a frame other pixels: servers of
different versions may share a cache."""

NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Latents:
    """The latents (N, D) of N frames, their names, which came from the cache, and seconds."""

    values: Tensor
    ids: tuple[str, ...]
    cached: tuple[bool, ...]
    decode_s: float
    encode_s: float


class LatentSource:
    """Gives each frame of a request its latent. Lives on the event loop."""

    def __init__(
        self, engine: Engine, cache: LatentCache, metrics: Metrics, max_pixels: int
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._quick = QuickDecoder(max_pixels)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")

    def close(self) -> None:
        """End the decoding threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def latents(
        self, model: ServedModel, frames: Sequence[Frame], fields: Sequence[str]
    ) -> Latents:
        """The latents of frames, in their order; ``fields`` are their paths for errors.

        Raises:
            InvalidRequest: a frame cannot be used.
            UnknownLatent: a named latent is not in the cache.
            EngineStopped: see `Engine.encode`.
        """
        start = time.monotonic()
        ids = await self._names(frames, model.backend.encode_precision)
        found = await self._known(model, ids, frames, fields)
        missing: dict[str, tuple[Frame, str]] = {}
        for name, frame, field in zip(ids, frames, fields, strict=True):
            if name not in found:
                missing.setdefault(name, (frame, field))
        decode_s = time.monotonic() - start

        async def encode(names: Sequence[str]) -> Sequence[Tensor]:
            nonlocal decode_s
            begun = time.monotonic()
            batch = await self._decode(model, [missing[name] for name in names])
            decode_s += time.monotonic() - begun
            encoding = self._engine.encode(model.backend, model.pace, batch)
            latents = await asyncio.wrap_future(encoding)
            return tuple(latents)

        found |= await self._cache.make(model.version, list(missing), encode)
        encode_s = time.monotonic() - start - decode_s
        self._metrics.stage_duration.labels("decode").observe(decode_s)
        self._metrics.stage_duration.labels("encode").observe(encode_s)
        return Latents(
            torch.stack([found[name] for name in ids]),
            tuple(ids),
            tuple(
                name not in missing and frame.latent is None
                for name, frame in zip(ids, frames, strict=True)
            ),
            decode_s,
            encode_s,
        )

    async def _known(
        self, model: ServedModel, ids: Sequence[str], frames: Sequence[Frame], fields: Sequence[str]
    ) -> dict[str, Tensor]:
        """The latents that clients sent, which are kept under their names, and those in the cache.

        Raises:
            InvalidRequest: a latent is not as wide as the model's.
            UnknownLatent: a named latent is not in the cache.
        """
        width = model.card.config.latent_dim
        named = {
            frame.latent_id: field
            for frame, field in zip(frames, fields, strict=True)
            if frame.latent_id is not None
        }
        for name, field in named.items():
            if not NAME.fullmatch(name):
                raise UnknownLatent(f"{field}.latent_id", name)
        sent: dict[str, Tensor] = {}
        for name, frame, field in zip(ids, frames, fields, strict=True):
            if frame.latent is not None:
                sent[name] = _checked(frame.latent, width, field)
        for name, latent in sent.items():
            self._cache.put(model.version, name, latent)
        wanted = [name for name in dict.fromkeys(ids) if name not in sent]
        found = sent | await self._cache.get(model.version, wanted, width, promised=named)
        for name, field in named.items():
            if name not in found:
                raise UnknownLatent(f"{field}.latent_id", name)
        return found

    async def _names(self, frames: Sequence[Frame], precision: str) -> list[str]:
        """The names of frames; hashing large ones would hold up all other requests."""

        def names() -> list[str]:
            return [name_of(frame, precision) for frame in frames]

        if sum(map(size_of, frames)) <= SHARE_BYTES:
            return names()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, names)

    async def _decode(self, model: ServedModel, frames: Sequence[tuple[Frame, str]]) -> Tensor:
        """Prepare frames, each with its field: (N, size, size, 3) uint8.

        What takes long is done in the decoding threads, a few frames at a time: what a request has
        not yet handed in does not stand before other requests' frames.
        """

        def work(share: Sequence[tuple[Frame, str]]) -> list[Tensor]:
            return [self._prepare(frame, field, model) for frame, field in share]

        start = time.monotonic()
        images = [frame.image for frame, _ in frames]
        quick = self._quick.decode(images, model.card.config.image_size)
        if quick is not None:
            model.pace.observe_decode((time.monotonic() - start) / len(frames))
            return quick
        if len(frames) <= QUICK_FRAMES and all(_is_quick(frame) for frame, _ in frames):
            return torch.stack(work(frames))
        loop = asyncio.get_running_loop()
        shares = _shares(frames)
        prepared: list[Tensor] = []
        while turn := list(islice(shares, DECODERS)):
            done = await asyncio.gather(
                *(loop.run_in_executor(self._decoders, work, share) for share in turn)
            )
            prepared += chain.from_iterable(done)
        return torch.stack(prepared)

    def _prepare(self, frame: Frame, field: str, model: ServedModel) -> Tensor:
        start = time.monotonic()
        pixels = prepare(frame, field, model, self._max_pixels)
        model.pace.observe_decode(time.monotonic() - start)
        return pixels


def _checked(latent: FloatArray, width: int, field: str) -> Tensor:
    if latent.shape != (width,):
        received = Phrase(f"{len(latent)} numbers")
        expected = f"{width} (the model's latent_dim)"
        raise InvalidRequest("shape_mismatch", f"{field}.latent", received, expected)
    return torch.tensor(latent)


def size_of(frame: Frame) -> int:
    """The bytes of a frame as it was sent, where it has to be read."""
    return len(frame.image or b"") + (0 if frame.pixels is None else frame.pixels.nbytes)


def fields_of(frames: Sequence[Frame]) -> list[str]:
    """The paths of a request's frames, for errors."""
    return [f"frames[{index}]" for index in range(len(frames))]


def unseen(frames: Sequence[Frame]) -> int:
    """How many frames have to be decoded and encoded, if the cache holds none of them."""
    return sum(frame.image is not None or frame.pixels is not None for frame in frames)


def _is_quick(frame: Frame) -> bool:
    if frame.pixels is not None:
        return frame.pixels.size <= 3 * QUICK_PIXELS
    return frame.image is not None and quick_shape(frame.image) is not None


def _shares(frames: Iterable[tuple[Frame, str]]) -> Iterator[list[tuple[Frame, str]]]:
    """The frames, cut into runs of at most `SHARE_BYTES`."""
    share: list[tuple[Frame, str]] = []
    total = 0
    for item in frames:
        size = size_of(item[0])
        if share and total + size > SHARE_BYTES:
            yield share
            share, total = [], 0
        share.append(item)
        total += size
    if share:
        yield share


def name_of(frame: Frame, precision: str) -> str:
    """A frame's `latent_id`: that of the request, or a hash of all that its latent comes from.

    That is the bytes as they were sent and how they are preprocessed and encoded; a client's own
    latent is named by its values, and can never stand for an image.
    """
    if frame.latent_id is not None:
        return frame.latent_id
    how = (
        frame.source if frame.latent is not None else f"{frame.source}:{PREPROCESSING}:{precision}"
    )
    digest = hashlib.blake2b(f"{how}\n".encode(), digest_size=16)
    if frame.image is not None:
        digest.update(frame.image)
    elif frame.pixels is not None:
        digest.update(str(frame.pixels.shape).encode())
        digest.update(np.ascontiguousarray(frame.pixels).data)
    elif frame.latent is not None:
        digest.update(np.ascontiguousarray(frame.latent).data)
    return digest.hexdigest()


def prepare(frame: Frame, field: str, model: ServedModel, max_pixels: int) -> Tensor:
    """Decode, check or crop, and resize: (size, size, 3) uint8.

    Raises:
        InvalidRequest: the image is damaged, too large, or not square.
    """
    if frame.image is not None:
        field, pixels = f"{field}.image", decode_image(frame.image, max_pixels, f"{field}.image")
    else:
        assert frame.pixels is not None
        field, pixels = f"{field}.pixels", frame.pixels
    height, width = pixels.shape[:2]
    if height * width > max_pixels:
        expected = f"at most {max_pixels} pixels"
        raise InvalidRequest("image_too_large", field, Phrase(f"{width} x {height}"), expected)
    if height != width:
        if model.card.crop is None:
            received = Phrase(f"{width} x {height}")
            raise InvalidRequest("not_square", field, received, "a square frame")
        pixels = central_square(pixels)
    # Received bytes are read-only, which torch can neither express nor accept in silence.
    frames = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    return resize(frames.unsqueeze(0), model.card.config.image_size)[0]


def central_square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest square in the middle of (H, W, 3)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
