"""The latents of a request's frames: identified, looked up in the cache, decoded, encoded."""

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

from lewm_models.cores import lower_thread_priority
from lewm_serve.api.requests import Frame
from lewm_serve.engine.jobs import EncodeJob
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.errors import InvalidRequest, UnknownLatent, Unquoted
from lewm_serve.frames.decode import (
    SMALL_BATCH_FRAMES,
    SMALL_IMAGE_PIXELS,
    DecodeWork,
    SmallFrameDecoder,
    frame_from_image,
    frame_from_pixels,
    image_work,
    small_jpeg_shape,
)
from lewm_serve.frames.latent_cache import LatentCache
from lewm_serve.observability.metrics import Metrics
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.workers.worker import Placement

DECODING_THREADS = 2
"""They bound the memory of the images that are decoded at once."""

DECODING_NICENESS = 10
"""Large images must not take processor time from the engine and from other requests."""

MAX_DECODED_PIXELS = 1 << 30
"""Pixels × scans of all images of one request: 256 images of four megapixels, or about ten seconds.
"""

DECODING_PART_BYTES = 64 * 1024
"""How many bytes of frames a decoding thread gets at once, but at least one frame. If a request has
more bytes than this, its frames are also hashed in such a thread. Waking a thread takes as long as
decoding a small image."""

PREPROCESSING_VERSION = 1
"""Increase this when decoding, cropping or resizing gives other pixels than before: servers of
different versions may share a cache."""

MAX_STATE_DEVIATIONS = 1e6
"""The most deviations that a state may lie from its mean. Far beyond this, encoding overflows."""

LATENT_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class FrameLatents:
    """The latents of N frames.

    Attributes:
        values: the latents (N, D).
        ids: their latent ids.
        cached: which of them came from the cache.
        decode_s: seconds spent on hashing, looking up and decoding.
        encode_s: seconds spent on encoding, the waiting time included.
    """

    values: Tensor
    ids: tuple[str, ...]
    cached: tuple[bool, ...]
    decode_s: float
    encode_s: float


@dataclass(frozen=True)
class FrameWithId:
    """A frame of a request, its path in the request, the id of its latent, and what it costs."""

    frame: Frame
    field: str
    latent_id: str
    work: DecodeWork


