"""Mahalanobis distances, and the file with the reference that they are measured from."""

import pytest
import torch
from safetensors.torch import save

from lewm_models.calibration.reference import VARIANCE_FLOOR, LatentReference


def gaussian_latents(count: int = 4000) -> torch.Tensor:
    """Latents with mean 5 and the deviations 10, 1 and 0.5."""
    draws = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return 5 + draws * torch.tensor([10.0, 1.0, 0.5])


def test_distances_are_in_deviations_of_each_dimension() -> None:
    reference = LatentReference.fit(gaussian_latents())
    latents = 5 + torch.tensor([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    expected = torch.tensor([0.0, 2.0, 2.0])
    torch.testing.assert_close(reference.distances(latents), expected, rtol=0.05, atol=0.05)
    mean_square = reference.distances(gaussian_latents()).square().mean()
    assert float(mean_square) == pytest.approx(3, rel=0.02)


def test_a_dimension_without_variance_has_the_variance_floor() -> None:
    latents = gaussian_latents()
    latents[:, 2] = 5
    reference = LatentReference.fit(latents)
    deviation = (VARIANCE_FLOOR * float(torch.cov(latents.T).diagonal().mean())) ** 0.5
    shifted = latents.mean(dim=0) + torch.tensor([0.0, 0.0, deviation])
    assert float(reference.distances(shifted[None])) == pytest.approx(1, rel=0.01)


def test_a_reference_is_read_back_from_its_file() -> None:
    reference = LatentReference.fit(gaussian_latents())
    read = LatentReference.from_bytes(reference.to_bytes(), 3)
    assert torch.equal(read.mean, reference.mean)
    assert torch.equal(read.whitening, reference.whitening)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no safetensors",
        save({"mean": torch.zeros(3)}),
        save({"mean": torch.zeros(3), "whitening": torch.zeros(2, 2)}),
        save({"mean": torch.zeros(3), "whitening": torch.full((3, 3), torch.nan)}),
        save({"mean": torch.zeros(3), "whitening": torch.zeros(3, 3, dtype=torch.float64)}),
    ],
    ids=["empty", "not safetensors", "a tensor missing", "wrong shape", "nan", "float64"],
)
def test_another_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(cannot be read|expected finite)"):
        LatentReference.from_bytes(content, 3)
