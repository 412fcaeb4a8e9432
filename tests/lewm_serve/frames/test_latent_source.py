"""Frames to latents: order, names, and which thread decodes what."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from lewm_serve import latents, quick_frames
from lewm_serve.api.requests import Frame
from lewm_serve.engine.engine import Engine
from lewm_serve.frames.latent_cache import LatentCache, MemoryTier
from lewm_serve.frames.latent_source import SHARE_BYTES, LatentSource
from lewm_serve.observability.metrics import Metrics
from lewm_serve.registry.registry import LoadedModel
from tests.lewm_serve.support.frames import encoded, picture

SIZE = 32
MODEL = cast(
    LoadedModel,
    SimpleNamespace(
        version="v",
        pace=SimpleNamespace(observe_decode=lambda _seconds: None),
        backend=SimpleNamespace(encode_precision="float32"),
        card=SimpleNamespace(crop=None, config=SimpleNamespace(image_size=SIZE, latent_dim=3)),
    ),
)


class MeanEngine:
    """Encodes a frame as its mean colour."""

    def encode(self, _backend: object, _pace: object, frames: Tensor) -> Future[Tensor]:
        """(N, size, size, 3) → (N, 3)."""
        future: Future[Tensor] = Future()
        future.set_result(frames.float().mean(dim=(1, 2)))
        return future


@pytest.fixture
def source() -> Iterator[LatentSource]:
    """A source over an engine that answers at once."""
    metrics = Metrics()
    cache = LatentCache(MemoryTier(100, 60.0), None, metrics)
    made = LatentSource(cast(Engine, MeanEngine()), cache, metrics, 1 << 22)
    yield made
    made.close()


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that decoded an image or took raw pixels, in turn."""
    threads: list[int] = []

    def note(module: ModuleType, name: str) -> None:
        work = getattr(module, name)

        def noted(*arguments: Any) -> Any:
            threads.append(threading.get_ident())
            return work(*arguments)

        monkeypatch.setattr(module, name, noted)

    note(latents, "prepare")
    note(quick_frames, "decode_into")
    return threads


def ask(source: LatentSource, frames: list[Frame]) -> latents.FrameLatents:
    """The latents of frames."""
    fields = [f"frames[{index}]" for index in range(len(frames))]
    return asyncio.run(source.latents(MODEL, frames, fields))


def expected(frames: list[Frame]) -> Tensor:
    """Their mean colours, one by one."""
    prepared = [latents.prepare(frame, "", MODEL, 1 << 22) for frame in frames]
    return torch.stack([frame.float().mean(dim=(0, 1)) for frame in prepared])


def jpegs(count: int, height: int = 64) -> list[Frame]:
    """Frames of different pictures."""
    return [Frame(image=encoded("JPEG", seed, height=height)) for seed in range(count)]


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(jpegs(4), id="jpeg"),
        pytest.param(jpegs(2, height=SIZE), id="jpeg-of-the-models-size"),
        pytest.param(jpegs(1) + jpegs(2, height=96)[1:], id="jpeg-of-two-sizes"),
        pytest.param(
            [Frame.model_construct(pixels=picture(seed, 64)) for seed in (0, 1)], id="raw"
        ),
    ],
)
def test_few_small_frames_are_decoded_at_once(
    source: LatentSource, decoders: list[int], frames: list[Frame]
) -> None:
    answer = ask(source, frames)
    assert decoders == [threading.get_ident()] * len(frames)
    assert torch.equal(answer.values, expected(frames))


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(jpegs(5), id="many"),
        pytest.param(jpegs(1, height=300), id="large"),
        pytest.param([Frame(image=encoded("PNG"))], id="png"),
        pytest.param([Frame.model_construct(pixels=picture(0, 300))], id="large-raw"),
    ],
)
def test_what_takes_longer_is_decoded_elsewhere(
    source: LatentSource, decoders: list[int], frames: list[Frame]
) -> None:
    answer = ask(source, frames)
    assert len(decoders) == len(frames)
    assert threading.get_ident() not in decoders
    assert torch.equal(answer.values, expected(frames))


def test_many_frames_keep_their_order(source: LatentSource) -> None:
    frames = [Frame(image=encoded("PNG", seed % 40, height=48)) for seed in range(120)]
    assert sum(len(frame.image or b"") for frame in frames) > SHARE_BYTES
    answer = ask(source, frames)
    assert torch.equal(answer.values, expected(frames))
    assert answer.ids[:40] == answer.ids[40:80] == answer.ids[80:]
    assert len(set(answer.ids)) == 40
