"""Images to frames: what is accepted, refused and bounded, and small images decoded together."""

import contextlib
import io
import tracemalloc
import zlib
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lewm_models.card import ModelCard
from lewm_models.preprocessing import CROPS, Crop, resize, to_model_frames
from lewm_serve.errors import InvalidRequest
from lewm_serve.frames.decode import (
    MAX_JPEG_SCANS,
    MIN_IMAGE_PIXELS,
    SMALL_BATCH_FRAMES,
    SMALL_IMAGE_BYTES,
    SmallFrameDecoder,
    decode_image,
    frame_from_image,
    frame_from_pixels,
    image_work,
    small_jpeg_shape,
)
from tests.lewm_serve.support.frames import encoded, picture, png, png_chunk

MAX_PIXELS = 4 * 1024 * 1024
PNG, JPEG = encoded("PNG"), encoded("JPEG")


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, int]:
    """The code of the refusal, and the peak of the memory until then in bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as caught:
            decode_image(data, max_pixels, "frames[0].image")
        return caught.value.code, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_png_is_exact() -> None:
    assert np.array_equal(decode_image(PNG, MAX_PIXELS, "goal"), picture())


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_as_pillow_does(subsampling: str, progressive: bool) -> None:
    buffer = io.BytesIO()
    source = Image.fromarray(picture(3, 57, 90))
    source.save(buffer, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    pixels = decode_image(buffer.getvalue(), MAX_PIXELS, "goal")
    assert np.array_equal(pixels, np.asarray(Image.open(buffer)))


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_all_colour_spaces_are_decoded_as_pillow_does(mode: str, options: dict[str, bool]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, "JPEG", quality=80, **options)
    pixels = decode_image(buffer.getvalue(), MAX_PIXELS, "goal")
    assert np.array_equal(pixels, np.asarray(Image.open(buffer).convert("RGB")))


def test_a_jpeg_that_is_too_large_is_refused_before_memory_is_allocated() -> None:
    # Marker, length and bits per sample come before height and width.
    size_offset = JPEG.index(b"\xff\xc0") + 5
    code, peak = refusal(JPEG[:size_offset] + b"\x75\x30" * 2 + JPEG[size_offset + 4 :])
    assert code == "image_too_large"
    assert peak < 1 << 20


def jpeg_of(height: int, width: int | None = None, **options: bool) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture(0, height, width)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def encoded_as(mode: str, **options: bool) -> bytes:
    """A picture of another colour space as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture(0, 224)).convert(mode).save(buffer, "JPEG", quality=80, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (encoded_as("L"), (224, 224)),
        (encoded_as("CMYK"), None),
        (jpeg_of(224), (224, 224)),
        (jpeg_of(64, width=96), (64, 96)),
        (jpeg_of(257), None),
        (jpeg_of(224, progressive=True), None),
        (jpeg_of(64) + bytes(SMALL_IMAGE_BYTES), None),
        (JPEG[:100], None),
        (PNG, None),
    ],
    ids=["grey", "CMYK", "small", "wide", "large", "progressive", "padded", "damaged", "png"],
)
def test_only_jpeg_images_of_one_scan_are_small(data: bytes, shape: tuple[int, int] | None) -> None:
    assert small_jpeg_shape(data) == shape


def test_jpeg_is_close_to_the_picture() -> None:
    pixels = decode_image(JPEG, MAX_PIXELS, "goal")
    assert pixels.shape == picture().shape
    assert np.abs(pixels.astype(int) - picture()).mean() < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_all_modes_become_rgb(mode: str) -> None:
    if mode == "I;16":
        source = Image.fromarray(picture()[:, :, 0].astype(np.uint16) << 8)
    else:
        source = Image.fromarray(picture()).convert(mode)
    buffer = io.BytesIO()
    source.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode_image(buffer.getvalue(), MAX_PIXELS, "goal")
    assert pixels.shape == picture().shape
    assert pixels.dtype == np.uint8
    if mode == "I;16":
        assert np.array_equal(pixels[:, :, 1], picture()[:, :, 0])


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    assert refusal(encoded(kind))[0] == "invalid_image"


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"<svg/>"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refusal(data)[0] == "invalid_image"


