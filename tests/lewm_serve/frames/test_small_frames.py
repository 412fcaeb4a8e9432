"""Small JPEG images of one request, decoded together."""

import pytest
import torch

from lewm_models.preprocessing import resize
from lewm_serve.frames.decode import QUICK_FRAMES, SmallFrameDecoder, decode_image
from tests.lewm_serve.support.frames import encoded

LIMIT = 1 << 22


def one_by_one(images: list[bytes], size: int) -> torch.Tensor:
    """What the ordinary way makes of them."""
    decoded = (torch.tensor(decode_image(image, LIMIT, "goal")) for image in images)
    return torch.cat([resize(pixels.unsqueeze(0), size) for pixels in decoded])


@pytest.mark.parametrize("size", [32, 64], ids=["smaller", "as-they-are"])
@pytest.mark.parametrize("count", range(1, QUICK_FRAMES + 1))
def test_frames_are_those_of_the_ordinary_way(count: int, size: int) -> None:
    images = [encoded("JPEG", seed) for seed in range(count)]
    frames = SmallFrameDecoder(LIMIT).decode(images, size)
    assert frames is not None
    assert torch.equal(frames, one_by_one(images, size))


@pytest.mark.parametrize("size", [32, 64], ids=["smaller", "as-they-are"])
def test_frames_outlive_the_next_request(size: int) -> None:
    decoder = SmallFrameDecoder(LIMIT)
    first, second = encoded("JPEG", 0), encoded("JPEG", 1)
    frames = decoder.decode([first], size)
    decoder.decode([second], size)
    assert frames is not None
    assert torch.equal(frames, one_by_one([first], size))


JPEG = encoded("JPEG")


@pytest.mark.parametrize(
    "images",
    [
        pytest.param([JPEG] * (QUICK_FRAMES + 1), id="many"),
        pytest.param([JPEG, encoded("JPEG", height=96)], id="two-sizes"),
        pytest.param([encoded("JPEG", width=96)], id="not-square"),
        pytest.param([encoded("JPEG", height=300)], id="large"),
        pytest.param([JPEG, encoded("PNG")], id="png"),
        pytest.param([JPEG, None], id="no-image"),
        pytest.param([JPEG, JPEG[: len(JPEG) // 2]], id="damaged"),
    ],
)
def test_others_go_the_ordinary_way(images: list[bytes | None]) -> None:
    assert SmallFrameDecoder(LIMIT).decode(images, 32) is None


def test_the_servers_limit_holds() -> None:
    assert SmallFrameDecoder(64 * 64).decode([JPEG], 32) is not None
    assert SmallFrameDecoder(64 * 64 - 1).decode([JPEG], 32) is None
