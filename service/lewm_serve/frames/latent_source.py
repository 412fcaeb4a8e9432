"""The latents of a request's frames: named, looked up in the cache, decoded, encoded."""

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
from torch import Tensor

from lewm_serve.api.requests import Frame
from lewm_serve.engine.admission import QueuedRequest
from lewm_serve.engine.engine import Engine
from lewm_serve.engine.jobs import EncodeJob
from lewm_serve.errors import InvalidRequest, UnknownLatent, Unquoted
from lewm_serve.frames.decode import (
    SMALL_BATCH_FRAMES,
    SMALL_IMAGE_PIXELS,
    SmallFrameDecoder,
    prepare_image,
    prepare_pixels,
    small_jpeg_shape,
)
from lewm_serve.frames.latent_cache import LatentCache
from lewm_serve.observability.metrics import Metrics
from lewm_serve.registry.registry import LoadedModel

DECODING_THREADS = 2
"""Bounds the memory of images that are decoded at once."""

DECODING_PART_BYTES = 64 * 1024
"""What a decoding thread gets at once (at least one frame). Waking a thread takes as long as
decoding a small image."""

PREPROCESSING_VERSION = 1
"""Increase this when decoding, cropping or resizing gives other pixels than before: servers of
different versions may share a cache."""

LATENT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class FrameLatents:
    """The latents of N frames.

    Attributes:
        values: the latents (N, D).
        ids: their names in the cache.
        cached: which of them came from the cache.
        decode_s: seconds spent on naming, looking up and decoding.
        encode_s: seconds spent on encoding, the waiting time included.
    """

    values: Tensor
    ids: tuple[str, ...]
    cached: tuple[bool, ...]
    decode_s: float
    encode_s: float


@dataclass(frozen=True)
class NamedFrame:
    """A frame of a request, its path in the request and its name in the cache."""

    frame: Frame
    field: str
    latent_id: str


