"""Requests over REST, and images that no server has seen."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from benchmarks.clients import (
    Picture,
    RestClient,
    image_document,
    new_jpegs,
    new_pngs,
    photographs,
    two_room_pictures,
)
from lewm_serve.cli.local_server import LocalServer


@pytest.mark.parametrize(("make", "tolerance"), [(new_jpegs, 60), (new_pngs, 0)])
def test_images_are_new_and_show_the_pictures(
    make: Callable[[Sequence[Picture]], Iterator[bytes]], tolerance: int
) -> None:
    pictures = two_room_pictures()
    images = list(islice(make(pictures), 3 * len(pictures)))
    assert len(set(images)) == len(images)
    for index, image in enumerate(images):
        shown = np.asarray(Image.open(io.BytesIO(image)))
        expected = pictures[index % len(pictures)]
        assert np.abs(shown.astype(int) - expected).max() <= tolerance


def test_photographs_are_larger_than_rendered_frames() -> None:
    photograph, rendered = next(new_jpegs(photographs())), next(new_jpegs(two_room_pictures()))
    assert len(photograph) > 2 * len(rendered)


def test_a_server_encodes_each_new_image(quick_server: LocalServer) -> None:
    with closing(RestClient(quick_server)) as client:
        for make in (new_jpegs, new_pngs):
            images = list(islice(make(photographs()), 2))
            frames = [image_document(image) for image in (*images, images[0])]
            answers = [client.post("/encode", {"frames": [frame]})[1] for frame in frames]
            cached = [answer["latents"][0]["cached"] for answer in answers]
            assert cached == [False, False, True]


def test_a_refused_request_is_an_error(quick_server: LocalServer) -> None:
    with closing(RestClient(quick_server)) as client:
        seconds, text = client.get("/healthz")
        assert seconds > 0
        assert text
        with pytest.raises(RuntimeError, match="/plan answered 422"):
            client.post("/plan", {})
