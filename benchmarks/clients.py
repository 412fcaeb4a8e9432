"""A REST client that measures its requests, and camera frames that no server has seen before."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lewm_models.environments import two_room
from lewm_serve.cli.local_server import HOST, LocalServer
from lewm_serve.cli.robot_load import NUMBER_BYTES, encode_picture, numbered_jpeg

Picture = NDArray[np.uint8]
"""A frame (224, 224, 3)."""

Document = dict[str, Any]
"""A JSON object."""

FRAME_SIZE = 224
PICTURE_COUNT = 8
PNG_HEADER_END = 33
"""Bytes of a PNG's signature and of its first chunk."""

REST_TIMEOUT_S = 600.0


class RestClient:
    """One connection to the REST port of a server. The server closes connections that are idle."""

    def __init__(self, server: LocalServer) -> None:
        self._connection = http.client.HTTPConnection(
            HOST, server.http_port, timeout=REST_TIMEOUT_S
        )

    def get(self, path: str) -> tuple[float, str]:
        """Seconds until the whole answer has arrived, and its text."""
        return self._request("GET", path, None)

    def post(self, path: str, document: Document) -> tuple[float, Document]:
        """Seconds from the request's bytes to the answer's bytes, and the answer."""
        seconds, text = self._request("POST", path, json.dumps(document).encode())
        answer: Document = json.loads(text)
        return seconds, answer

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[float, str]:
        headers = {} if body is None else {"content-type": "application/json"}
        start = time.perf_counter()
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        text = response.read()
        seconds = time.perf_counter() - start
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}: {text[:200]!r}")
        return seconds, text.decode()


def image_document(image: bytes) -> Document:
    """A PNG or JPEG image as a frame of a REST request."""
    return {"image": base64.b64encode(image).decode("ascii")}


def two_room_pictures() -> list[Picture]:
    """Frames of Two-Room, for which the embedded model plans."""
    positions = two_room.sample_positions(PICTURE_COUNT, torch.Generator().manual_seed(0))
    return list(two_room.render(positions).numpy())


def photographs() -> list[Picture]:
    """Smooth shapes with the noise of a sensor: as hard to decode as photographs."""
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURE_COUNT):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        size = (FRAME_SIZE, FRAME_SIZE)
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + generator.normal(0, 6, smooth.shape)
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return pictures


def new_jpegs(pictures: Sequence[Picture]) -> Iterator[bytes]:
    """JPEG images of the pictures in turn, without end, no two with the same bytes.

    A comment with a number makes an image that no cache knows, at no cost for the client.
    """
    images = [encode_picture(picture, "JPEG") for picture in pictures]
    for number in itertools.count():
        yield numbered_jpeg(images[number % len(images)], number)


def new_pngs(pictures: Sequence[Picture]) -> Iterator[bytes]:
    """PNG images; see `new_jpegs`."""
    images = [encode_picture(picture, "PNG") for picture in pictures]
    for number in itertools.count():
        image = images[number % len(images)]
        text = b"tEXt" + b"number\0" + number.to_bytes(NUMBER_BYTES, "big").hex().encode()
        chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
        yield image[:PNG_HEADER_END] + chunk + image[PNG_HEADER_END:]