class LatentSource:
    """Gives each frame of a request its latent. Used only from the event loop."""

    def __init__(self, cache: LatentCache, *, metrics: Metrics, max_pixels: int) -> None:
        self._cache = cache
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._small_frame_decoder = SmallFrameDecoder(max_pixels)
        self._threads = ThreadPoolExecutor(
            DECODING_THREADS,
            thread_name_prefix="decode",
            initializer=lower_thread_priority,
            initargs=(DECODING_NICENESS,),
        )

    def close(self) -> None:
        """Stop the decoding threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def latents_of(
        self,
        frames: Sequence[Frame],
        model: LoadedModel,
        *,
        fields: Sequence[str],
        queued: QueuedRequest,
        placement: Placement,
        client: str = "",
    ) -> FrameLatents:
        """The latents of frames, in their order.

        Args:
            frames: the frames.
            model: the model that encodes them.
            fields: the path of each frame in the request, for errors.
            queued: the request's place in the queue.
            placement: the engine that encodes.
            client: who sent the request, for its share of the cache.

        Raises:
            InvalidRequest: a frame cannot be used.
            UnknownLatent: the cache does not hold a latent that is given by its id.
            EngineStopped: the engine takes no more work.
        """
        start = time.monotonic()
        given = model.card.config.state_input
        _check_vectors(frames, fields, model)
        items = await self._with_ids(frames, fields, model.backend.encode_precision)
        latents = await self._known_latents(model, items, client)
        missing: dict[str, FrameWithId] = {}
        for item in items:
            if item.latent_id not in latents:
                missing.setdefault(item.latent_id, item)
        decode_s = time.monotonic() - start

        async def encode(latent_ids: Sequence[str]) -> Sequence[Tensor]:
            nonlocal decode_s
            start = time.monotonic()
            new = [missing[latent_id] for latent_id in latent_ids]
            batch = await self._decode(model, new)
            decode_s += time.monotonic() - start
            states = None if given is None else _states_of(new, len(given))
            job = EncodeJob(backend=placement.backend, frames=batch, queued=queued, states=states)
            return tuple(await asyncio.wrap_future(placement.worker.submit(job)))

        latents |= await self._cache.get_or_encode(
            model.version, list(missing), encode, client=client
        )
        encode_s = time.monotonic() - start - decode_s
        self._metrics.stage_duration.labels("decode").observe(decode_s)
        self._metrics.stage_duration.labels("encode").observe(encode_s)
        return FrameLatents(
            values=torch.stack([latents[item.latent_id] for item in items]),
            ids=tuple(item.latent_id for item in items),
            cached=tuple(
                item.latent_id not in missing and item.frame.latent is None for item in items
            ),
            decode_s=decode_s,
            encode_s=encode_s,
        )

    async def _with_ids(
        self, frames: Sequence[Frame], fields: Sequence[str], precision: str
    ) -> list[FrameWithId]:
        def identify_all() -> list[FrameWithId]:
            items = []
            pixels = 0
            for frame, field in zip(frames, fields, strict=True):
                work = decode_work(frame, count_scans=True)
                pixels += work.pixels
                if pixels > MAX_DECODED_PIXELS:
                    raise InvalidRequest(
                        "image_too_large",
                        field,
                        received=Unquoted(f"{pixels} pixels × scans up to this frame"),
                        expected=f"at most {MAX_DECODED_PIXELS} in one request",
                    )
                items.append(FrameWithId(frame, field, latent_id_of(frame, precision), work))
            return items

        if sum(map(_size_in_bytes, frames)) <= DECODING_PART_BYTES:
            return identify_all()
        # On the event loop, hashing large frames would delay all other requests.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, identify_all)

    async def _known_latents(
        self, model: LoadedModel, items: Sequence[FrameWithId], client: str
    ) -> dict[str, Tensor]:
        """The latents that the request holds, which are cached too, and those from the cache.

        Raises:
            InvalidRequest: a latent does not have the model's width.
            UnknownLatent: the cache does not hold a latent that is given by its id.
        """
        width = model.card.config.latent_dim
        field_of_id = {
            item.latent_id: item.field for item in items if item.frame.latent_id is not None
        }
        for latent_id, field in field_of_id.items():
            if not LATENT_ID.fullmatch(latent_id):
                raise UnknownLatent(f"{field}.latent_id", latent_id)
        sent = {
            item.latent_id: _checked_latent(item, width)
            for item in items
            if item.frame.latent is not None
        }
        for latent_id, latent in sent.items():
            self._cache.put_sent(model.version, latent_id, latent, client=client)
        others = [item.latent_id for item in items if item.latent_id not in sent]
        found = await self._cache.get(
            model.version,
            list(dict.fromkeys(others)),
            width,
            client=client,
            issued=field_of_id,
        )
        for latent_id, field in field_of_id.items():
            if latent_id not in sent and latent_id not in found:
                raise UnknownLatent(f"{field}.latent_id", latent_id)
        return sent | found

    async def _decode(self, model: LoadedModel, items: Sequence[FrameWithId]) -> Tensor:
        """Decode and resize frames: (N, size, size, 3) uint8.

        A few small frames are decoded here. The decoding threads do the rest, a few frames at a
        time, so that the frames of other requests can come in between.
        """
        start = time.monotonic()
        images = [item.frame.image for item in items]
        batch = self._small_frame_decoder.decode(images, model.card.config.image_size)
        if batch is not None:
            pixels = sum(item.work.pixels for item in items)
            model.latency.observe_decode("jpeg", pixels, time.monotonic() - start)
            return batch

        def decode_all(part: Sequence[FrameWithId]) -> list[Tensor]:
            return [self._decode_one(item, model) for item in part]

        if len(items) <= SMALL_BATCH_FRAMES and all(_is_small(item.frame) for item in items):
            return torch.stack(decode_all(items))
        loop = asyncio.get_running_loop()
        parts = _parts(items)
        decoded: list[Tensor] = []
        while next_parts := list(islice(parts, DECODING_THREADS)):
            tasks = [loop.run_in_executor(self._threads, decode_all, part) for part in next_parts]
            decoded += chain.from_iterable(await asyncio.gather(*tasks))
        return torch.stack(decoded)

    def _decode_one(self, item: FrameWithId, model: LoadedModel) -> Tensor:
        start = time.monotonic()
        if item.frame.image is not None:
            frame = frame_from_image(
                item.frame.image,
                model.card,
                max_pixels=self._max_pixels,
                field=f"{item.field}.image",
            )
        else:
            assert item.frame.pixels is not None  # other frames are not decoded
            frame = frame_from_pixels(
                item.frame.pixels,
                model.card,
                max_pixels=self._max_pixels,
                field=f"{item.field}.pixels",
            )
        model.latency.observe_decode(*item.work, time.monotonic() - start)
        return frame


def frame_fields(frames: Sequence[Frame]) -> list[str]:
    """The paths of a request's frames, for errors."""
    return [f"frames[{index}]" for index in range(len(frames))]


def count_images(frames: Sequence[Frame]) -> int:
    """The number of frames that have to be decoded and encoded if the cache holds none."""
    return sum(frame.image is not None or frame.pixels is not None for frame in frames)


