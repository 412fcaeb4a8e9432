"""Where latents are drawn, and what pictures stand for them."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from lewm_models.checkpoint import ViewingParts
from lewm_models.decoder.network import FRAME_SIDE, FrameDecoder
from lewm_models.probe.network import StateProbe
from lewm_serve.api.requests import Frame, Region
from lewm_serve.transports.http.console.pictures import (
    KnownFrame,
    Picture,
    data_url,
    imagined,
    picture_of_frame,
)
from lewm_serve.transports.http.console.placing import Plane

DIM = 5


def picture_in(url: str) -> Picture:
    """The picture of a `data:` URL."""
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture
def parts() -> ViewingParts:
    """A decoder without a training."""
    torch.manual_seed(0)
    frame = torch.full((3, FRAME_SIDE, FRAME_SIDE), 0.5)
    decoder = FrameDecoder(torch.zeros(DIM), torch.ones(DIM), mean_frame=frame, width=8).eval()
    return ViewingParts(probe=None, decoder=decoder)


def test_two_components_keep_distances_of_latents_in_a_plane() -> None:
    torch.manual_seed(1)
    flat = torch.randn(40, 2) * torch.tensor([3.0, 1.0])
    basis = torch.linalg.qr(torch.randn(DIM, 2)).Q
    latents = 7 + flat @ basis.T
    plane = Plane.of(latents, None, ())
    points = plane.points(latents.view(4, 10, DIM))
    assert points.shape == (4, 10, 2)
    assert plane.axes == ("component 1", "component 2")
    distances = torch.cdist(torch.tensor(points.reshape(-1, 2)).float(), torch.zeros(1, 2))
    expected = torch.cdist(latents, latents.mean(dim=0, keepdim=True))
    assert torch.allclose(distances, expected, atol=1e-3)
    spread = points.reshape(-1, 2).std(axis=0)
    assert spread[0] > spread[1]
    # The picture does not turn over when the same plan is drawn again.
    assert np.allclose(points, Plane.of(latents.clone(), None, ()).points(latents.view(4, 10, DIM)))


def test_equal_latents_are_drawn_at_one_point() -> None:
    plane = Plane.of(torch.ones(3, DIM), None, ())
    assert np.allclose(plane.points(torch.ones(3, DIM)), 0)


def probe_of(mean: list[float], periods: list[float]) -> StateProbe:
    """A probe that reads the same states from every latent."""
    probe = StateProbe(
        torch.zeros(DIM),
        torch.ones(DIM),
        state_mean=torch.tensor(mean),
        state_std=torch.ones(len(mean)),
        periods=torch.tensor(periods),
        width=4,
    ).eval()
    torch.nn.init.zeros_(probe.output.weight)
    torch.nn.init.zeros_(probe.output.bias)
    return probe


def test_a_goal_by_states_is_drawn_where_the_probe_would_draw_it() -> None:
    plane = Plane.of(
        torch.randn(6, DIM), probe_of([1.0, 2.0, 3.0], [0.0, 360.0, 0.0]), ("x", "turn", "z")
    )
    near = np.array([0.0, 350.0])
    assert plane.place_goal({"x": 7.0, "turn": 10.0}, near) == [7.0, 370.0]
    assert plane.place_goal({"turn": 340.0, "z": 1.0}, near) == [None, 340.0]
    assert plane.place_goal({"z": 1.0}, near) is None
    assert Plane.of(torch.randn(6, DIM), None, ()).place_goal({"x": 7.0}, near) is None


def test_regions_of_the_two_drawn_states_have_an_outline() -> None:
    plane = Plane.of(torch.randn(6, DIM), probe_of([1.0, 2.0, 3.0], [0.0] * 3), ("x", "y", "z"))
    near = np.zeros(2)
    box = Region(state={"y": (10.0, 30.0), "x": (0.0, 4.0)})
    assert plane.place_region(box, near) == {
        "kind": "box",
        "centre": [2.0, 20.0],
        "sizes": [2.0, 10.0],
    }
    disc = Region(centre={"x": 5.0, "y": 6.0}, radius=3.0)
    assert plane.place_region(disc, near) == {
        "kind": "disc",
        "centre": [5.0, 6.0],
        "sizes": [3.0, 3.0],
    }
    for other in (Region(state={"x": (0.0, 4.0)}), Region(centre={"x": 5.0, "z": 6.0}, radius=3.0)):
        assert plane.place_region(other, near) is None


def test_a_probe_draws_latents_at_their_states() -> None:
    probe = probe_of([10.0, 20.0, 30.0], [0.0] * 3)
    plane = Plane.of(torch.randn(6, DIM), probe, ("x", "y", "z"))
    assert plane.axes == ("x", "y")
    assert np.allclose(plane.points(torch.randn(2, 3, DIM)), [10.0, 20.0])
    # One state is no plane.
    assert Plane.of(torch.randn(6, DIM), probe, ("x",)).probe is None


def test_sent_frames_are_shown_as_they_were_sent_and_latents_by_the_decoder(
    parts: ViewingParts,
) -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    shown = picture_of_frame(Frame.model_construct(pixels=pixels), torch.zeros(DIM), parts)
    assert shown is not None
    assert (picture_in(shown) == pixels).all()
    large = data_url(np.zeros((900, 450, 3), np.uint8))
    assert picture_in(large).shape == (224, 112, 3)
    latent = Frame.model_construct(latent=np.zeros(DIM, np.float32))
    decoded = picture_of_frame(latent, torch.zeros(DIM), parts)
    assert decoded is not None
    assert picture_in(decoded).shape == (FRAME_SIDE, FRAME_SIDE, 3)
    assert picture_of_frame(latent, torch.zeros(DIM), None) is None


def test_latents_are_imagined_by_the_decoder_or_the_nearest_frame(parts: ViewingParts) -> None:
    latents = torch.tensor([[0.1] * DIM, [0.9] * DIM])
    made = imagined(latents, parts, [])
    assert made is not None
    assert made[1] == "decoder"
    assert len(made[0]) == 2
    known = [
        KnownFrame(Frame.model_construct(pixels=np.full((4, 4, 3), grey, np.uint8)), latent)
        for grey, latent in ((0, torch.zeros(DIM)), (255, torch.ones(DIM)))
    ]
    known.append(KnownFrame(Frame.model_construct(latent=np.zeros(DIM)), latents[0]))
    nearest = imagined(latents, None, known)
    assert nearest is not None
    assert nearest[1] == "nearest"
    assert [int(picture_in(url).max()) for url in nearest[0]] == [0, 255]
    assert imagined(latents, None, known[2:]) is None