def test_a_png_that_is_too_large_is_refused_before_memory_is_allocated() -> None:
    code, peak = refusal(png(30_000, 30_000))
    assert code == "image_too_large"
    assert peak < 1 << 20
    assert refusal(png(2**31 - 1, 2**31 - 1))[0] == "image_too_large"
    assert refusal(PNG, max_pixels=64 * 64 - 1)[0] == "image_too_large"
    with pytest.raises(InvalidRequest, match=r"received 64 x 64 pixels, expected at most 9 pixels"):
        decode_image(PNG, 9, "goal")
    assert decode_image(PNG, 64 * 64, "goal").shape == (64, 64, 3)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_chunks_are_not_inflated(kind: bytes) -> None:
    bomb = zlib.compress(bytes(200 << 20))
    head = b"k\x00\x01\x00\x00\x00" if kind == b"iTXt" else b"k\x00\x00"
    data = png(8, 8, png_chunk(kind, head + bomb), rows=bytes(9 * 8))
    tracemalloc.start()
    with contextlib.suppress(InvalidRequest):
        decode_image(data, MAX_PIXELS, "goal")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_rows_beyond_the_image_are_not_inflated() -> None:
    data = png(8, 8, rows=bytes(200 << 20))
    tracemalloc.start()
    decode_image(data, MAX_PIXELS, "goal")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def with_scans(count: int, side: int = 256) -> bytes:
    """A progressive JPEG image with this many scans."""
    buffer = io.BytesIO()
    Image.fromarray(picture(1, side)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + data[-2:]


def test_the_work_of_an_image_is_its_pixels_and_scans() -> None:
    side = 256
    assert image_work(encoded("PNG", height=side), count_scans=True) == ("png", side**2)
    assert image_work(encoded("JPEG", height=side), count_scans=True) == ("jpeg", side**2)
    work = image_work(with_scans(MAX_JPEG_SCANS, side), count_scans=True)
    assert work == ("jpeg of several scans", MAX_JPEG_SCANS * side**2)
    assert image_work(encoded("JPEG", height=8), count_scans=True).pixels == MIN_IMAGE_PIXELS
    large = encoded("JPEG", height=2048, width=2048)
    assert len(large) > SMALL_IMAGE_BYTES
    assert image_work(large, count_scans=False) == ("jpeg", 2048**2)
    for data in (b"", b"GIF89a", JPEG[:10], PNG[:20]):
        assert image_work(data, count_scans=True).pixels == 0


def test_too_many_scans_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", progressive=True)
    progressive = buffer.getvalue()
    assert decode_image(progressive, MAX_PIXELS, "goal").shape == (64, 64, 3)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    assert refusal(progressive[:-2] + scan * 10_000 + progressive[-2:])[0] == "invalid_image"


@pytest.mark.parametrize("image", [PNG, JPEG], ids=["png", "jpeg"])
def test_truncated_images_are_refused(image: bytes) -> None:
    for end in range(0, len(image) - 40, 7):
        assert refusal(image[:end])[0] == "invalid_image"


def data_start(jpeg: bytes) -> int:
    """Where the data of the first scan begin."""
    scan = jpeg.index(b"\xff\xda")
    return scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4])


