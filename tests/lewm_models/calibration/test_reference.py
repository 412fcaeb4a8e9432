"""Mahalanobis distances, and the file that holds what they are measured by."""

import pytest
import torch
from safetensors.torch import save

from lewm_models.calibration.reference import FLOOR, LatentReference


def latents(count: int = 4000) -> torch.Tensor:
    """Gaussian latents about 5, a hundred times wider along one axis than along the next."""
    draws = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return 5 + draws * torch.tensor([10.0, 1.0, 0.5])


def test_distances_count_deviations_along_each_axis() -> None:
    reference = LatentReference.fit(latents())
    probes = 5 + torch.tensor([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    expected = torch.tensor([0.0, 2.0, 2.0])
    torch.testing.assert_close(reference.distances(probes), expected, rtol=0.05, atol=0.05)
    own = reference.distances(latents()).square().mean()
    assert float(own) == pytest.approx(3, rel=0.02)


def test_a_direction_without_any_spread_has_the_floor_s() -> None:
    flat = latents()
    flat[:, 2] = 5
    reference = LatentReference.fit(flat)
    deviation = (FLOOR * float(torch.cov(flat.T).diagonal().mean())) ** 0.5
    probe = flat.mean(dim=0) + torch.tensor([0.0, 0.0, deviation])
    assert float(reference.distances(probe[None])) == pytest.approx(1, rel=0.01)


def test_a_reference_survives_its_file() -> None:
    reference = LatentReference.fit(latents())
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
)
def test_another_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(cannot be read|expected finite)"):
        LatentReference.from_bytes(content, 3)
