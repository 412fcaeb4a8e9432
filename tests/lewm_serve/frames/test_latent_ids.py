"""What a latent is called."""

import numpy as np

from lewm_serve.api.requests import Frame
from lewm_serve.frames.latent_source import MODEL_NAME, name_of
from tests.lewm_serve.support.frames import encoded, image, latent, picture, pixels

VALUES = np.arange(3, dtype=np.float32)


def named(frame: dict[str, object], precision: str = "float32") -> str:
    return name_of(Frame.model_validate(frame), precision)


def test_the_same_frame_has_the_same_name() -> None:
    for frame in (image(), pixels(), latent()):
        assert named(frame) == named(frame)
        assert MODEL_NAME.fullmatch(named(frame))


def test_another_frame_has_another_name() -> None:
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
    assert len({named(frame) for frame in frames}) == len(frames)


def test_a_clients_latent_never_stands_for_an_image() -> None:
    data = VALUES.tobytes()
    mine = named({"latent": VALUES.tolist()})
    assert mine != named({"image": data})
    assert mine != named({"pixels": {"data": data, "shape": [2, 2, 3]}})
    assert mine != named({"image": b"image:1:float32\n" + data})


def test_a_name_tells_how_the_frame_was_encoded() -> None:
    assert named({"image": encoded("PNG")}) != named({"image": encoded("PNG")}, "bfloat16")
    assert named(latent()) == named(latent(), "bfloat16")
    assert named({"latent_id": "abc"}) == "abc"
