"""SIGReg's known values, and a loss of two terms that reaches every weight."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from lewm_models.lewm import LeWM
from lewm_models.objective import Losses, lewm_loss, random_directions, sigreg
from tests.lewm_models.examples import TINY, tiny

DIRECTIONS = random_directions(TINY.latent_dim, 256, torch.Generator().manual_seed(0))
WEIGHT = 0.09


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    shape = (6, TINY.history + 1, TINY.image_size, TINY.image_size, 3)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return frames, gaussian(6, TINY.history, TINY.block_width)


def test_directions_are_of_unit_length() -> None:
    assert DIRECTIONS.shape == (TINY.latent_dim, 256)
    torch.testing.assert_close(DIRECTIONS.norm(dim=0), torch.ones(256))


@pytest.mark.parametrize("samples", [64, 512])
def test_sigreg_of_a_gaussian_does_not_depend_on_how_many(samples: int) -> None:
    latents = gaussian(16_384 // samples, samples, TINY.latent_dim)
    assert float(sigreg(latents, DIRECTIONS[:, :64])) == pytest.approx(1.052, abs=0.1)


@pytest.mark.parametrize("samples", [64, 512])
def test_sigreg_of_a_collapse_grows_with_how_many(samples: int) -> None:
    collapsed = torch.zeros(1, samples, TINY.latent_dim)
    assert float(sigreg(collapsed, DIRECTIONS)) == pytest.approx(0.402 * samples, rel=2e-3)


@pytest.mark.parametrize("deviation", [0.5, 2.0])
def test_sigreg_of_another_width_is_larger(deviation: float) -> None:
    latents = gaussian(4, 512, TINY.latent_dim)
    assert sigreg(deviation * latents, DIRECTIONS) > 5 * sigreg(latents, DIRECTIONS)


def test_sigreg_is_computed_in_float32_under_autocast() -> None:
    latents = gaussian(1, 512, TINY.latent_dim)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sigreg(latents, DIRECTIONS)
    assert mixed == sigreg(latents, DIRECTIONS)


def test_the_loss_has_two_terms(batch: tuple[Tensor, Tensor]) -> None:
    model = tiny()
    losses = lewm_loss(model, *batch, DIRECTIONS, WEIGHT)
    assert {field.name for field in fields(Losses)} == {"prediction", "sigreg", "total"}
    torch.testing.assert_close(losses.total, losses.prediction + WEIGHT * losses.sigreg)

    frames, actions = batch
    latents = torch.stack([model.encode(part) for part in frames])
    errors = model.predict(latents[:, :3], actions) - latents[:, 1:]
    torch.testing.assert_close(losses.prediction, errors.square().mean())
    each = [sigreg(latents[None, :, step], DIRECTIONS) for step in range(TINY.history + 1)]
    torch.testing.assert_close(losses.sigreg, torch.stack(each).mean())


def test_no_gradient_is_stopped(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last latent is a target only: without a gradient there, targets would be frozen."""
    model = tiny()
    latents = gaussian(6 * (TINY.history + 1), TINY.latent_dim).requires_grad_()
    monkeypatch.setattr(model, "encode", lambda frames: latents)
    lewm_loss(model, *batch, DIRECTIONS, weight=0.0).total.backward()  # type: ignore[no-untyped-call]
    assert latents.grad is not None
    reached = latents.grad.view(6, TINY.history + 1, -1).abs().amax(dim=(0, 2))
    assert bool((reached > 0).all())


def test_nothing_is_frozen(batch: tuple[Tensor, Tensor]) -> None:
    model: LeWM = tiny().train()
    lewm_loss(model, *batch, DIRECTIONS, WEIGHT).total.backward()  # type: ignore[no-untyped-call]
    untouched = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.any())
    ]
    assert untouched == []