JPEGS = {
    "ordinary": jpeg_of(224),
    "large": jpeg_of(700),
    "progressive": jpeg_of(224, progressive=True),
    "grey": encoded_as("L"),
    "CMYK": encoded_as("CMYK"),
    "RGB": encoded_as("RGB", keep_rgb=True),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_was_cut_and_ended_is_refused(kind: str) -> None:
    image = JPEGS[kind]
    start = data_start(image)
    for share in (0.1, 0.5, 0.9):
        end = start + int(share * (len(image) - start))
        assert refusal(image[:end] + b"\xff\xd9")[0] == "invalid_image"


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_with_zeros_over_its_data_is_refused(kind: str) -> None:
    image = JPEGS[kind]
    middle = (data_start(image) + len(image)) // 2
    assert refusal(image[:middle] + bytes(200) + image[middle + 200 :])[0] == "invalid_image"


def test_damage_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"an undamaged PNG or JPEG image \(Corrupt JPEG data"):
        decode_image(JPEG[: len(JPEG) * 3 // 4] + b"\xff\xd9", MAX_PIXELS, "goal")


@pytest.mark.parametrize("tail", [bytes(8) + b"\xff\xd9", b"\xff\xd9" + b"trailer" * 9])
def test_what_cameras_add_to_the_data_is_no_damage(tail: bytes) -> None:
    padded = decode_image(JPEG[:-2] + tail, MAX_PIXELS, "goal")
    assert np.array_equal(padded, decode_image(JPEG, MAX_PIXELS, "goal"))


def test_a_png_with_one_changed_bit_is_refused() -> None:
    for index in range(PNG.index(b"IDAT"), len(PNG) - 12, 41):
        changed = bytearray(PNG)
        changed[index] ^= 0x81
        assert refusal(bytes(changed))[0] == "invalid_image"


@settings(max_examples=300)
@given(
    image=st.sampled_from([PNG, JPEG]),
    flips=st.lists(st.tuples(st.integers(2, 2000), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(8, 4000),
)
def test_a_damaged_image_is_refused_or_decoded(
    image: bytes, flips: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(image[:end])
    for index, value in flips:
        data[index % len(data)] = value
    with contextlib.suppress(InvalidRequest):
        pixels = decode_image(bytes(data), MAX_PIXELS, "goal")
        assert pixels.dtype == np.uint8
        assert pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([b"", PNG[:8], PNG[:33], JPEG[:20]]))
def test_random_bytes_are_refused(noise: bytes, head: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_image(head + noise, MAX_PIXELS, "goal")


def card(crop: str | None) -> ModelCard:
    """A model card of which only the image size and the crop matter."""
    return cast(ModelCard, SimpleNamespace(crop=crop, config=SimpleNamespace(image_size=32)))


def test_frames_that_are_not_square_are_cropped_if_the_card_allows_it() -> None:
    wide = encoded("PNG", 0, height=64, width=96)
    with pytest.raises(InvalidRequest) as caught:
        frame_from_image(wide, card(None), max_pixels=MAX_PIXELS, field="goal.image")
    assert caught.value.code == "not_square"
    assert caught.value.detail == (
        "goal.image: received 96 x 64, expected a square frame: crop or pad it, "
        'or set "crop" in the model\'s card to "center" or "pad" or "stretch"'
    )
    frame = frame_from_image(wide, card("center"), max_pixels=MAX_PIXELS, field="goal.image")
    square = np.ascontiguousarray(picture(0, 64, 96)[:, 16:80])
    assert torch.equal(frame, resize(torch.from_numpy(square)[None], 32)[0])


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (33, 32), (5, 300), (1, 9)])
def test_serving_prepares_frames_as_training_does(crop: Crop, height: int, width: int) -> None:
    """A frame alone in serving, and together with others in training."""
    pictures = [picture(seed, height, width) for seed in range(3)]
    together = to_model_frames(torch.from_numpy(np.stack(pictures)), 32, crop)
    for seed, expected in enumerate(together):
        image = encoded("PNG", seed, height=height, width=width)
        frame = frame_from_image(image, card(crop), max_pixels=MAX_PIXELS, field="goal.image")
        assert torch.equal(frame, expected)


def test_pixels_beyond_the_limit_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        frame_from_pixels(picture(), card(None), max_pixels=64 * 64 - 1, field="frames[1].pixels")
    assert caught.value.detail == (
        "frames[1].pixels: received 64 x 64, expected at most 4095 pixels"
    )


def decoded_one_by_one(images: list[bytes], size: int) -> torch.Tensor:
    """The frames of images, each decoded by itself."""
    decoded = (torch.tensor(decode_image(image, MAX_PIXELS, "goal")) for image in images)
    return torch.cat([resize(pixels.unsqueeze(0), size) for pixels in decoded])


@pytest.mark.parametrize("size", [32, 64], ids=["resized", "same-size"])
@pytest.mark.parametrize("count", range(1, SMALL_BATCH_FRAMES + 1))
def test_small_images_decoded_together_give_the_same_frames(count: int, size: int) -> None:
    images = [encoded("JPEG", seed) for seed in range(count)]
    frames = SmallFrameDecoder(MAX_PIXELS).decode(images, size)
    assert frames is not None
    assert torch.equal(frames, decoded_one_by_one(images, size))


@pytest.mark.parametrize("size", [32, 64], ids=["resized", "same-size"])
def test_frames_of_small_images_outlive_the_next_request(size: int) -> None:
    decoder = SmallFrameDecoder(MAX_PIXELS)
    first, second = encoded("JPEG", 0), encoded("JPEG", 1)
    frames = decoder.decode([first], size)
    decoder.decode([second], size)
    assert frames is not None
    assert torch.equal(frames, decoded_one_by_one([first], size))


@pytest.mark.parametrize(
    "images",
    [
        pytest.param([JPEG] * (SMALL_BATCH_FRAMES + 1), id="many"),
        pytest.param([JPEG, encoded("JPEG", height=96)], id="two-sizes"),
        pytest.param([encoded("JPEG", width=96)], id="not-square"),
        pytest.param([encoded("JPEG", height=300)], id="large"),
        pytest.param([JPEG, encoded("PNG")], id="png"),
        pytest.param([JPEG, None], id="no-image"),
        pytest.param([JPEG, JPEG[: len(JPEG) // 2]], id="damaged"),
        pytest.param([JPEG, JPEG[:-60]], id="truncated"),
    ],
)
def test_other_images_are_not_decoded_together(images: list[bytes | None]) -> None:
    assert SmallFrameDecoder(MAX_PIXELS).decode(images, 32) is None


def test_small_images_respect_the_limit_of_the_server() -> None:
    assert SmallFrameDecoder(64 * 64).decode([JPEG], 32) is not None
    assert SmallFrameDecoder(64 * 64 - 1).decode([JPEG], 32) is None
