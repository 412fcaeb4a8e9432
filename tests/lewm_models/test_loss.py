"""Known values of SIGReg, and a loss of two terms whose gradient reaches every weight."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from lewm_models.lewm import LeWM
from lewm_models.loss import Losses, lewm_loss, random_directions, sigreg
from tests.lewm_models.examples import TINY, tiny_model

DIRECTIONS = random_directions(TINY.latent_dim, 256, torch.Generator().manual_seed(0))
SIGREG_WEIGHT = 0.09


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    shape = (6, TINY.history + 1, TINY.image_size, TINY.image_size, 3)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return frames, gaussian(6, TINY.history, TINY.block_width)


def test_directions_have_unit_length() -> None:
    assert DIRECTIONS.shape == (TINY.latent_dim, 256)
    torch.testing.assert_close(DIRECTIONS.norm(dim=0), torch.ones(256))


@pytest.mark.parametrize("samples", [64, 512])
def test_sigreg_of_a_gaussian_does_not_depend_on_the_number_of_latents(samples: int) -> None:
    latents = gaussian(16_384 // samples, samples, TINY.latent_dim)
    assert float(sigreg(latents, DIRECTIONS[:, :64])) == pytest.approx(1.052, abs=0.1)


@pytest.mark.parametrize("samples", [64, 512])
def test_sigreg_of_identical_latents_grows_with_their_number(samples: int) -> None:
    identical = torch.zeros(1, samples, TINY.latent_dim)
    assert float(sigreg(identical, DIRECTIONS)) == pytest.approx(0.402 * samples, rel=2e-3)


@pytest.mark.parametrize("deviation", [0.5, 2.0])
def test_sigreg_of_another_deviation_is_larger(deviation: float) -> None:
    latents = gaussian(4, 512, TINY.latent_dim)
    assert sigreg(deviation * latents, DIRECTIONS) > 5 * sigreg(latents, DIRECTIONS)


def test_sigreg_is_computed_in_float32_under_autocast() -> None:
    latents = gaussian(1, 512, TINY.latent_dim)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sigreg(latents, DIRECTIONS)
    assert mixed == sigreg(latents, DIRECTIONS)


def test_the_loss_has_two_terms(batch: tuple[Tensor, Tensor]) -> None:
    model = tiny_model()
    frames, actions = batch
    losses = lewm_loss(model, frames, actions, directions=DIRECTIONS, sigreg_weight=SIGREG_WEIGHT)
    assert {field.name for field in fields(Losses)} == {"prediction", "sigreg", "total"}
    torch.testing.assert_close(losses.total, losses.prediction + SIGREG_WEIGHT * losses.sigreg)

    latents = torch.stack([model.encode(window) for window in frames])
    errors = model.predict(latents[:, :3], actions) - latents[:, 1:]
    torch.testing.assert_close(losses.prediction, errors.square().mean())
    by_step = [sigreg(latents[None, :, step], DIRECTIONS) for step in range(TINY.history + 1)]
    torch.testing.assert_close(losses.sigreg, torch.stack(by_step).mean())


def test_no_gradient_is_stopped(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last latent is a target only, so a gradient there shows that targets learn too."""
    model = tiny_model()
    latents = gaussian(6 * (TINY.history + 1), TINY.latent_dim).requires_grad_()
    monkeypatch.setattr(model, "encode", lambda frames, states=None: latents)
    frames, actions = batch
    losses = lewm_loss(model, frames, actions, directions=DIRECTIONS, sigreg_weight=0.0)
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert latents.grad is not None
    largest_by_step = latents.grad.view(6, TINY.history + 1, -1).abs().amax(dim=(0, 2))
    assert bool((largest_by_step > 0).all())


def test_every_weight_gets_a_gradient(batch: tuple[Tensor, Tensor]) -> None:
    model: LeWM = tiny_model().train()
    frames, actions = batch
    losses = lewm_loss(model, frames, actions, directions=DIRECTIONS, sigreg_weight=SIGREG_WEIGHT)
    losses.total.backward()  # type: ignore[no-untyped-call]
    without_gradient = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.any())
    ]
    assert without_gradient == []
