"""What a client takes for an image, for pixels, for a latent and for a `latent_id`."""

import array
import ctypes
import io
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, calls, frame
from lewm_client.messages import frame_list

PICTURE = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)


def png() -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def memory_map(content: bytes) -> mmap.mmap:
    """Memory as a mapped file has it."""
    memory = mmap.mmap(-1, len(content))
    memory.write(content)
    return memory


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(PNG, id="bytes"),
        pytest.param(bytearray(PNG), id="bytearray"),
        pytest.param(memoryview(PNG), id="memoryview"),
        pytest.param(memoryview(PNG).cast("b").cast("B"), id="cast"),
        pytest.param(io.BytesIO(PNG).getbuffer(), id="buffer"),
        pytest.param(array.array("B", PNG), id="array"),
        pytest.param(memory_map(PNG), id="mmap"),
        pytest.param(ctypes.create_string_buffer(PNG, len(PNG)), id="ctypes"),
        pytest.param(np.frombuffer(PNG, np.uint8), id="frombuffer"),
        pytest.param(np.frombuffer(PNG, np.uint8).reshape(-1, 1), id="imencode"),
        pytest.param(np.frombuffer(PNG + PNG, np.uint8)[: len(PNG)], id="slice"),
    ],
)
def test_bytes_of_an_image_are_an_image(source: Any) -> None:
    assert frame(source) == pb.Frame(image=PNG)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(PICTURE, id="array"),
        pytest.param(PICTURE.data, id="memoryview"),
        pytest.param(np.asfortranarray(PICTURE), id="column-major"),
        pytest.param(Image.fromarray(PICTURE), id="pil"),
    ],
)
def test_pixels_are_pixels(source: Any) -> None:
    message = frame(source)
    assert list(message.pixels.shape) == [12, 12, 3]
    assert message.pixels.data == PICTURE.tobytes()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8", ">f4"])
def test_a_latent_is_a_latent(dtype: str) -> None:
    message = frame(np.array([1, 2, 3], dtype))
    assert list(message.latent.shape) == [3]
    assert message.latent.data == np.array([1, 2, 3], "<f4").tobytes()
    assert frame([1.0, 2.0, 3.0]) == message  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frames", "got"),
    [
        (PICTURE, r"array of shape \(12, 12, 3\)"),
        (np.frombuffer(PNG, np.uint8).reshape(-1, 1), r"array of shape "),
        (np.zeros(128, np.float32), r"array of shape \(128,\)"),
        (PNG, "bytes"),
        (memoryview(PNG), "memoryview"),
        (memory_map(PNG), "mmap"),
        (array.array("B", PNG), "array"),
        ("frame.png", "string, 'frame.png'"),
        (Path("frame.png"), "PosixPath"),
        (Image.fromarray(PICTURE), "Image"),
    ],
)
def test_one_frame_in_place_of_a_list_is_named(frames: Any, got: str) -> None:
    message = rf"^frames: expected a list of frames, got one {got}.*: write \[frame\]$"
    with PlannerClient("127.0.0.1:1") as client:
        for call in (client.encode, client.predict):
            with pytest.raises(TypeError, match=message):
                call(frames)
        with pytest.raises(TypeError, match=message):
            client.plan(frames, PICTURE)


@pytest.mark.parametrize(
    "frames",
    [[PICTURE], (PICTURE, PICTURE), np.stack([PICTURE] * 2), iter([PNG]), np.zeros((2, 8), "f4")],
)
def test_several_frames_are_a_list(frames: Any) -> None:
    assert list(frame_list(frames))


def test_pixels_become_a_jpeg_of_the_chosen_quality() -> None:
    smooth = np.asarray(Image.fromarray(PICTURE).resize((64, 64), Image.Resampling.BICUBIC))
    small, large = (frame(smooth, quality).image for quality in (30, 95))
    assert len(small) < len(large) < smooth.nbytes
    image = Image.open(io.BytesIO(large))
    assert image.format == "JPEG"
    error = np.abs(np.asarray(image).astype(int) - smooth)
    assert error.max() < 25
    assert error.mean() < 3
    assert frame(smooth[:, ::-1], 95).image  # rows that are not contiguous
    assert frame(PNG, 95) == pb.Frame(image=PNG)