class LatentSource:
    """Gives each frame of a request its latent. Lives on the event loop."""

    def __init__(
        self, engine: Engine, cache: LatentCache, metrics: Metrics, max_pixels: int
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._small_frames = SmallFrameDecoder(max_pixels)
        self._threads = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")

    def close(self) -> None:
        """Stop the decoding threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def latents(
        self,
        model: LoadedModel,
        frames: Sequence[Frame],
        fields: Sequence[str],
        request: QueuedRequest,
    ) -> FrameLatents:
        """The latents of frames, in their order.

        Args:
            model: the model that encodes them.
            frames: the frames.
            fields: the path of each frame in the request, for errors.
            request: the request's place in the queue.

        Raises:
            InvalidRequest: a frame cannot be used.
            UnknownLatent: the cache does not hold a named latent.
            EngineStopped: the engine takes no more work.
        """
        start = time.monotonic()
        named = await self._name(frames, fields, model.backend.encode_precision)
        latents = await self._known_latents(model, named)
        missing: dict[str, NamedFrame] = {}
        for item in named:
            if item.latent_id not in latents:
                missing.setdefault(item.latent_id, item)
        decode_s = time.monotonic() - start

        async def encode(latent_ids: Sequence[str]) -> Sequence[Tensor]:
            nonlocal decode_s
            start = time.monotonic()
            batch = await self._decode(model, [missing[latent_id] for latent_id in latent_ids])
            decode_s += time.monotonic() - start
            job = EncodeJob(
                backend=model.backend, latency=model.latency, frames=batch, request=request
            )
            return tuple(await asyncio.wrap_future(self._engine.submit(job)))

        latents |= await self._cache.get_or_encode(model.version, list(missing), encode)
        encode_s = time.monotonic() - start - decode_s
        self._metrics.stage_duration.labels("decode").observe(decode_s)
        self._metrics.stage_duration.labels("encode").observe(encode_s)
        return FrameLatents(
            values=torch.stack([latents[item.latent_id] for item in named]),
            ids=tuple(item.latent_id for item in named),
            cached=tuple(
                item.latent_id not in missing and item.frame.latent is None for item in named
            ),
            decode_s=decode_s,
            encode_s=encode_s,
        )

    async def _name(
        self, frames: Sequence[Frame], fields: Sequence[str], precision: str
    ) -> list[NamedFrame]:
        def name_all() -> list[NamedFrame]:
            return [
                NamedFrame(frame, field, latent_id_of(frame, precision))
                for frame, field in zip(frames, fields, strict=True)
            ]

        if sum(map(_size_in_bytes, frames)) <= DECODING_PART_BYTES:
            return name_all()
        # Hashing large frames here would hold up all other requests.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, name_all)

    async def _known_latents(
        self, model: LoadedModel, named: Sequence[NamedFrame]
    ) -> dict[str, Tensor]:
        """The latents that the request holds, which are cached too, and those from the cache.

        Raises:
            InvalidRequest: a latent does not have the model's width.
            UnknownLatent: the cache does not hold a named latent.
        """
        width = model.card.config.latent_dim
        by_reference = {
            item.latent_id: item.field for item in named if item.frame.latent_id is not None
        }
        for latent_id, field in by_reference.items():
            if not LATENT_ID.fullmatch(latent_id):
                raise UnknownLatent(f"{field}.latent_id", latent_id)
        sent = {
            item.latent_id: _checked_latent(item, width)
            for item in named
            if item.frame.latent is not None
        }
        for latent_id, latent in sent.items():
            self._cache.put(model.version, latent_id, latent)
        others = [item.latent_id for item in named if item.latent_id not in sent]
        found = await self._cache.get(
            model.version, list(dict.fromkeys(others)), width, issued=by_reference
        )
        for latent_id, field in by_reference.items():
            if latent_id not in sent and latent_id not in found:
                raise UnknownLatent(f"{field}.latent_id", latent_id)
        return sent | found

    async def _decode(self, model: LoadedModel, named: Sequence[NamedFrame]) -> Tensor:
        """Decode and resize frames: (N, size, size, 3) uint8.

        A few small frames are decoded at once. The decoding threads do the rest, a few frames at a
        time, so that the frames of one request do not all stand before those of others.
        """
        start = time.monotonic()
        images = [item.frame.image for item in named]
        batch = self._small_frames.decode(images, model.card.config.image_size)
        if batch is not None:
            model.latency.observe_decode((time.monotonic() - start) / len(named))
            return batch

        def prepare(part: Sequence[NamedFrame]) -> list[Tensor]:
            return [self._prepare(item, model) for item in part]

        if len(named) <= SMALL_BATCH_FRAMES and all(_is_small(item.frame) for item in named):
            return torch.stack(prepare(named))
        loop = asyncio.get_running_loop()
        parts = _parts(named)
        prepared: list[Tensor] = []
        while next_parts := list(islice(parts, DECODING_THREADS)):
            tasks = [loop.run_in_executor(self._threads, prepare, part) for part in next_parts]
            prepared += chain.from_iterable(await asyncio.gather(*tasks))
        return torch.stack(prepared)

    def _prepare(self, item: NamedFrame, model: LoadedModel) -> Tensor:
        start = time.monotonic()
        if item.frame.image is not None:
            field = f"{item.field}.image"
            frame = prepare_image(item.frame.image, field, model.card, self._max_pixels)
        else:
            assert item.frame.pixels is not None  # other frames are not decoded
            field = f"{item.field}.pixels"
            frame = prepare_pixels(item.frame.pixels, field, model.card, self._max_pixels)
        model.latency.observe_decode(time.monotonic() - start)
        return frame


def frame_fields(frames: Sequence[Frame]) -> list[str]:
    """The paths of a request's frames, for errors."""
    return [f"frames[{index}]" for index in range(len(frames))]


def count_images(frames: Sequence[Frame]) -> int:
    """The number of frames that have to be decoded and encoded if the cache holds none."""
    return sum(frame.image is not None or frame.pixels is not None for frame in frames)


def latent_id_of(frame: Frame, precision: str) -> str:
    """The frame's own `latent_id`, or a hash of everything that its latent depends on.

    That is the bytes as they were sent, how they are preprocessed and the precision of the encoder.
    A latent that a client sends is named by its values. It can never stand for an image.
    """
    if frame.latent_id is not None:
        return frame.latent_id
    kind = frame.source
    if frame.latent is None:
        kind += f":{PREPROCESSING_VERSION}:{precision}"
    digest = hashlib.blake2b(f"{kind}\n".encode(), digest_size=16)
    if frame.image is not None:
        digest.update(frame.image)
    elif frame.pixels is not None:
        digest.update(str(frame.pixels.shape).encode())
        digest.update(np.ascontiguousarray(frame.pixels).data)
    elif frame.latent is not None:
        digest.update(np.ascontiguousarray(frame.latent).data)
    return digest.hexdigest()


def _checked_latent(item: NamedFrame, width: int) -> Tensor:
    latent = item.frame.latent
    assert latent is not None
    if latent.shape != (width,):
        raise InvalidRequest(
            "shape_mismatch",
            f"{item.field}.latent",
            received=Unquoted(f"{len(latent)} numbers"),
            expected=f"{width} (the model's latent_dim)",
        )
    return torch.tensor(latent)


def _size_in_bytes(frame: Frame) -> int:
    return len(frame.image or b"") + (0 if frame.pixels is None else frame.pixels.nbytes)


def _is_small(frame: Frame) -> bool:
    if frame.pixels is not None:
        return frame.pixels.size <= 3 * SMALL_IMAGE_PIXELS
    return frame.image is not None and small_jpeg_shape(frame.image) is not None


def _parts(named: Iterable[NamedFrame]) -> Iterator[list[NamedFrame]]:
    """The frames in parts of at most `DECODING_PART_BYTES`, at least one frame each."""
    part: list[NamedFrame] = []
    part_bytes = 0
    for item in named:
        size = _size_in_bytes(item.frame)
        if part and part_bytes + size > DECODING_PART_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(item)
        part_bytes += size
    if part:
        yield part
