"""Decoding: what is accepted, what is bounded, and that nothing else ever comes out."""

import contextlib
import io
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lewm_serve.errors import InvalidRequest
from lewm_serve.frames.decode import QUICK_BYTES, decode_image, decode_into, quick_shape
from tests.lewm_serve.support.frames import chunk, encoded, picture, png

LIMIT = 4 * 1024 * 1024
PNG, JPEG = encoded("PNG"), encoded("JPEG")


def refusal(data: bytes, limit: int = LIMIT) -> tuple[str, int]:
    """The code of the refusal and the peak of memory on the way there, in bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as caught:
            decode_image(data, limit, "frames[0].image")
        return caught.value.code, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_png_is_exact() -> None:
    assert np.array_equal(decode_image(PNG, LIMIT, "goal"), picture())


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_as_pillow_does(subsampling: str, progressive: bool) -> None:
    buffer = io.BytesIO()
    source = Image.fromarray(picture(3, 57, 90))
    source.save(buffer, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    pixels = decode_image(buffer.getvalue(), LIMIT, "goal")
    assert np.array_equal(pixels, np.asarray(Image.open(buffer)))


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_unusual_jpeg_is_left_to_pillow(mode: str, options: dict[str, bool]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, "JPEG", quality=80, **options)
    pixels = decode_image(buffer.getvalue(), LIMIT, "goal")
    assert np.array_equal(pixels, np.asarray(Image.open(buffer).convert("RGB")))


def test_size_of_a_jpeg_is_read_before_anything_is_allocated() -> None:
    size = JPEG.index(b"\xff\xc0") + 5  # marker, length, bits a sample; then height and width
    code, peak = refusal(JPEG[:size] + b"\x75\x30" * 2 + JPEG[size + 4 :])  # 30,000 x 30,000
    assert code == "image_too_large"
    assert peak < 1 << 20


def jpeg_of(height: int, width: int | None = None, **options: bool) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture(0, height, width)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (jpeg_of(224), (224, 224)),
        (jpeg_of(64, width=96), (64, 96)),
        (jpeg_of(257), None),
        (jpeg_of(224, progressive=True), None),
        (jpeg_of(64) + bytes(QUICK_BYTES), None),
        (JPEG[:100], None),
        (PNG, None),
    ],
    ids=["small", "wide", "large", "progressive", "padded", "damaged", "png"],
)
def test_only_small_plain_jpeg_images_are_quick(data: bytes, shape: tuple[int, int] | None) -> None:
    assert quick_shape(data) == shape


def test_quick_images_have_the_same_pixels() -> None:
    pixels = np.empty((224, 224, 3), np.uint8)
    decode_into(jpeg_of(224), pixels)
    assert np.array_equal(pixels, decode_image(jpeg_of(224), LIMIT, "goal"))


def test_jpeg_is_close() -> None:
    pixels = decode_image(JPEG, LIMIT, "goal")
    assert pixels.shape == picture().shape
    assert np.abs(pixels.astype(int) - picture()).mean() < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_other_modes_become_rgb(mode: str) -> None:
    if mode == "I;16":
        source = Image.fromarray(picture()[:, :, 0].astype(np.uint16) << 8)
    else:
        source = Image.fromarray(picture()).convert(mode)
    buffer = io.BytesIO()
    source.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode_image(buffer.getvalue(), LIMIT, "goal")
    assert pixels.shape == picture().shape
    assert pixels.dtype == np.uint8
    if mode == "I;16":
        assert np.array_equal(pixels[:, :, 1], picture()[:, :, 0])


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    assert refusal(encoded(kind))[0] == "invalid_image"


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<svg/>"])
def test_no_image(data: bytes) -> None:
    assert refusal(data)[0] == "invalid_image"


def test_size_is_read_before_anything_is_allocated() -> None:
    code, peak = refusal(png(30_000, 30_000))
    assert code == "image_too_large"
    assert peak < 1 << 20
    assert refusal(png(2**31 - 1, 2**31 - 1))[0] == "image_too_large"
    assert refusal(PNG, limit=64 * 64 - 1)[0] == "image_too_large"
    with pytest.raises(InvalidRequest, match=r"received 64 x 64 pixels, expected at most 9 pixels"):
        decode_image(PNG, 9, "goal")
    assert decode_image(PNG, 64 * 64, "goal").shape == (64, 64, 3)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_chunks_do_not_unfold(kind: bytes) -> None:
    bomb = zlib.compress(bytes(200 << 20))
    head = b"k\x00\x01\x00\x00\x00" if kind == b"iTXt" else b"k\x00\x00"
    data = png(8, 8, chunk(kind, head + bomb), rows=bytes(9 * 8))
    tracemalloc.start()
    with contextlib.suppress(InvalidRequest):
        decode_image(data, LIMIT, "goal")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_rows_beyond_the_image_do_not_unfold() -> None:
    data = png(8, 8, rows=bytes(200 << 20))
    tracemalloc.start()
    decode_image(data, LIMIT, "goal")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_endless_scans_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    assert decode_image(whole, LIMIT, "goal").shape == (64, 64, 3)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    assert refusal(whole[:-2] + scan * 10_000 + whole[-2:])[0] == "invalid_image"


@pytest.mark.parametrize("whole", [PNG, JPEG], ids=["png", "jpeg"])
def test_truncation(whole: bytes) -> None:
    for end in range(0, len(whole) - 40, 7):
        assert refusal(whole[:end])[0] == "invalid_image"


@settings(max_examples=300)
@given(
    whole=st.sampled_from([PNG, JPEG]),
    flips=st.lists(st.tuples(st.integers(2, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(8, 4000),
)
def test_damage_never_brings_anything_else(
    whole: bytes, flips: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(whole[:end])
    for place, value in flips:
        data[place % len(data)] = value
    with contextlib.suppress(InvalidRequest):
        pixels = decode_image(bytes(data), LIMIT, "goal")
        assert pixels.dtype == np.uint8
        assert pixels.shape[0] * pixels.shape[1] <= LIMIT


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([b"", PNG[:8], PNG[:33], JPEG[:20]]))
def test_noise_is_refused(noise: bytes, head: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_image(head + noise, LIMIT, "goal")