def decode_work(frame: Frame, *, count_scans: bool) -> DecodeWork:
    """The work to decode a frame; see `image_work`."""
    if frame.image is not None:
        return image_work(frame.image, count_scans=count_scans)
    if frame.pixels is not None:
        return DecodeWork("pixels", frame.pixels.size // 3)
    return DecodeWork("latent", 0)


def expected_decode_s(frames: Sequence[Frame], latency: LatencyModel) -> float:
    """Expected seconds to decode the frames of a request if the cache holds none.

    Small frames are decoded one after another, and parts of large requests on all decoding threads.
    """
    return sum(latency.decode_s(*decode_work(frame, count_scans=False)) for frame in frames)


def latent_id_of(frame: Frame, precision: str) -> str:
    """The frame's own `latent_id`, or a hash of everything that its latent depends on.

    That is the bytes as they were sent, how they are preprocessed, the precision of the encoder and
    the frame's vector.
    A latent that a client sends gets a hash of its values. It never equals the id of an image,
    because the kind of the frame is hashed too.
    """
    if frame.latent_id is not None:
        return frame.latent_id
    kind = frame.source
    if frame.latent is None:
        kind += f":{PREPROCESSING_VERSION}:{precision}"
    if frame.vector is not None:
        kind += f":{len(frame.vector)} states"
    digest = hashlib.blake2b(f"{kind}\n".encode(), digest_size=16)
    if frame.vector is not None:
        digest.update(np.ascontiguousarray(frame.vector).data)
    if frame.image is not None:
        digest.update(frame.image)
    elif frame.pixels is not None:
        digest.update(str(frame.pixels.shape).encode())
        digest.update(np.ascontiguousarray(frame.pixels).data)
    elif frame.latent is not None:
        digest.update(np.ascontiguousarray(frame.latent).data)
    return digest.hexdigest()


def _checked_latent(item: FrameWithId, width: int) -> Tensor:
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


def _check_vectors(frames: Sequence[Frame], fields: Sequence[str], model: LoadedModel) -> None:
    """Refuse vectors that are not the states that the model takes.

    Raises:
        InvalidRequest: the first such vector.
    """
    given = model.card.config.state_input
    for frame, frame_field in zip(frames, fields, strict=True):
        if (vector := frame.vector) is None:
            continue
        field = f"{frame_field}.vector"
        if given is None:
            received = Unquoted(f"{len(vector)} numbers")
            expected = f"no vector: {model.name} has no state input, it sees pixels only"
            raise InvalidRequest("invalid_choice", field, received=received, expected=expected)
        names = ", ".join(given.names)
        if len(vector) != len(given):
            received = Unquoted(f"{len(vector)} numbers")
            expected = f"{len(given)} numbers ({names}), as `state_input` on the model's card"
            raise InvalidRequest("shape_mismatch", field, received=received, expected=expected)
        deviations = (vector - np.asarray(given.mean)) / np.asarray(given.std)
        if np.abs(deviations).max() > MAX_STATE_DEVIATIONS:
            index = int(np.abs(deviations).argmax())
            raise InvalidRequest(
                "out_of_range",
                f"{field}[{index}]",
                received=float(vector[index]),
                expected=f"{given.names[index]} within {MAX_STATE_DEVIATIONS:g} deviations "
                f"({given.std[index]:g}) of its mean in training, {given.mean[index]:g}",
            )


def _states_of(items: Sequence[FrameWithId], count: int) -> Tensor:
    """The vectors of frames (N, X); NaN for frames without one."""
    states = torch.full((len(items), count), torch.nan)
    for row, item in zip(states, items, strict=True):
        if item.frame.vector is not None:
            row.copy_(torch.tensor(item.frame.vector))
    return states


def _size_in_bytes(frame: Frame) -> int:
    return len(frame.image or b"") + (0 if frame.pixels is None else frame.pixels.nbytes)


def _is_small(frame: Frame) -> bool:
    if frame.pixels is not None:
        return frame.pixels.size <= 3 * SMALL_IMAGE_PIXELS
    return frame.image is not None and small_jpeg_shape(frame.image) is not None


def _parts(items: Iterable[FrameWithId]) -> Iterator[list[FrameWithId]]:
    """The frames in parts of at most `DECODING_PART_BYTES`, at least one frame each."""
    part: list[FrameWithId] = []
    part_bytes = 0
    for item in items:
        size = _size_in_bytes(item.frame)
        if part and part_bytes + size > DECODING_PART_BYTES:
            yield part
            part, part_bytes = [], 0
        part.append(item)
        part_bytes += size
    if part:
        yield part
