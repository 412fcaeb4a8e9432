"""The latents of a request's frames: their order, their names, and which thread decodes them."""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import simplejpeg
import torch
from torch import Tensor

from lewm_serve.api.requests import Frame
from lewm_serve.engine.admission import Admission
from lewm_serve.engine.jobs import EncodeJob
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.errors import InvalidRequest, UnknownLatent
from lewm_serve.frames import latent_source
from lewm_serve.frames.decode import frame_from_image, frame_from_pixels
from lewm_serve.frames.latent_cache import LatentCache, MemoryTier
from lewm_serve.frames.latent_source import (
    DECODING_NICENESS,
    DECODING_PART_BYTES,
    LATENT_ID,
    FrameLatents,
    LatentSource,
    count_images,
    decode_work,
    frame_fields,
    latent_id_of,
)
from lewm_serve.observability.metrics import Metrics
from lewm_serve.registry.registry import LoadedModel
from lewm_serve.workers.worker import Placement, Worker
from tests.lewm_serve.support.frames import encoded, image, latent, picture, pixels

MAX_PIXELS = 1 << 22
VALUES = np.arange(3, dtype=np.float32)


def latent_id(frame: dict[str, object], precision: str = "float32") -> str:
    return latent_id_of(Frame.model_validate(frame), precision)


def test_the_same_frame_has_the_same_id() -> None:
    for frame in (image(), pixels(), latent()):
        assert latent_id(frame) == latent_id(frame)
        assert LATENT_ID.fullmatch(latent_id(frame))


def test_another_frame_has_another_id() -> None:
    frames = [
        image("PNG"),
        image("JPEG"),
        image("PNG", 1),
        pixels(),
        pixels(1),
        latent(),
        latent(1),
    ]
    # The same bytes in another shape are another picture.
    flat = picture(0, 8, 2).tobytes()
    frames += [{"pixels": {"data": flat, "shape": list(shape)}} for shape in ((8, 2, 3), (4, 4, 3))]
    assert len({latent_id(frame) for frame in frames}) == len(frames)


def test_another_vector_is_another_frame() -> None:
    for frame in (image(), pixels()):
        ids = {
            latent_id(frame | ({} if vector is None else {"vector": vector}))
            for vector in (None, [0.0], [1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0])
        }
        assert len(ids) == 6
        assert latent_id(frame | {"vector": [1, 0.5]}) == latent_id(frame | {"vector": [1.0, 0.5]})


def test_a_vector_is_not_a_part_of_the_image() -> None:
    """The bytes of a vector before, after or in an image are not those beside it."""
    vector = VALUES.tobytes()
    beside = latent_id({"image": b"x", "vector": VALUES.tolist()})
    assert beside not in {latent_id({"image": part}) for part in (b"x" + vector, vector + b"x")}


def test_a_latent_of_a_client_never_stands_for_an_image() -> None:
    data = VALUES.tobytes()
    sent = latent_id({"latent": VALUES.tolist()})
    assert sent != latent_id({"image": data})
    assert sent != latent_id({"pixels": {"data": data, "shape": [2, 2, 3]}})
    assert sent != latent_id({"image": b"image:1:float32\n" + data})


def test_the_id_depends_on_how_the_frame_was_encoded() -> None:
    assert latent_id({"image": encoded("PNG")}) != latent_id({"image": encoded("PNG")}, "bfloat16")
    assert latent_id(latent()) == latent_id(latent(), "bfloat16")
    assert latent_id({"latent_id": "abc"}) == "abc"


def test_frames_that_may_have_to_be_encoded_are_counted() -> None:
    frames = [
        Frame.model_validate(frame) for frame in (image(), pixels(), latent(), {"latent_id": "abc"})
    ]
    assert count_images(frames) == 2


SIZE = 32
MODEL = cast(
    LoadedModel,
    SimpleNamespace(
        version="v",
        latency=LatencyModel(),
        backend=SimpleNamespace(encode_precision="float32"),
        card=SimpleNamespace(
            crop=None, config=SimpleNamespace(image_size=SIZE, latent_dim=3, state_input=None)
        ),
    ),
)


