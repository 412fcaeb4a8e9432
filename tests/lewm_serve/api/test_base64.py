"""Images and pixels in the forms of base64 that clients send."""

import base64
import textwrap
from urllib.parse import quote

import pytest

from lewm_serve.api.fields import parse
from lewm_serve.api.requests import EncodeRequest, Frame
from lewm_serve.errors import InvalidRequest
from tests.lewm_serve.support.frames import encoded

IMAGE = encoded("PNG")[:-1] + b"\xfb\xff\xbe\xef\xff"
"""Bytes in whose base64 all characters occur that differ between the alphabets, and padding."""

STANDARD = base64.b64encode(IMAGE).decode()
URL_SAFE = base64.urlsafe_b64encode(IMAGE).decode()


def frame_of(text: object) -> Frame:
    """The frame of an encode request whose image is this text."""
    (frame,) = parse(EncodeRequest, {"frames": [{"image": text}]}).frames
    return frame


def test_the_example_has_all_forms() -> None:
    assert STANDARD.endswith("=")
    assert {"+", "/"} <= set(STANDARD)
    assert {"-", "_"} <= set(URL_SAFE)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(STANDARD, id="standard"),
        pytest.param(STANDARD.rstrip("="), id="without-padding"),
        pytest.param(URL_SAFE, id="url-safe"),
        pytest.param(URL_SAFE.rstrip("="), id="url-safe-without-padding"),
        pytest.param(base64.encodebytes(IMAGE).decode(), id="mime-lines"),
        pytest.param("\r\n".join(textwrap.wrap(STANDARD, 64)), id="pem-lines"),
        pytest.param(f"  {STANDARD}\t\n", id="blanks-around"),
        pytest.param(f"data:image/png;base64,{STANDARD}", id="data-url"),
        pytest.param(f"DATA:image/png;charset=x;BASE64,{STANDARD}", id="data-url-parameters"),
        pytest.param(f"data:;base64,{STANDARD}", id="data-url-without-type"),
        pytest.param(f"data:image/png;base64,{quote(STANDARD, safe='')}", id="data-url-escaped"),
        pytest.param(f"data:image/png;base64,{URL_SAFE.rstrip('=')}", id="data-url-url-safe"),
        pytest.param(f"data:image/png;base64,\n{base64.encodebytes(IMAGE).decode()}", id="lines"),
    ],
)
def test_every_usual_form_of_base64_is_read(text: str) -> None:
    assert frame_of(text).image == IMAGE


def test_every_length_is_read_without_padding() -> None:
    for length in range(1, 20):
        data = bytes(range(250, 250 - length, -1))
        text = base64.urlsafe_b64encode(data).decode().rstrip("=")
        assert frame_of(text).image == data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a PNG or JPEG image"),
        ("data:image/png;base64,", "a PNG or JPEG image"),
        ("data:image/png,%89PNG", "a data URL with base64: data:image/png;base64,…"),
        ("data:image/png;base64", "a data URL with base64: data:image/png;base64,…"),
        ("not base64!", "'!' is not in its alphabet"),
        ("/home/robot/frame.png", "'.' is not in its alphabet"),
        ("https://camera/frame", "':' is not in its alphabet"),
        ("QUJD\u00a0", "'\\xa0' is not in its alphabet"),
        ("AAAAA", "base64 of a possible length"),
        ("AA=A", "base64 of a possible length"),
        ("====", "a PNG or JPEG image"),
    ],
)
def test_what_is_no_base64_is_refused_with_the_reason(text: str, expected: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        frame_of(text)
    (problem,) = caught.value.errors
    assert (problem.field, problem.code) == ("frames[0].image", "invalid_image")
    assert expected in problem.expected


def test_pixels_may_have_the_same_forms() -> None:
    data = bytes(range(256))[:192]
    for text in (base64.urlsafe_b64encode(data), base64.encodebytes(data)):
        pixels = {"data": text.decode(), "shape": [8, 8, 3]}
        (frame,) = parse(EncodeRequest, {"frames": [{"pixels": pixels}]}).frames
        assert frame.pixels is not None
        assert frame.pixels.tobytes() == data