def test_a_client_compresses_frames_and_goals() -> None:
    with PlannerClient("127.0.0.1:1", jpeg_quality=90) as client:
        request = calls.plan(client, [PICTURE], PICTURE).request
    assert isinstance(request, pb.PlanRequest)
    for message in (*request.frames, request.goal):
        assert Image.open(io.BytesIO(message.image)).size == (12, 12)


@pytest.mark.parametrize("quality", [0, 101])
def test_an_impossible_quality_is_refused(quality: int) -> None:
    with pytest.raises(ValueError, match=f"jpeg_quality: expected 1 to 100, got {quality}"):
        PlannerClient("127.0.0.1:1", jpeg_quality=quality)


def test_jpeg_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(ImportError, match=r"pip install 'lewm-client\[jpeg\]'"):
        PlannerClient("127.0.0.1:1", jpeg_quality=90)


def test_a_latent_id_is_a_latent_id() -> None:
    assert frame("5d1e90c47fb24a6f8e02b3d59c7a1164").latent_id.startswith("5d1e")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("frame.png", "the string 'frame.png', which is no latent_id"),
        ("frames/start", "expected the bytes of an image, such as Path"),
        ("data:image/png;base64,AAAA", "which is no latent_id"),
        ("iVBORw0KGgo=", "which is no latent_id"),
        (Path("frame.png"), "the path frame.png, expected the bytes: path.read_bytes()"),
        (None, "the frame is a NoneType, expected pixels or bytes"),
        (io.BytesIO(PNG), "the frame is a BytesIO, expected pixels or bytes"),
        (PICTURE / 255, r"float64, expected uint8 pixels; values from 0 to 1 become uint8"),
        (PICTURE.astype(np.float32), "float32, expected uint8 pixels"),
        (PICTURE.astype(np.int64), "int64, expected uint8 pixels"),
        (PICTURE > 3, "bool, expected uint8 pixels"),
        (np.array([True, False]), "the latent has dtype bool, expected floats"),
        (np.frombuffer(PNG, np.int8), "the latent has dtype int8, expected floats"),
        (np.array([1j]), "complex128, expected floats"),
        (np.array(["1"]), "expected floats"),
    ],
)
def test_frames_of_another_kind_are_refused(source: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        frame(source)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        (PICTURE.transpose(2, 0, 1), "its channels come first: frame.transpose(1, 2, 0)"),
        (PICTURE[None], "it is a batch of one frame: frame[0]"),
        (np.zeros((2, 12, 12, 3), np.uint8), "(2, 12, 12, 3), expected (H, W, 3)"),
        (np.zeros((12, 12, 4), np.uint8), "without the alpha channel: frame[:, :, :3]"),
        (PICTURE[:, :, 0], "grey pixels: numpy.stack([frame] * 3, axis=2)"),
        (Image.fromarray(PICTURE).convert("L"), "image.convert('RGB')"),
        (Image.fromarray(PICTURE).convert("P"), "image.convert('RGB')"),
        (np.zeros((), np.uint8), "shape (), expected (H, W, 3)"),
    ],
)
def test_arrays_of_another_shape_are_refused_with_advice(source: Any, advice: str) -> None:
    with pytest.raises(ValueError, match="the frame has shape") as caught:
        frame(source)
    assert advice in str(caught.value)


def test_an_image_comes_with_the_states_beside_it() -> None:
    vector = pb.Tensor(shape=[2], data=np.array([40, 120.5], "<f4").tobytes())
    assert frame((PNG, [40, 120.5])) == pb.Frame(image=PNG, vector=vector)
    message = frame((PICTURE, np.array([40, 120.5])), 90)
    assert Image.open(io.BytesIO(message.image)).size == (12, 12)
    assert message.vector == vector
    with PlannerClient("127.0.0.1:1") as client:
        request = calls.plan(client, [(PNG, [40, 120.5]), PNG], (PICTURE, [40, 120.5])).request
    assert isinstance(request, pb.PlanRequest)
    assert [each.HasField("vector") for each in request.frames] == [True, False]
    assert request.goal.vector == vector
    assert request.goal.WhichOneof("source") == "pixels"


def test_a_tuple_is_an_image_and_its_states() -> None:
    with pytest.raises(ValueError, match="a tuple of 3, expected an image and its vector"):
        frame((PNG, [1.0], [2.0]))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the frame is a NoneType, expected pixels or bytes"):
        frame((None, [1.0]))  # type: ignore[arg-type]