class MeanEngine:
    """Encodes a frame as its mean colour, at once.

    Attributes:
        requests: the requests whose frames it encoded.
    """

    def __init__(self) -> None:
        self.requests: list[QueuedRequest | None] = []

    def submit(self, job: EncodeJob) -> Future[Tensor]:
        """(N, size, size, 3) → (N, 3)."""
        self.requests.append(job.queued)
        job.future.set_result(job.frames.float().mean(dim=(1, 2)))
        return job.future


ENGINE = MeanEngine()
PLACEMENT = Placement(
    worker=cast(Worker, ENGINE),
    admission=Admission(100),
    backend=MODEL.backend,
    latency=MODEL.latency,
)


@pytest.fixture
def engine() -> MeanEngine:
    """The engine, which has encoded nothing yet."""
    ENGINE.requests.clear()
    return ENGINE


@pytest.fixture
def source() -> Iterator[LatentSource]:
    metrics = Metrics()
    cache = LatentCache(MemoryTier(100, 60.0), MemoryTier(100, 60.0), redis=None, metrics=metrics)
    source = LatentSource(cache, metrics=metrics, max_pixels=MAX_PIXELS)
    yield source
    source.close()


@pytest.fixture
def decoding_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread of each frame that is decoded or made of raw pixels."""
    threads: list[int] = []

    def record_calls(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def recorded(*arguments: Any, **options: Any) -> Any:
            threads.append(threading.get_ident())
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, recorded)

    record_calls(latent_source, "frame_from_image")
    record_calls(latent_source, "frame_from_pixels")
    return threads


def latents(source: LatentSource, frames: list[Frame]) -> FrameLatents:
    """The latents of a request's frames."""
    request = QueuedRequest(MODEL.latency, 0.0)
    return asyncio.run(
        source.latents_of(
            frames, MODEL, fields=frame_fields(frames), queued=request, placement=PLACEMENT
        )
    )


def mean_colours(frames: list[Frame]) -> Tensor:
    """The mean colour of each frame, prepared by itself."""
    prepared = []
    for frame in frames:
        if frame.image is not None:
            prepared.append(
                frame_from_image(frame.image, MODEL.card, max_pixels=MAX_PIXELS, field="")
            )
        else:
            assert frame.pixels is not None
            prepared.append(
                frame_from_pixels(frame.pixels, MODEL.card, max_pixels=MAX_PIXELS, field="")
            )
    return torch.stack([frame.float().mean(dim=(0, 1)) for frame in prepared])


def jpegs(count: int, height: int = 64) -> list[Frame]:
    """Frames of different pictures."""
    return [Frame(image=encoded("JPEG", seed, height=height)) for seed in range(count)]


def raw(seed: int, height: int = 64) -> Frame:
    """A frame of raw pixels."""
    return Frame.model_construct(pixels=picture(seed, height))


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(jpegs(4), id="jpeg"),
        pytest.param(jpegs(2, height=SIZE), id="jpeg-of-the-models-size"),
    ],
)
def test_a_few_small_jpegs_are_decoded_together_on_the_event_loop(
    source: LatentSource,
    decoding_threads: list[int],
    monkeypatch: pytest.MonkeyPatch,
    frames: list[Frame],
) -> None:
    together: list[int] = []
    decode_jpeg = simplejpeg.decode_jpeg

    def recorded(*arguments: Any, **options: Any) -> Any:
        together.append(threading.get_ident())
        return decode_jpeg(*arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", recorded)
    answer = latents(source, frames)
    assert together == [threading.get_ident()] * len(frames)
    assert decoding_threads == []
    assert torch.equal(answer.values, mean_colours(frames))


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(jpegs(1) + jpegs(2, height=96)[1:], id="jpeg-of-two-sizes"),
        pytest.param([raw(0), raw(1)], id="raw"),
    ],
)
def test_other_small_frames_are_decoded_one_by_one_on_the_event_loop(
    source: LatentSource, decoding_threads: list[int], frames: list[Frame]
) -> None:
    answer = latents(source, frames)
    assert decoding_threads == [threading.get_ident()] * len(frames)
    assert torch.equal(answer.values, mean_colours(frames))


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(jpegs(5), id="many"),
        pytest.param(jpegs(1, height=300), id="large"),
        pytest.param([Frame(image=encoded("PNG"))], id="png"),
        pytest.param([raw(0, 300)], id="large-raw"),
    ],
)
def test_what_takes_longer_is_decoded_on_other_threads(
    source: LatentSource, decoding_threads: list[int], frames: list[Frame]
) -> None:
    answer = latents(source, frames)
    assert len(decoding_threads) == len(frames)
    assert threading.get_ident() not in decoding_threads
    assert torch.equal(answer.values, mean_colours(frames))


def test_many_frames_keep_their_order(source: LatentSource) -> None:
    frames = [Frame(image=encoded("PNG", seed % 40, height=48)) for seed in range(120)]
    assert sum(len(frame.image or b"") for frame in frames) > DECODING_PART_BYTES
    answer = latents(source, frames)
    assert torch.equal(answer.values, mean_colours(frames))
    assert answer.ids[:40] == answer.ids[40:80] == answer.ids[80:]
    assert len(set(answer.ids)) == 40


def test_frames_count_for_the_request_that_has_them_encoded(
    source: LatentSource, engine: MeanEngine
) -> None:
    request = QueuedRequest(MODEL.latency, 0.0, frames_to_encode=2)
    frames = jpegs(2)
    fields = frame_fields(frames)
    asyncio.run(
        source.latents_of(frames, MODEL, fields=fields, queued=request, placement=PLACEMENT)
    )
    assert engine.requests == [request]


def test_known_latents_are_not_encoded_again(source: LatentSource, engine: MeanEngine) -> None:
    frames = [*jpegs(1), Frame.model_construct(latent=VALUES)]
    first = latents(source, frames)
    named = [Frame(latent_id=latent_id) for latent_id in first.ids]
    again = latents(source, [*frames, *named])
    assert len(engine.requests) == 1
    assert (first.cached, again.cached) == ((False, False), (True, False, True, True))
    assert torch.equal(again.values, torch.cat([first.values, first.values]))
    assert first.values[1].tolist() == VALUES.tolist()


@pytest.mark.parametrize("latent_id", ["abc", "0" * 32], ids=["no-id", "unknown"])
def test_an_unknown_id_is_named_with_its_field(source: LatentSource, latent_id: str) -> None:
    with pytest.raises(UnknownLatent) as caught:
        latents(source, [*jpegs(1), Frame(latent_id=latent_id)])
    assert caught.value.errors[0].field == "frames[1].latent_id"
    assert caught.value.errors[0].received == repr(latent_id)


def test_a_latent_of_another_width_is_refused(source: LatentSource) -> None:
    with pytest.raises(InvalidRequest) as caught:
        latents(source, [Frame.model_construct(latent=VALUES[:2])])
    assert str(caught.value.errors[0]) == (
        "frames[0].latent: received 2 numbers, expected 3 (the model's latent_dim)"
    )


def test_images_that_take_too_long_together_are_refused(
    source: LatentSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = jpegs(3)
    pixels = [decode_work(frame, count_scans=True).pixels for frame in frames]
    monkeypatch.setattr(latent_source, "MAX_DECODED_PIXELS", sum(pixels) - 1)
    with pytest.raises(InvalidRequest) as caught:
        latents(source, frames)
    assert caught.value.code == "image_too_large"
    assert caught.value.detail == (
        f"frames[2]: received {sum(pixels)} pixels × scans up to this frame, "
        f"expected at most {sum(pixels) - 1} in one request"
    )
    latents(source, frames[:2])


def test_decoding_threads_have_a_low_priority(source: LatentSource) -> None:
    if not hasattr(os, "getpriority") or sys.platform != "linux":
        pytest.skip("niceness belongs to threads on Linux only")
    niceness = source._threads.submit(
        lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    ).result()
    assert niceness >= DECODING_NICENESS > os.getpriority(os.PRIO_PROCESS, 0)
